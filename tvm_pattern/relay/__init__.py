"""Relay-shaped calls for existing scripts.

TVM has no Relay any more; these functions have its names and shapes and stand on
:func:`tvm_pattern.compile`.

>>> from tvm_pattern import relay
>>> mod, params = relay.frontend.from_pytorch(traced, [("input0", (1, 3, 224, 224))])
>>> lib = relay.build(mod, target="pattern/native", params=params)
>>> module = relay.graph_executor.GraphModule(lib["default"](tvm.cpu()))
>>> module.set_input("input0", image)
>>> module.run()
>>> module.get_output(0).numpy()

What differs from Relay: ``mod`` is a Relax module, and ``params`` is empty because the weights are
constants of ``mod``.
"""

from . import frontend, graph_executor, op, testing
from .build import BuiltModule, build

__all__ = ["BuiltModule", "build", "frontend", "graph_executor", "op", "testing"]
