"""VectorRows: activations, layer norms and softmax that are no planes -> PrimFuncs on rows.

Preconditions: Schedule has run, so that what is left is outside of islands; processors only. Rows
are the last axis of a static float tensor. A constant that is added to each row just before an
activation goes into it.

================================================= ==============================
GELU, Mish, softplus, ELU in any spelling,        ``row_<activation>``
sigmoid, tanh
nn.layer_norm over the last axis                  ``row_layer_norm``
nn.softmax over the last axis                     ``row_softmax``
================================================= ==============================
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable

import tvm
from tvm import relax, tirx
from tvm.ir import Call, Expr, GlobalVar, Var

from topi_kernels import row_ops
from topi_kernels.backend import Backend
from topi_kernels.plane_ops import PlaneTarget

from .dataflow import FLOATS, Uses, bindings_of, op_name, rebuild, relax_functions, static_shape
from .smooth_activations import smooth_activation

_PLAIN = {"relax.sigmoid": "sigmoid", "relax.tanh": "tanh"}
# What is smaller is not worth a call.
LEAST_ELEMENTS = 64


class _Rows:
    """The bindings of one function."""

    def __init__(self, func: relax.Function, builder: relax.BlockBuilder, backend: Backend) -> None:
        self.uses = Uses(func)
        self.builder = builder
        self.backend = backend
        self.functions: dict[Hashable, GlobalVar] = {}

    def lowered(self, var: Var) -> Expr | None:
        """The call for the value of ``var``, or None."""
        shape = static_shape(var)
        if shape is None or not shape or str(var.ty.dtype) not in FLOATS:
            return None
        if math.prod(shape) < LEAST_ELEMENTS:
            return None
        value = self.uses.definition(var)
        if op_name(value) == "relax.nn.layer_norm":
            return self.layer_norm(var, value)
        if op_name(value) == "relax.nn.softmax":
            return self.softmax(var, value)
        if op_name(value) in _PLAIN:
            return self.activation(var, value.args[0], _PLAIN[op_name(value)], (0.0, 0.0))
        found = smooth_activation(self.uses, var)
        return None if found is None else self.activation(var, *found)

    def activation(self, var: Var, x: Expr, name: str, bounds: tuple[float, float]) -> Expr:
        """``name(x)``, or of what a constant is added to, with the constant."""
        biased = self.biased(x)
        x, constants = (x, []) if biased is None else (biased[0], [biased[1]])
        return self.call(
            ("activation", name, bounds, bool(constants)),
            lambda rows, n, target: row_ops.row_activation(
                rows, n, target, name, bounds, bias=bool(constants)
            ),
            [x, *constants],
            var,
        )

    def biased(self, x: Expr) -> tuple[Expr, Expr] | None:
        """``(y, constant)`` of an ``x`` that is the sum of them and used nowhere else."""
        value = self.uses.definition(x)
        if op_name(value) != "relax.add" or self.uses.sole_user(x) is None:
            return None
        for y, term in (tuple(value.args), tuple(value.args)[::-1]):
            row = static_shape(term)
            if isinstance(term, Var) or static_shape(y) != static_shape(x) or not row:
                continue
            if math.prod(row) == row[-1] == (static_shape(x) or (0,))[-1]:
                return y, relax.op.reshape(term, (row[-1],)) if len(row) > 1 else term
        return None

    def layer_norm(self, var: Var, value: Call) -> Expr | None:
        attrs, shape = value.attrs, static_shape(var) or ()
        axes = [int(axis) % len(shape) for axis in attrs.axes]
        if axes != [len(shape) - 1] or not (attrs.center and attrs.scale):
            return None
        epsilon = float(attrs.epsilon)
        return self.call(
            ("layer_norm", epsilon),
            lambda rows, n, target: row_ops.layer_norm(rows, n, target, epsilon),
            list(value.args),
            var,
        )

    def softmax(self, var: Var, value: Call) -> Expr | None:
        shape = static_shape(var) or ()
        if int(value.attrs.axis) % len(shape) != len(shape) - 1:
            return None
        return self.call(("softmax",), row_ops.softmax, list(value.args), var)

    def call(
        self,
        key: Hashable,
        make: Callable[[int, int, PlaneTarget], tirx.PrimFunc],
        tensors: list[Expr],
        out: Var,
    ) -> Expr:
        """The PrimFunc called on the rows of its first tensor."""
        shape, dtype = static_shape(out) or (), str(out.ty.dtype)
        rows, n = math.prod(shape[:-1]), shape[-1]
        where = (key, rows, n, dtype)
        if where not in self.functions:
            primfunc = make(rows, n, self.backend.planes(dtype))
            name = str(dict(primfunc.attrs)["global_symbol"])
            anonymous = primfunc.without_attr("global_symbol")
            self.functions[where] = self.builder.add_func(anonymous, name)
        gv = self.functions[where]
        if shape == (rows, n):
            return relax.call_tir(gv, tensors, out_ty=out.ty)
        flat = [relax.op.reshape(tensors[0], (rows, n)), *tensors[1:]]
        ty = relax.TensorType((rows, n), dtype)
        return relax.op.reshape(relax.call_tir(gv, flat, out_ty=ty), shape)


@tvm.transform.module_pass(opt_level=0, name="VectorRows")
class VectorRows:
    """Operators on the last axis -> ``call_tir`` of PrimFuncs that walk it in vectors.

    Parameters
    ----------
    backend : Backend
        A processor, and its threads.
    """

    def __init__(self, backend: Backend) -> None:
        self.backend = backend

    def transform_module(self, mod: tvm.IRModule, _ctx: tvm.transform.PassContext) -> tvm.IRModule:
        builder = relax.BlockBuilder(mod)
        for gv, func in relax_functions(mod):
            rows = _Rows(func, builder, self.backend)
            blocks = []
            for block in bindings_of(func):
                for i, binding in enumerate(block):
                    if isinstance(binding, relax.VarBinding):
                        value = rows.lowered(binding.var)
                        if value is not None:
                            block[i] = relax.VarBinding(binding.var, value)
                blocks.append(block)
            builder.update_func(gv, rebuild(func, blocks))
        return relax.transform.DeadCodeElimination()(builder.get())
