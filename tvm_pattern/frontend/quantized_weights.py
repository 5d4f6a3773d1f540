"""Convolutions whose weights arrive as integers: their structure, before they become floats."""

from __future__ import annotations

from typing import Any

import tvm
from tvm import relax
from tvm.relax.expr_functor import PyExprMutator, mutator

from relay_passes.dataflow import constant, op_name
from topi_kernels.structure import Structure


def covering_structures(mod: tvm.IRModule) -> dict[str, Structure]:
    """Structures of the 2-D convolutions of ``main`` with constant integer weights.

    Rounding made zeros of weights that were kept, so a kernel has the most frequent pattern that
    contains its weights.

    Returns
    -------
    dict of str to Structure
        By the name of the variable that a convolution is bound to.
    """
    values = {b.var: b.value for block in mod["main"].body.blocks for b in block.bindings}
    found = {}
    for var, value in values.items():
        if op_name(value) != "relax.nn.conv2d" or str(value.attrs.kernel_layout) != "OIHW":
            continue
        weight = values.get(value.args[1])
        if weight is None or op_name(weight) != "relax.dequantize":
            continue
        integers = constant(weight.args[0])
        if integers is not None and _is_symmetric(weight):
            found[str(var.name)] = Structure.by_covering(integers)
    return found


def _is_symmetric(weight: relax.Call) -> bool:
    """Whether zeros stand for zero."""
    zero_point = constant(weight.args[2])
    return zero_point is not None and not zero_point.any()


@mutator
class _Lifter(PyExprMutator):
    """Constants that are dequantised become variables."""

    def __init__(self, mod: tvm.IRModule) -> None:
        super().__init__(mod)
        self.lifted: dict[relax.Var, Any] = {}

    def visit_call_(self, op: relax.Call) -> relax.Expr:
        call = self.visit_expr_post_order(op)
        if op_name(call) != "relax.dequantize" or constant(call.args[0]) is None:
            return call
        var = relax.Var(f"integers_{len(self.lifted)}", call.args[0].ty)
        self.lifted[var] = call.args[0].value
        return relax.Call(call.op, [var, *call.args[1:]], call.attrs, call.ty_args)


def fold_constants(mod: tvm.IRModule) -> tvm.IRModule:
    """Relax's FoldConstant, which leaves integer weights integers."""
    lifter = _Lifter(mod)
    main = lifter.visit_expr(mod["main"])
    if not lifter.lifted:
        return relax.transform.FoldConstant()(mod)
    params = [*main.params, *lifter.lifted]
    lifted = mod.clone()
    lifted.update_func(
        lifted.get_global_var("main"),
        relax.Function(params, main.body, main.ret_ty, main.is_pure, main.attrs),
    )
    folded = relax.transform.FoldConstant()(lifted)
    values = {var.name: value for var, value in lifter.lifted.items()}
    return relax.transform.BindParams("main", values)(folded)
