"""LowerMatmul: matmul of a few rows with a constant matrix -> a packed, vectorised PrimFunc.

Preconditions: parameters are bound; put the pass before FoldConstant, so that the transposed
weight of a linear layer is packed straight from the original. Matrices whose left side is not a
static float ``[m, k]`` of the same type stay with TVM.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import tvm
from tvm import relax
from tvm.ir import Expr

from topi_kernels.matvec import MatvecConfig, pack_columns
from topi_kernels.plane_operators import matvec
from topi_kernels.plane_ops import PlaneTarget

from .dataflow import (
    FLOATS,
    Uses,
    bindings_of,
    constant,
    op_name,
    rebuild,
    relax_functions,
    static_shape,
)


def _matrix(uses: Uses, expr: Expr) -> np.ndarray | None:
    """A constant float ``[k, n]``, also if it is the transpose of a constant."""
    value = constant(expr)
    if value is None:
        call = uses.definition(expr)
        if op_name(call) != "relax.permute_dims":
            return None
        axes = None if call.attrs.axes is None else [int(a) % 2 for a in call.attrs.axes]
        source = constant(call.args[0])
        if source is None or source.ndim != 2 or axes not in (None, [1, 0]):
            return None
        value = source.T
    return value if value.ndim == 2 and str(value.dtype) in FLOATS else None


@tvm.transform.module_pass(opt_level=0, name="LowerMatmul")
class LowerMatmul:
    """``matmul(x[m, k], constant[k, n])`` -> ``call_tir(matvec, x, packed)``.

    Parameters
    ----------
    target : PlaneTarget
    config : MatvecConfig, optional
    """

    def __init__(self, target: PlaneTarget, config: MatvecConfig | None = None) -> None:
        self.target = target
        self.config = config or MatvecConfig()

    def transform_module(self, mod: tvm.IRModule, _ctx: tvm.transform.PassContext) -> tvm.IRModule:
        builder = relax.BlockBuilder(mod)
        for gv, func in relax_functions(mod):
            builder.update_func(gv, self._transform(func, builder))
        return relax.transform.DeadCodeElimination()(builder.get())

    def _transform(self, func: relax.Function, builder: relax.BlockBuilder) -> relax.Function:
        uses = Uses(func)
        blocks = []
        for block in bindings_of(func):
            for i, binding in enumerate(block):
                call = binding.value
                if op_name(call) != "relax.matmul":
                    continue
                shape, matrix = static_shape(call.args[0], 2), _matrix(uses, call.args[1])
                dtypes = {str(call.args[0].ty.dtype), str(binding.var.ty.dtype)}
                if shape is None or matrix is None or dtypes != {str(matrix.dtype)}:
                    continue
                k, n = matrix.shape
                target = replace(self.target, dtype=str(matrix.dtype))
                primfunc = matvec(shape[0], k, n, target, self.config)
                gv = builder.add_func(primfunc.without_attr("global_symbol"), "matvec")
                packed = pack_columns(matrix, self.config.vectors * self.target.lanes)
                value = relax.call_tir(
                    gv, [call.args[0], relax.const(packed)], out_ty=binding.var.ty
                )
                block[i] = relax.VarBinding(binding.var, builder.normalize(value))
            blocks.append(block)
        return rebuild(func, blocks)
