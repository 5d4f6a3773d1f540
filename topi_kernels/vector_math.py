"""Expressions on explicit vectors: constants, activations, exponential, strided loads."""

from __future__ import annotations

from typing import Any

from tvm.ir import Expr
from tvm.tirx.script import builder as T

LOG2_E = 1.4426950408889634
# ln 2 in two parts, so that n * LN2_HIGH is exact (Cody and Waite, 1980, chapter 6).
LN2_HIGH = 0.693359375
LN2_LOW = -2.12194440e-4
EXP_MAX = 88.0
EXP_MIN = -87.0
FLOAT32_MANTISSA_BITS = 23
FLOAT32_EXPONENT_BIAS = 127
# Taylor coefficients 1/k! for k = 7..0: on |r| <= ln 2 / 2 the remainder is below 1e-8.
EXP_COEFFICIENTS = (1 / 5040, 1 / 720, 1 / 120, 1 / 24, 1 / 6, 0.5, 1.0, 1.0)

ACTIVATIONS = ("none", "relu", "relu6", "clip", "hardswish", "hardsigmoid", "silu", "sigmoid")


def largest_power_of_two(value: int) -> int:
    """Largest power of two that is <= ``value`` (``value`` >= 1)."""
    return 1 << (value.bit_length() - 1)


def broadcast(value: Any, lanes: int) -> Expr:
    """``value`` in every lane; a Python number becomes float32."""
    if isinstance(value, float | int):
        value = T.float32(value)
    return T.broadcast(value, lanes) if lanes > 1 else value


def vector_exp(x: Expr, lanes: int) -> Expr:
    """exp(x) without a library call: relative error below 3e-7, clamped to finite results."""

    def const(value: float) -> Expr:
        return broadcast(value, lanes)

    ints = "int32" if lanes == 1 else f"int32x{lanes}"
    floats = "float32" if lanes == 1 else f"float32x{lanes}"
    x = T.Bind(T.max(T.min(x, const(EXP_MAX)), const(EXP_MIN)))
    n = T.Bind(T.floor(x * const(LOG2_E) + const(0.5)))
    r = T.Bind((x - n * const(LN2_HIGH)) - n * const(LN2_LOW))
    poly = const(EXP_COEFFICIENTS[0])
    for coefficient in EXP_COEFFICIENTS[1:]:
        poly = T.Bind(poly * r + const(coefficient))
    bias, shift = T.int32(FLOAT32_EXPONENT_BIAS), T.int32(FLOAT32_MANTISSA_BITS)
    if lanes > 1:
        bias, shift = T.broadcast(bias, lanes), T.broadcast(shift, lanes)
    power = T.shift_left(T.Cast(ints, n) + bias, shift)
    return poly * T.reinterpret(floats, power)


def activate(
    x: Expr, activation: str, lanes: int, bounds: tuple[float, float] = (0.0, 6.0)
) -> Expr:
    """``activation(x)`` for a vector of ``lanes`` float32.

    Parameters
    ----------
    activation : str
        One of :data:`ACTIVATIONS`; ``clip`` takes ``bounds``, either of which may be infinite.

    Raises
    ------
    ValueError
        If the activation is unknown.
    """

    def const(value: float) -> Expr:
        return broadcast(value, lanes)

    if activation == "none":
        return x
    if activation == "relu":
        return T.max(x, const(0.0))
    if activation == "relu6":
        return T.min(T.max(x, const(0.0)), const(6.0))
    if activation == "clip":
        low, high = bounds
        if low != float("-inf"):
            x = T.max(x, const(low))
        return x if high == float("inf") else T.min(x, const(high))
    if activation in ("hardswish", "hardsigmoid"):
        gate = T.min(T.max(x + const(3.0), const(0.0)), const(6.0)) * const(1 / 6)
        return gate if activation == "hardsigmoid" else x * gate
    if activation in ("silu", "sigmoid"):
        bottom = const(1.0) + vector_exp(T.Bind(const(0.0) - x), lanes)
        return (x if activation == "silu" else const(1.0)) / bottom
    raise ValueError(f"activation {activation!r} is unknown; expected one of {ACTIVATIONS}")
