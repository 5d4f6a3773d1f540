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
from .absent import absent
from .build import BuiltModule, build

__all__ = ["BuiltModule", "build", "frontend", "graph_executor", "op", "testing"]

_IMPORTED = (
    "a network read by relay.frontend.from_pytorch or from_onnx, or built by tvm.relax.BlockBuilder"
)
_MODULES = {
    "transform": "tvm.relax.transform; relay.build runs the passes that are needed",
    "analysis": "tvm.relax.analysis",
    "dataflow_pattern": "tvm.relax.dpl",
    "quantize": "tvm_pattern.quantization, see docs/quantization.md",
    "vm": "relay.build, whose result runs on TVM's virtual machine",
    "expr": _IMPORTED,
    "ty": _IMPORTED,
    "nn": _IMPORTED,
    "image": _IMPORTED,
    "vision": _IMPORTED,
}
_INSTEAD = {
    **_MODULES,
    **dict.fromkeys(("var", "const", "Function", "Call", "Tuple", "TupleGetItem"), _IMPORTED),
    "build_config": "tvm.transform.PassContext(opt_level=3)",
    "create_executor": "relay.build and graph_executor.GraphModule",
    "optimize": "relay.build, which optimises and compiles",
}

__getattr__ = absent("relay", _INSTEAD, __all__, _MODULES)
