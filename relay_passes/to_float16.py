"""ToFloat16: a float32 module -> the same in float16.

Preconditions: parameters are bound and no operator is a PrimFunc yet; run before all other passes.
TVM's importer for torch knows float32 convolutions only, so half-precision models are imported in
float32, where their values are exact, and brought back here.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import tvm
from tvm import relax
from tvm.ir import Call, Expr, GenericConst
from tvm.relax.expr_functor import PyExprMutator, mutator

from .dataflow import constant, op_name, relax_functions

SINGLE, HALF = "float32", "float16"


def halved_type(kind: Any) -> Any:
    """The type with float16 in place of float32."""
    if isinstance(kind, relax.TensorType) and str(kind.dtype) == SINGLE:
        return relax.TensorType(kind.shape, HALF)
    if isinstance(kind, relax.TupleType):
        return relax.TupleType([halved_type(field) for field in kind.fields])
    return kind


def _halved_attrs(attrs: Any) -> Any:
    """Attributes that ask for float32 results ask for float16."""
    if attrs is None:
        return None
    info = type(attrs).__tvm_ffi_type_info__
    values = {field.name: getattr(attrs, field.name) for field in info.fields}
    typed = {n for n, v in values.items() if n in ("dtype", "out_dtype") and str(v) == SINGLE}
    if not typed:
        return attrs
    return tvm.ir.make_node(info.type_key, **{**values, **dict.fromkeys(typed, HALF)})


@mutator
class _Halver(PyExprMutator):
    def visit_generic_const_(self, expr: GenericConst) -> Expr:
        value = constant(expr)
        if value is None or str(value.dtype) != SINGLE:
            return expr
        limit = float(np.finfo(HALF).max)
        if np.isfinite(value).all() and np.abs(value).max(initial=0.0) > limit:
            raise ValueError(
                f"a constant of {np.abs(value).max():g} exceeds float16's largest value {limit:g};"
                " compile the model in float32"
            )
        return relax.const(value.astype(HALF))

    def visit_call_(self, call: Call) -> Expr:
        if op_name(call) in ("relax.call_tir", "relax.call_tir_inplace"):
            raise ValueError(
                f"the call {call} is compiled for its types already; convert the module to float16"
                " before operators are lowered"
            )
        args = [self.visit_expr(argument) for argument in call.args]
        attrs = _halved_attrs(call.attrs)
        return self.builder_.normalize(Call(call.op, args, attrs, call.ty_args))

    def function(self, func: relax.Function) -> relax.Function:
        """``func`` in float16, its parameters and result included."""
        params = [relax.Var(str(p.name), halved_type(p.ty)) for p in func.params]
        for old, new in zip(func.params, params, strict=True):
            self.set_var_remap(old, new)
        body = self.visit_with_new_scope(func.body)
        return relax.Function(params, body, halved_type(func.ret_ty), func.is_pure, func.attrs)


@tvm.transform.module_pass(opt_level=0, name="ToFloat16")
class ToFloat16:
    """Parameters, constants, operators and results of float32 become float16."""

    def transform_module(self, mod: tvm.IRModule, _ctx: tvm.transform.PassContext) -> tvm.IRModule:
        result = mod.clone()
        for gv, func in relax_functions(mod):
            result.update_func(gv, _Halver(mod).function(func))
        return result
