"""Tasks: the distinct convolutions of a module."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import tvm
from tvm import relax
from tvm.target import Target

from relay_passes.targets import resolve

from ..relay.absent import absent
from ..relay.build import bind
from ..threads import check_num_threads
from ..tuning.space import Space
from ..tuning.tasks import WeightedTask, extract_tasks

#: Operators that the tuner has tasks for.
TUNED = ("nn.conv2d", "nn.dense")

__getattr__ = absent(
    "autotvm.task",
    dict.fromkeys(
        ("create", "args_to_workload", "template", "register_topi_compute"),
        "autotvm.task.extract_from_program, on a network that has the operator",
    ),
    ("extract_from_program", "Task"),
)


@dataclass
class Task:
    """One distinct convolution, the target, and what may be chosen.

    Parameters
    ----------
    name : str
        Of the first layer it stands for.
    target : tvm.target.Target
    config_space : tvm_pattern.tuning.space.Space
        Has a length.
    num_threads : int
    """

    name: str
    target: Target
    config_space: Space
    num_threads: int
    weighted: WeightedTask = field(repr=False)

    @property
    def workload(self) -> str:
        """Key that records hold."""
        return self.weighted.task.key

    @property
    def flop(self) -> float:
        """Effective (non-zero) operations of one run."""
        return float(self.weighted.task.effective_flops)


def extract_from_program(
    mod: tvm.IRModule | relax.Function,
    target: Any = "pattern/native",
    params: dict[str, Any] | None = None,
    ops: Iterable[Any] | None = None,
    target_host: Any = None,
    num_threads: int | None = None,
) -> list[Task]:
    """The convolutions of a module to tune, each once.

    Parameters
    ----------
    mod : tvm.IRModule or tvm.relax.Function
        What ``relay.frontend`` imported, or its ``mod["main"]``.
    target, target_host
        As for ``relay.build``.
    params : dict, optional
        Inputs of ``main`` to bind as constants.
    ops : iterable, optional
        Of ``relay.op.get``: tasks of these operators only.
    num_threads : int, optional
        To tune for; as :func:`tvm_pattern.compile`.

    Raises
    ------
    ValueError
        If the target cannot be tuned for, or no operator in ``ops`` has tasks.
    """
    module = tvm.IRModule({"main": mod}) if isinstance(mod, relax.Function) else mod
    wanted = None if ops is None else [str(op) for op in ops]
    if wanted is not None and not set(wanted) & set(TUNED):
        raise ValueError(f"ops {wanted} have no tasks; expected some of {list(TUNED)}")
    threads = check_num_threads(num_threads)
    resolved = resolve(target, target_host)
    found = extract_tasks(bind(module, params), resolved, threads)
    if wanted is not None and "nn.dense" not in wanted:
        found = [weighted for weighted in found if weighted.weight.ndim == 4]
    return [Task(w.layers[0], resolved, Space(w.task), threads, w) for w in found]
