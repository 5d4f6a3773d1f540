"""LowerMatmul: matmul of rows with a constant matrix -> a packed, vectorised PrimFunc.

Preconditions: parameters are bound; put the pass before FoldConstant, so that the transposed
weight of a linear layer is packed straight from the original. What is multiplied is a static float
tensor ``[..., k]`` of the same type, all but its last axis counted as rows; other products stay
with TVM. A pruned matrix gets a row in the
report, and is stored without what was removed where that is faster.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace

import numpy as np
import tvm
from tvm import relax
from tvm.ir import Call, Expr, GlobalVar, Var

from topi_kernels.matvec import MatvecConfig, pack_columns
from topi_kernels.plane_operators import dense_config, matvec
from topi_kernels.plane_ops import PlaneTarget
from topi_kernels.report import LayerRow
from topi_kernels.sparse_matvec import (
    MatvecChoice,
    choose,
    pack_matrix,
    packed_arrays,
    sparse_matvec,
)
from topi_kernels.structure import DENSE_DENSITY, Structure, density_of, determine

from .dataflow import (
    FLOATS,
    Uses,
    bindings_of,
    constant,
    constant_in_place,
    op_name,
    rebuild,
    relax_functions,
    shape_of,
    static_shape,
)
from .report import ReportBuilder

#: Operators that this pass looks at.
MATMUL = "relax.matmul"


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


def _rejection(call: Call, out: Var, matrix: np.ndarray) -> str:
    """Why a product with a constant matrix stays with TVM; empty if it does not."""
    shape = static_shape(call.args[0])
    if shape is None or len(shape) < 2:
        return f"its input has the shape {shape}; expected static [..., rows, k]"
    dtypes = {str(call.args[0].ty.dtype), str(out.ty.dtype)}
    if dtypes != {str(matrix.dtype)}:
        return f"dtypes {'/'.join(sorted(dtypes))} with a matrix of {matrix.dtype}"
    return ""


def _over_rows(gv: GlobalVar, x: Expr, arrays: Sequence[np.ndarray], out: Var) -> Expr:
    """The call of a PrimFunc of two axes for tensors of any number of them."""
    constants = [constant_in_place(array) for array in arrays]
    shape, result = shape_of(x), shape_of(out)
    if len(shape) == 2:
        return relax.call_tir(gv, [x, *constants], out_ty=out.ty)
    rows = math.prod(shape[:-1])
    flat = relax.op.reshape(x, (rows, shape[-1]))
    ty = relax.TensorType((rows, result[-1]), str(out.ty.dtype))
    return relax.op.reshape(relax.call_tir(gv, [flat, *constants], out_ty=ty), result)


@tvm.transform.module_pass(opt_level=0, name="LowerMatmul")
class LowerMatmul:
    """``matmul(x[..., k], constant[k, n])`` -> ``call_tir(matvec, x as rows, packed)``.

    Parameters
    ----------
    target : PlaneTarget
    config : MatvecConfig, optional
        Of dense products.
    report : ReportBuilder, optional
        Receives a row for every product with a pruned matrix.
    structures : mapping, optional
        What the pruner assigned, by the name of the variable that a product is bound to: ``[n, k,
        1, 1]``. The others are analysed.
    """

    def __init__(
        self,
        target: PlaneTarget,
        config: MatvecConfig | None = None,
        report: ReportBuilder | None = None,
        structures: Mapping[str, Structure] | None = None,
    ) -> None:
        self.target = target
        self.config = config
        self.report = report or ReportBuilder()
        self.structures = structures or {}

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
                if op_name(binding.value) != MATMUL:
                    continue
                matrix = _matrix(uses, binding.value.args[1])
                value = None if matrix is None else self._lowered(binding, matrix, builder)
                if value is not None:
                    block[i] = relax.VarBinding(binding.var, value)
            blocks.append(block)
        return rebuild(func, blocks)

    def _lowered(
        self, binding: relax.Binding, matrix: np.ndarray, builder: relax.BlockBuilder
    ) -> Expr | None:
        """The expression that computes a product; None where it stays with TVM."""
        call, target = binding.value, replace(self.target, dtype=str(matrix.dtype))
        reason = _rejection(call, binding.var, matrix)
        structure = self._structure(str(binding.var.name), matrix)
        if reason:
            if structure is not None:
                self._add_row(binding, structure, MatvecChoice(None, reason=reason), taken=False)
            return None
        rows = math.prod(shape_of(call.args[0])[:-1])
        choice = MatvecChoice(None)
        if structure is not None:
            choice = choose(structure, rows, target)
            self._add_row(binding, structure, choice)
        if structure is None or choice.config is None:
            k, n = matrix.shape
            config = self.config or dense_config(rows, target)
            primfunc = matvec(rows, k, n, target, config)
            arrays = [pack_columns(matrix, config.vectors * self.target.lanes)]
        else:
            packed = pack_matrix(matrix.T, structure, choice.config)
            primfunc = sparse_matvec(rows, packed, target, choice.config)
            arrays = packed_arrays(packed)
        name = str(primfunc.attrs["global_symbol"])
        gv = builder.add_func(primfunc.without_attr("global_symbol"), name)
        return _over_rows(gv, call.args[0], arrays, binding.var)

    def _structure(self, name: str, matrix: np.ndarray) -> Structure | None:
        """Structure ``[n, k, 1, 1]`` of a pruned matrix; None for any other."""
        assigned = self.structures.get(name)
        if not np.isfinite(matrix).all():
            return None
        if assigned is None and density_of(matrix) > DENSE_DENSITY:
            return None
        return determine(matrix.T[:, :, None, None], assigned)

    def _add_row(
        self,
        binding: relax.Binding,
        structure: Structure,
        choice: MatvecChoice,
        *,
        taken: bool = True,
    ) -> None:
        in_shape, out_shape = static_shape(binding.value.args[0]) or (), static_shape(binding.var)
        density = structure.kept_weights / structure.kept.size
        rows = int(np.prod(in_shape[:-1], dtype=np.int64))
        gflop = 2e-9 * rows * structure.kept.size
        self.report.add(
            LayerRow(
                layer=str(binding.var.name),
                op="linear",
                taken=taken,
                reason=choice.reason,
                in_shape=in_shape,
                out_shape=out_shape or (),
                sparsity=1.0 - density,
                group=0 if choice.config is None else choice.config.group,
                config={} if choice.config is None else asdict(choice.config),
                dense_equivalent_gflop=gflop,
                effective_gflop=gflop * (1.0 if choice.config is None else density),
                structure=structure.source,
                expected_gain=choice.gain,
                expected_cost=choice.cost,
            )
        )
