"""Sums and products of images, activations, and copies in another order: ``plane_elementwise``."""

from __future__ import annotations

from tvm import relax, tirx
from tvm.ir import Expr

from topi_kernels.layout import PlaneLayout

from ..dataflow import is_float_image, op_name, static_shape
from ..markers import Marker, parse
from .operator import Islands, Order, PlaneCall, PlaneOp, on_planes, placed

NAME = "plane_elementwise"
_NO_ACTIVATION = {"activation": "none", "bounds": [0.0, 0.0]}
_OPERATORS = {"relax.add": "add", "relax.multiply": "multiply"}


def recognize(value: Expr, _out: Expr) -> PlaneOp | None:
    """An activation marker, or a sum or product of images of one shape."""
    marker = parse(value)
    if marker is not None and marker.op == "activation":
        params = {**marker.params, "operator": "add"}
        return PlaneOp(marker.tensors, placed(NAME, params), order=Order.SAME)
    if op_name(value) not in _OPERATORS:
        return None
    images = tuple(value.args)
    if len({static_shape(image) for image in images}) > 1:
        return None
    if not all(is_float_image(image) for image in images):
        return None
    params = {**_NO_ACTIVATION, "operator": _OPERATORS[op_name(value)]}
    return PlaneOp(images, placed(NAME, params), order=Order.SAME)


def change_of_order(planes: Expr, before: PlaneLayout, after: PlaneLayout) -> Marker:
    """A copy in another order."""
    return placed(NAME, {**_NO_ACTIVATION, "operator": "add"})([planes], [before], after)


def outside(marker: Marker) -> Expr | None:
    """The Relax operators of an activation marker that no island took."""
    if marker.op != "activation":
        return None
    (x,), params = marker.tensors, marker.params
    return spelled(x, params["activation"], tuple(params["bounds"]), str(x.ty.dtype))


def spelled(x: Expr, name: str, bounds: tuple[float, float], dtype: str) -> Expr:
    """An activation of a value of ``dtype`` as Relax operators."""
    low, high = bounds
    three, six = (relax.const(value, dtype) for value in (3.0, 6.0))
    gate = relax.op.clip(relax.op.add(x, three), 0.0, 6.0)
    spellings = {
        "relu": lambda: relax.op.nn.relu(x),
        "relu6": lambda: relax.op.clip(x, 0.0, 6.0),
        "clip": lambda: relax.op.clip(x, low, high),
        "silu": lambda: relax.op.nn.silu(x),
        "sigmoid": lambda: relax.op.sigmoid(x),
        "affine": lambda: _affine(x, low, high, dtype),
        "tanh": lambda: relax.op.tanh(x),
        "gelu": lambda: relax.op.nn.gelu(x),
        "gelu_tanh": lambda: relax.op.nn.gelu_tanh(x),
        "mish": lambda: relax.op.multiply(x, relax.op.tanh(_softplus(x, dtype))),
        "softplus": lambda: _softplus(x, dtype),
        "elu": lambda: _elu(x, low, dtype),
        "leaky_relu": lambda: relax.op.nn.leakyrelu(x, low),
        "hardsigmoid": lambda: relax.op.divide(gate, six),
        "hardswish": lambda: relax.op.divide(relax.op.multiply(x, gate), six),
    }
    return spellings[name]()


def _affine(x: Expr, factor: float, term: float, dtype: str) -> Expr:
    value = x if factor == 1 else relax.op.multiply(x, relax.const(factor, dtype))
    return value if term == 0 and factor != 1 else relax.op.add(value, relax.const(term, dtype))


def _softplus(x: Expr, dtype: str) -> Expr:
    """``max(x, 0) + log(1 + exp(-|x|))``, which overflows nowhere."""
    power = relax.op.exp(relax.op.negative(relax.op.abs(x)))
    log = relax.op.log(relax.op.add(power, relax.const(1.0, dtype)))
    return relax.op.add(relax.op.nn.relu(x), log)


def _elu(x: Expr, alpha: float, dtype: str) -> Expr:
    negative = relax.op.subtract(relax.op.exp(x), relax.const(1.0, dtype))
    scaled = relax.op.multiply(negative, relax.const(alpha, dtype))
    return relax.op.where(relax.op.greater(x, relax.const(0.0, dtype)), x, scaled)


def _make(call: PlaneCall) -> tirx.PrimFunc:
    params = call.params
    what = params["operator"], params["activation"], tuple(params["bounds"])
    return call.operators.elementwise(
        *call.dims, call.in_layouts, call.out_layout, call.target, *what
    )


def register(islands: Islands) -> None:
    """Add the operator."""
    islands.add(on_planes(NAME, _make, recognize=recognize, outside=outside))
