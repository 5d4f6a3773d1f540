"""KeepNaN: maxima and minima that TVM emits -> the same with NaN where either operand is NaN.

Preconditions: operators are PrimFuncs (LegalizeOps has run) and scheduled; put the pass last, since
rules that look for a reduction know it by its ``max``. The PrimFuncs of ``topi_kernels`` hold no
such node on floats.

TVM compiles ``max(a, b)`` to ``a > b ? a : b``, so a NaN in ``a`` is lost: relu, clip, max pooling
and every other operator made of it answers NaN with a plausible number. Its reductions and paddings
start at the most negative finite number, which hides -Inf; here they start at -Inf.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import tvm
import tvm_ffi
from tvm import s_tir, tirx
from tvm.ir import Call, Expr

_LARGEST = {name: float(np.finfo(name).max) for name in ("float16", "float32", "float64")}
_IF_THEN_ELSE = "prim.if_then_else"


def _is_float(expr: Expr) -> bool:
    return "float" in str(expr.ty.dtype)


def _keeps_nan(node: tirx.Max | tirx.Min) -> Expr:
    """``a > b ? a : (a <= inf ? b : a)``: b's NaN makes the first comparison false, a's both.

    Not by ``a == a``, which TVM simplifies to true.
    """
    if not _is_float(node):
        return node
    compare = tirx.GT if isinstance(node, tirx.Max) else tirx.LT
    bindings = []

    def named(value: Expr) -> Expr:
        if isinstance(value, tirx.Var | tirx.FloatImm):
            return value
        bindings.append((tirx.Var("v", value.ty), value))
        return bindings[-1][0]

    a, b = named(node.a), named(node.b)
    # Of a constant's and a variable's comparison the first is enough, if the variable comes second.
    if isinstance(b, tirx.FloatImm):
        a, b = b, a
    second = b if isinstance(a, tirx.FloatImm) else tirx.Select(a <= _infinity(a), b, a)
    result = tirx.Select(compare(a, b), a, second)
    for var, value in reversed(bindings):
        result = tirx.Let(var, value, result)
    return result


def _infinity(like: Expr) -> Expr:
    return tirx.const(math.inf, str(like.ty.dtype))


def _infinite(value: Any) -> Expr | None:
    """The infinity for which a largest or most negative finite number stands, or None."""
    if not isinstance(value, tirx.FloatImm):
        return None
    largest = _LARGEST.get(str(value.ty.dtype))
    if largest is None or abs(value.value) != largest:
        return None
    return tirx.FloatImm(str(value.ty.dtype), math.copysign(math.inf, value.value))


def _from_infinity(func: tirx.PrimFunc) -> tirx.PrimFunc:
    """Reductions by maximum or minimum, and what pads their inputs, start at an infinity."""
    found: list[s_tir.SBlock] = []

    def start(block: s_tir.SBlock) -> s_tir.SBlock:
        store = block.init
        limit = _infinite(store.value) if isinstance(store, tirx.BufferStore) else None
        if limit is None:
            return block
        found.append(block)
        init = tirx.BufferStore(store.buffer, limit, store.indices)
        return s_tir.SBlock(
            block.iter_vars,
            block.reads,
            block.writes,
            block.name_hint,
            block.body,
            init,
            block.alloc_buffers,
            block.match_buffers,
            block.annotations,
        )

    def padding(call: Call) -> Call:
        if str(getattr(call.op, "name", "")) != _IF_THEN_ELSE:
            return call
        condition, *branches = call.args
        limits = [_infinite(branch) for branch in branches]
        if limits == [None, None]:
            return call
        chosen = [b if limit is None else limit for b, limit in zip(branches, limits, strict=True)]
        return tirx.if_then_else(condition, *chosen)

    started = tvm_ffi.structural_map(func, (s_tir.SBlock, start))
    return tvm_ffi.structural_map(started, (Call, padding)) if found else func


def keep_nan(func: tirx.PrimFunc) -> tirx.PrimFunc:
    """The function with NaN kept by its maxima and minima of floats."""
    if not _has_extremum(func):
        return func
    func = _from_infinity(func)
    return tvm_ffi.structural_map(func, ((tirx.Max, tirx.Min), _keeps_nan))


def _has_extremum(func: tirx.PrimFunc) -> bool:
    found = []
    tvm_ffi.structural_walk(
        func, ((tirx.Max, tirx.Min), lambda node: found.append(node) if _is_float(node) else None)
    )
    return bool(found)


@tvm.transform.module_pass(opt_level=0, name="KeepNaN")
class KeepNaN:
    """Float maxima and minima in all PrimFuncs give NaN if either operand is NaN."""

    def transform_module(self, mod: tvm.IRModule, _ctx: tvm.transform.PassContext) -> tvm.IRModule:
        result = mod.clone()
        for gv, func in list(mod.functions_items()):
            if isinstance(func, tirx.PrimFunc):
                result.update_func(gv, keep_nan(func))
        return result
