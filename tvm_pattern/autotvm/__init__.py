"""AutoTVM-shaped calls for existing scripts, on today's tuner.

>>> from tvm_pattern import autotvm, relay
>>> tasks = autotvm.task.extract_from_program(mod["main"], target="pattern/native")
>>> option = autotvm.measure_option(autotvm.LocalBuilder(), autotvm.LocalRunner(repeat=3))
>>> for task in tasks:
...     tuner = autotvm.tuner.XGBTuner(task)
...     tuner.tune(64, option, callbacks=[autotvm.callback.log_to_file("net.jsonl")])
>>> with autotvm.apply_history_best("net.jsonl"):
...     lib = relay.build(mod, target="pattern/native")

What differs is listed in ``docs/from-relay.md``.
"""

from __future__ import annotations

from ..relay.absent import absent
from ..tuning.history import apply_history_best
from . import callback, measure, record, task, tuner
from .measure import LocalBuilder, LocalRunner, RPCRunner, measure_option

__all__ = [
    "LocalBuilder",
    "LocalRunner",
    "RPCRunner",
    "apply_history_best",
    "callback",
    "measure",
    "measure_option",
    "record",
    "task",
    "tuner",
]

_INSTEAD = {
    "template": "the schedules of topi_kernels; their knobs are fields of a configuration",
    "get_config": "the schedules of topi_kernels; their knobs are fields of a configuration",
    "register_topi_compute": "an operator of topi_kernels, see ARCHITECTURE.md, 'Where to add'",
    "register_topi_schedule": "an operator of topi_kernels, see ARCHITECTURE.md, 'Where to add'",
    "graph_tuner": "tvm_pattern.tune, which spends trials where the whole network gains most",
    "tophub": "the records that ship with the project and are used without a log",
    "FallbackContext": "the level-0 configuration, which layers without a record get",
}


__getattr__ = absent("autotvm", _INSTEAD, __all__, ("graph_tuner", "tophub"))
