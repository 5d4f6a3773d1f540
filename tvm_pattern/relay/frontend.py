"""``relay.frontend``: importers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tvm
from tvm import relax
from tvm.relax.expr_functor import PyExprMutator, mutator

from ..frontend import TensorSpec, import_model
from .absent import absent

_OTHERS = ("caffe", "caffe2", "coreml", "darknet", "keras", "mxnet", "oneflow", "paddle")
__getattr__ = absent(
    "relay.frontend",
    dict.fromkeys(
        (f"from_{name}" for name in (*_OTHERS, "tensorflow", "tflite")),
        "relay.frontend.from_onnx, with the model exported to ONNX by its own framework",
    ),
    ("from_onnx", "from_pytorch"),
)


def from_pytorch(
    script_module: Any,
    input_infos: Sequence[tuple[str, Any]],
    default_dtype: str = "float32",
) -> tuple[tvm.IRModule, dict[str, Any]]:
    """Import a torch model.

    Parameters
    ----------
    script_module : torch.nn.Module or torch.jit.ScriptModule
        In evaluation mode; traced and scripted modules work too.
    input_infos : sequence of (name, shape) or (name, (shape, dtype))
        One per input, in order.
    default_dtype : str
        Of inputs without a dtype.

    Returns
    -------
    mod : tvm.IRModule
        Relax; its inputs have the given names and its weights are constants.
    params : dict
        Empty, for ``relay.build``.

    Raises
    ------
    ValueError, TypeError
        As :func:`tvm_pattern.frontend.import_model`.
    """
    import torch

    specs = [_spec(info, default_dtype) for info in input_infos]
    examples = tuple(torch.zeros(s.shape, dtype=getattr(torch, s.dtype)) for s in specs)
    imported = import_model(script_module, examples)
    return _rename_inputs(imported.mod, [s.name for s in specs]), {}


def from_onnx(
    model: Any, shape: dict[str, Sequence[int]] | None = None, dtype: str = "float32"
) -> tuple[tvm.IRModule, dict[str, Any]]:
    """Import an ONNX model.

    Parameters
    ----------
    model : onnx.ModelProto, str or os.PathLike
    shape : dict of str to sequence of int, optional
        Shape of each input, in order; needed if the model's own are symbolic.
    dtype : str
        Of the inputs in ``shape``.

    Returns
    -------
    mod, params
        As :func:`from_pytorch`.
    """
    import numpy as np

    examples = None
    if shape is not None:
        examples = tuple(np.zeros(tuple(dims), dtype) for dims in shape.values())
    return import_model(model, examples).mod, {}


def _spec(info: Any, default_dtype: str) -> TensorSpec:
    is_pair = isinstance(info, tuple | list) and len(info) == 2 and isinstance(info[0], str)
    if not is_pair or not isinstance(info[1], tuple | list):
        raise ValueError(
            f"input_infos: got {info!r}, expected (name, shape) or (name, (shape, dtype))"
        )
    name, shape = info
    dtype = default_dtype
    if len(shape) == 2 and isinstance(shape[1], str):
        shape, dtype = shape
    return TensorSpec(name, tuple(int(d) for d in shape), dtype)


@mutator
class _ParameterNamer(PyExprMutator):
    def __init__(self, names: Sequence[str]) -> None:
        super().__init__()
        self._names = names

    def visit_function_(self, op: relax.Function) -> relax.Function:
        renamed = [relax.Var(n, p.ty) for n, p in zip(self._names, op.params, strict=True)]
        for old, new in zip(op.params, renamed, strict=True):
            self.set_var_remap(old, new)
        body = self.visit_with_new_scope(op.body)
        return relax.Function(renamed, body, op.ret_ty, op.is_pure, op.attrs)


def _rename_inputs(mod: tvm.IRModule, names: Sequence[str]) -> tvm.IRModule:
    mod = mod.clone()
    mod.update_func(mod.get_global_var("main"), _ParameterNamer(names).visit_expr(mod["main"]))
    return mod
