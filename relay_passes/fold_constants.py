"""FoldConstants: what depends on constants only becomes a constant.

Preconditions: parameters are bound. Reshaped and transposed constants, the only ones that most
imported models have, are folded in numpy; Relax's FoldConstant, which legalises every operator of
the function to look for work, runs only where something else is left to fold.
"""

from __future__ import annotations

import numpy as np
import tvm
from tvm import relax
from tvm.ir import Call, Expr, Var

from .dataflow import (
    bindings_of,
    constant,
    map_functions,
    op_name,
    rebuild,
    relax_functions,
    static_shape,
)


def _view(call: Call, out: Var, source: np.ndarray) -> np.ndarray | None:
    """``call`` applied to the value of its first argument, if it only moves elements."""
    name, shape = op_name(call), static_shape(out)
    if shape is None:
        return None
    if name in ("relax.reshape", "relax.squeeze", "relax.expand_dims", "relax.flatten"):
        return source.reshape(shape)
    if name == "relax.permute_dims":
        axes = None if call.attrs.axes is None else [int(a) for a in call.attrs.axes]
        return np.transpose(source, axes)
    return None


def _fold_views(func: relax.Function) -> relax.Function:
    values: dict[Expr, np.ndarray] = {}
    blocks = []
    for block in bindings_of(func):
        for i, binding in enumerate(block):
            call = binding.value
            if not op_name(call) or not call.args:
                continue
            source = values.get(call.args[0])
            source = constant(call.args[0]) if source is None else source
            folded = _view(call, binding.var, source) if source is not None else None
            if folded is not None:
                values[binding.var] = folded
                value = relax.const(np.ascontiguousarray(folded))
                block[i] = relax.VarBinding(binding.var, value)
        blocks.append(block)
    return rebuild(func, blocks)


def _has_constant_call(func: relax.Function) -> bool:
    """Whether some operator has constant tensors for all its tensors."""
    for block in bindings_of(func):
        for binding in block:
            if not op_name(binding.value):
                continue
            args = binding.value.args
            tensors = [a for a in args if isinstance(a.ty, relax.TensorType)]
            nested = any(isinstance(a, Var | relax.Tuple) for a in args)
            if tensors and not nested and all(constant(a) is not None for a in tensors):
                return True
    return False


@tvm.transform.module_pass(opt_level=0, name="FoldConstants")
class FoldConstants:
    """Constant expressions -> constants; bindings of constants are propagated to their users."""

    def transform_module(self, mod: tvm.IRModule, _ctx: tvm.transform.PassContext) -> tvm.IRModule:
        mod = relax.transform.CanonicalizeBindings()(map_functions(mod, _fold_views))
        if any(_has_constant_call(func) for _, func in relax_functions(mod)):
            mod = relax.transform.FoldConstant()(mod)
            mod = relax.transform.CanonicalizeBindings()(mod)
        return relax.transform.DeadCodeElimination()(mod)
