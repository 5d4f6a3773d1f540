"""RecognizeActivations: the many spellings of an activation -> one ``activation`` marker.

Preconditions: constants are folded (FoldConstant), float images of static shape ``[n, c, h, w]``;
other tensors are left alone. Run before FuseEpilogue; PlaneLayout turns markers that end up outside
an island back into Relax operators.

======================================================== ==========================
found in                                                 becomes
======================================================== ==========================
nn.relu, nn.relu6, nn.silu, sigmoid, tanh                relu, relu6, silu, sigmoid, tanh
nn.leakyrelu, nn.prelu with one slope                    leaky_relu, its slope as a bound
GELU, Mish, softplus, ELU, however they are spelled      gelu, gelu_tanh, mish, softplus, elu
where(x > 0, x, slope * x)                               nn.prelu
clip, maximum / minimum with a constant (ONNX: call_tir) clip; (0, 6) relu6; (0, inf) relu
x * sigmoid(x)                                           silu
clip(a * x + b, lo, hi) * c that equals it               hardsigmoid
x times such a clip                                      hardswish
======================================================== ==========================
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import tvm
import tvm_ffi
from tvm import relax, topi
from tvm.ir import Call, Expr, GlobalVar, Var

from .dataflow import (
    Uses,
    bindings_of,
    channel_constant,
    is_float_image,
    op_name,
    rebuild,
    relax_functions,
    scalar_constant,
    shape_of,
    static_shape,
)
from .markers import Marker, parse
from .smooth_activations import smooth_activation

INF = math.inf
# Constants of exported models are float32 roundings of 1/6 and the like.
TOLERANCE = 1e-6
_RENAMED = {
    "relax.nn.silu": "silu",
    "relax.sigmoid": "sigmoid",
    "relax.tanh": "tanh",
    "relax.nn.gelu": "gelu",
    "relax.nn.gelu_tanh": "gelu_tanh",
}
_LIMITS = {"relax.nn.relu": (0.0, INF), "relax.nn.relu6": (0.0, 6.0)}


@dataclass(frozen=True)
class _Gate:
    """``clip(slope * x + offset, low, high)``."""

    slope: float = 1.0
    offset: float = 0.0
    low: float = -INF
    high: float = INF

    def scaled(self, factor: float) -> _Gate | None:
        if factor <= 0:
            return None
        return _Gate(*(v * factor for v in (self.slope, self.offset, self.low, self.high)))

    def shifted(self, term: float) -> _Gate:
        return _Gate(self.slope, self.offset + term, self.low + term, self.high + term)

    def clipped(self, low: float, high: float) -> _Gate:
        def inside(v: float) -> float:
            return min(max(v, low), high)

        return _Gate(self.slope, self.offset, inside(self.low), inside(self.high))

    @property
    def is_hardsigmoid(self) -> bool:
        got = (self.slope, self.offset, self.low, self.high)
        want = (1 / 6, 0.5, 0.0, 1.0)
        return all(math.isclose(g, w, abs_tol=TOLERANCE) for g, w in zip(got, want, strict=True))


def activation_marker(x: Expr, activation: str, bounds: tuple[float, float] = (0.0, 0.0)) -> Marker:
    """The marker of ``activation(x)``; clips with a name of their own get it."""
    if activation in ("clip", "relu", "relu6"):
        activation = {(0.0, 6.0): "relu6", (0.0, INF): "relu"}.get(bounds, "clip")
    return Marker("activation", (x,), {"activation": activation, "bounds": list(bounds)})


class _Recognizer:
    def __init__(self, mod: tvm.IRModule, func: relax.Function) -> None:
        self.mod = mod
        self.uses = Uses(func)
        self.value = self.uses.value

    def run(self, func: relax.Function) -> relax.Function:
        blocks = []
        for block in bindings_of(func):
            for i, binding in enumerate(block):
                if not is_float_image(binding.var):
                    continue
                marker = self.recognize(binding.var)
                value = self.prelu(binding.var) if marker is None else marker.call(binding.var.ty)
                if value is not None:
                    self.value[binding.var] = value
                    block[i] = relax.VarBinding(binding.var, value)
            blocks.append(block)
        return rebuild(func, blocks)

    def recognize(self, var: Var) -> Marker | None:
        """Marker for the value of ``var``, or None; the value is not a marker yet."""
        gate = self.hardsigmoid(var)
        if gate is not None:
            return gate
        clip = self.clip_of(self.value[var])
        if clip is not None:
            return self.merge_clips(*clip)
        name = op_name(self.value[var])
        if name in _RENAMED:
            return activation_marker(self.value[var].args[0], _RENAMED[name])
        if name == "relax.nn.leakyrelu":
            slope = float(self.value[var].attrs.alpha)
            return activation_marker(self.value[var].args[0], "leaky_relu", (slope, 0.0))
        leaking = self.leaking(var)
        single = None if leaking is None else scalar_constant(leaking[1])
        if leaking is not None and single is not None:
            return activation_marker(leaking[0], "leaky_relu", (single, 0.0))
        smooth = smooth_activation(self.uses, var)
        return self.product(var) if smooth is None else activation_marker(*smooth)

    def leaking(self, var: Var) -> tuple[Expr, Expr] | None:
        """``(x, slope)`` of a PReLU, also as ``where(x > 0, x, slope * x)``."""
        value = self.value[var]
        if op_name(value) == "relax.nn.prelu" and int(value.attrs.axis) % 4 == 1:
            return value.args[0], value.args[1]
        if op_name(value) == "relax.nn.prelu":
            return (value.args[0], value.args[1]) if shape_of(value.args[1]) == (1,) else None
        if op_name(value) != "relax.where":
            return None
        x = value.args[1]
        condition, scaled = (self.uses.definition(value.args[i]) for i in (0, 2))
        if op_name(condition) != "relax.greater" or op_name(scaled) != "relax.multiply":
            return None
        if not condition.args[0].same_as(x) or scalar_constant(condition.args[1]) != 0:
            return None
        for slope, other in (tuple(scaled.args), tuple(scaled.args)[::-1]):
            if other.same_as(x) and channel_constant(slope, shape_of(var)[1]) is not None:
                return x, slope
        return None

    def prelu(self, var: Var) -> Expr | None:
        """A PReLU with a slope per channel, as one operator."""
        leaking = self.leaking(var) if op_name(self.value[var]) == "relax.where" else None
        if leaking is None:
            return None
        slope = channel_constant(leaking[1], shape_of(var)[1])
        return relax.BlockBuilder().normalize(
            relax.op.nn.prelu(leaking[0], relax.const(slope), axis=1)
        )

    def clip_of(self, value: Expr) -> tuple[Expr, float, float] | None:
        """``(x, low, high)`` if ``value`` limits ``x``."""
        marker = parse(value)
        if marker is not None and marker.params.get("activation") in ("clip", "relu", "relu6"):
            return marker.tensors[0], *marker.params["bounds"]
        name = op_name(value)
        if name in _LIMITS:
            return value.args[0], *_LIMITS[name]
        if name == "relax.clip":
            return value.args[0], float(value.args[1].value), float(value.args[2].value)
        if name == "relax.call_tir":
            return self.clip_of_call_tir(value)
        if name not in ("relax.maximum", "relax.minimum"):
            return None
        for x, bound in ((value.args[0], value.args[1]), (value.args[1], value.args[0])):
            limit = scalar_constant(bound)
            if limit is not None:
                return (x, limit, INF) if name == "relax.maximum" else (x, -INF, limit)
        return None

    def clip_of_call_tir(self, call: Call) -> tuple[Expr, float, float] | None:
        """As ``clip_of`` for the maximum / minimum PrimFuncs that the ONNX importer emits."""
        gv, args = call.args[0], list(call.args[1])
        if len(args) != 2 or not isinstance(gv, GlobalVar):
            return None
        limit, shape = scalar_constant(args[1]), static_shape(args[0])
        if limit is None or shape is None:
            return None
        func = self.mod[gv]
        for operator, low, high in ((topi.maximum, limit, INF), (topi.minimum, -INF, limit)):
            if tvm_ffi.structural_equal(
                _anonymous(func), _anonymous(_reference(operator, shape, shape_of(args[1])))
            ):
                return args[0], low, high
        return None

    def merge_clips(self, x: Expr, low: float, high: float) -> Marker:
        """Fold a clip of a clip into one, if nothing else uses the inner one."""
        inner = self.clip_of(self.uses.definition(x)) if isinstance(x, Var) else None
        if inner is None or self.uses.sole_user(x) is None:
            return activation_marker(x, "clip", (low, high))
        source, inner_low, inner_high = inner
        merged = _Gate(low=inner_low, high=inner_high).clipped(low, high)
        return activation_marker(source, "clip", (merged.low, merged.high))

    def product(self, var: Var) -> Marker | None:
        """silu or hardswish whose last operator is ``var``."""
        scale, value = self.scale_of(self.value[var])
        product = self.uses.definition(value) if scale is not None else self.value[var]
        if op_name(product) != "relax.multiply":
            return None
        for x, factor in (tuple(product.args), tuple(product.args)[::-1]):
            if not isinstance(x, Var) or not is_float_image(x):
                continue
            inner = parse(self.uses.definition(factor))
            named = inner.params.get("activation") if inner and inner.tensors == (x,) else None
            if named == "sigmoid" and scale is None:
                return activation_marker(x, "silu")
            if named == "hardsigmoid" and scale is None:
                return activation_marker(x, "hardswish")
            gate = self.gate(factor, x)
            gate = gate.scaled(scale or 1.0) if gate is not None else None
            if gate is not None and gate.is_hardsigmoid:
                return activation_marker(x, "hardswish")
        return None

    def scale_of(self, value: Any) -> tuple[float | None, Any]:
        """``(factor, x)`` if ``value`` is ``x`` times or over a constant."""
        name = op_name(value)
        if name == "relax.divide":
            divisor = scalar_constant(value.args[1])
            return (1 / divisor, value.args[0]) if divisor else (None, None)
        if name == "relax.multiply":
            for x, factor in (tuple(value.args), tuple(value.args)[::-1]):
                if scalar_constant(factor) is not None:
                    return scalar_constant(factor), x
        return None, None

    def gate(self, expr: Expr, base: Expr) -> _Gate | None:
        """``expr`` as a function of ``base``, or None if it is not of the gate's form."""
        if expr.same_as(base):
            return _Gate()
        value = self.uses.definition(expr)
        if value is None:
            return None
        clip = self.clip_of(value)
        if clip is not None:
            gate = self.gate(clip[0], base)
            return gate and gate.clipped(*clip[1:])
        factor, x = self.scale_of(value)
        if factor is not None:
            gate = self.gate(x, base)
            return gate and gate.scaled(factor)
        if op_name(value) == "relax.add":
            for x, other in (tuple(value.args), tuple(value.args)[::-1]):
                term = scalar_constant(other)
                if term is not None:
                    gate = self.gate(x, base)
                    return gate and gate.shifted(term)
        return None

    def hardsigmoid(self, var: Var) -> Marker | None:
        """A chain of scalar operators ending in ``var`` that equals hardsigmoid of its start."""
        base = var
        while True:
            value = self.uses.definition(base)
            tensors = [a for a in value.args if isinstance(a, Var)] if _is_call(value) else []
            if len(tensors) != 1 or not is_float_image(tensors[0]):
                return None
            base = tensors[0]
            gate = self.gate(var, base)
            if gate is None:
                return None
            if gate.is_hardsigmoid:
                return activation_marker(base, "hardsigmoid")


def _is_call(value: Any) -> bool:
    return bool(op_name(value))


def _anonymous(func: tvm.tirx.PrimFunc) -> tvm.tirx.PrimFunc:
    return func.without_attr("global_symbol") if "global_symbol" in dict(func.attrs) else func


def _reference(
    operator: object, shape: tuple[int, ...], bound_shape: tuple[int, ...]
) -> tvm.tirx.PrimFunc:
    """The PrimFunc that Relax makes of ``operator(x[shape], bound[bound_shape])``."""
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType(shape, "float32"))
    bound = relax.Var("bound", relax.TensorType(bound_shape, "float32"))
    with builder.function("main", [x, bound]):
        builder.emit_func_output(builder.emit(builder.call_te(operator, x, bound)))
    (func,) = [f for f in builder.get().functions.values() if isinstance(f, tvm.tirx.PrimFunc)]
    return func


@tvm.transform.module_pass(opt_level=0, name="RecognizeActivations")
class RecognizeActivations:
    """Spellings of activations -> ``activation`` markers; what becomes unused is removed."""

    def transform_module(self, mod: tvm.IRModule, _ctx: tvm.transform.PassContext) -> tvm.IRModule:
        result = mod.clone()
        for gv, func in relax_functions(mod):
            result.update_func(gv, _Recognizer(mod, func).run(func))
        return relax.transform.DeadCodeElimination()(result)
