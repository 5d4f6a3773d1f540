"""Expressions on explicit vectors: constants, activations, exponential, maxima.

NaN in, NaN out: every expression here gives NaN where torch does. ``T.max`` and ``T.min`` do not
serve for that, since a comparison with NaN is false and which operand then remains depends on their
order.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial, reduce
from typing import Any

from tvm import tirx
from tvm.ir import Expr
from tvm.tirx.script import builder as T

LOG2_E = 1.4426950408889634
# ln 2 in two parts, so that n * LN2_HIGH is exact (Cody and Waite, 1980, chapter 6).
LN2_HIGH = 0.693359375
LN2_LOW = -2.12194440e-4
# Above EXP_MAX the power of two is 2**128, which is infinite in float32.
EXP_MAX = 89.0
EXP_MIN = -87.0
FLOAT32_MANTISSA_BITS = 23
FLOAT32_EXPONENT_BIAS = 127
# 1.5 * 2**23: a float32 of that size has no fraction, and its low bits are an integer.
ROUNDING = 12582912.0
# exp on |r| <= ln 2 / 2 by the polynomial of degree 5 with the least relative error among those
# that are exact at 0: 9.2e-8, and 1.5e-7 in float32 steps.
EXP_COEFFICIENTS = (
    0.0082903066650033,
    0.0418979749083519,
    0.1666763722896576,
    0.4999915063381195,
    0.9999997019767761,
    1.0,
)

# tanh as a quotient of polynomials of x**2, the odd one times x (Eigen's); beyond TANH_MAX it is 1.
TANH_MAX = 7.90531110763549805
TANH_TOP = (
    -2.76076847742355e-16,
    2.00018790482477e-13,
    -8.60467152213735e-11,
    5.12229709037114e-08,
    1.48572235717979e-05,
    6.37261928875436e-04,
    4.89352455891786e-03,
)
TANH_BOTTOM = (
    1.19825839466702e-06,
    1.18534705686654e-04,
    2.26843463243900e-03,
    4.89352518554385e-03,
)

# erf as a quotient of polynomials of x**2, the odd one times x; it is 4e-7 above 1 at ERF_MAX: cut
# off there it is 1 however it is rounded. This and log(1 + t) / t on [0, 1] are fitted by
# tools/fit_functions.py to relative errors of 2.4e-8 and 3e-8.
ERF_MAX = 4.0
ERF_TOP = (
    2.001022084e-06,
    2.849743556e-04,
    3.869366531e-03,
    5.306476568e-02,
    1.931339857e-01,
    1.128379140e00,
)
ERF_BOTTOM = (
    3.758393119e-05,
    1.183412259e-03,
    1.518006210e-02,
    1.151956959e-01,
    5.044931141e-01,
    1.0,
)
LOG1P_COEFFICIENTS = (
    5.232687893e-03,
    -2.950521324e-02,
    7.822591029e-02,
    -1.366324227e-01,
    1.910600510e-01,
    -2.484298179e-01,
    3.331909675e-01,
    -4.999949314e-01,
    9.999999699e-01,
)
# sqrt(2 / pi) and 0.044715 of the GELU that is written with tanh.
GELU_TANH = (0.7978845608028654, 0.044715)
# exp(MISH_MAX) squared is still finite.
MISH_MAX = 20.0

ACTIVATIONS = (
    "none",
    "relu",
    "relu6",
    "clip",
    "hardswish",
    "hardsigmoid",
    "silu",
    "sigmoid",
    "tanh",
    "gelu",
    "gelu_tanh",
    "mish",
    "softplus",
    "elu",
    "leaky_relu",
    "affine",
)
#: exp of a vector.
Exponential = Callable[[Expr], Expr]


def largest_power_of_two(value: int) -> int:
    """Largest power of two that is <= ``value`` (``value`` >= 1)."""
    return 1 << (value.bit_length() - 1)


def broadcast(value: Any, lanes: int) -> Expr:
    """``value`` in every lane; a Python number becomes float32."""
    if isinstance(value, float | int):
        value = T.float32(value)
    return T.broadcast(value, lanes) if lanes > 1 else value


def _vector_type(dtype: str, lanes: int) -> str:
    return dtype if lanes == 1 else f"{dtype}x{lanes}"


def _extremum(name: str, a: Expr, b: Expr, lanes: int, dtype: str = "float32") -> Expr:
    return tirx.call_llvm_pure_intrin(_vector_type(dtype, lanes), f"llvm.{name}", a, b)


def held(x: Expr, lanes: int, scope: str = "global") -> Expr:
    """``x``, float32, as a value that TVM's simplifier does not see through.

    It puts the whole expression in the place of a bound variable, at each use and in each pass: an
    exponential of a limited value grows a hundredfold. LLVM keeps the buffer in a register.

    Parameters
    ----------
    scope : str
        ``local`` on a GPU. On a processor that would be a workspace of the heap wherever a loop is
        parallel, for each vector.
    """
    cell = T.alloc_buffer((lanes,), "float32", scope=scope)
    index: Any = 0 if lanes == 1 else T.ramp(0, 1, lanes)
    T.buffer_store(cell, x, [index])
    return T.Bind(cell[index])


def limited(
    x: Expr,
    lanes: int,
    low: float = -math.inf,
    high: float = math.inf,
    *,
    nan_maximum: bool = False,
    scope: str = "global",
) -> Expr:
    """``x`` held between ``low`` and ``high``; NaN stays NaN.

    One instruction per finite bound on x86 and ARM. Written as comparisons, -0.0 passes a bound of
    0.0 unchanged, as in torch.

    Parameters
    ----------
    nan_maximum : bool
        Whether the processor's maximum gives NaN if either operand is NaN, as ARM's does: then
        LLVM's intrinsic is that instruction. x86's gives its second operand, which a comparison in
        the right order is compiled to.
    scope : str
        As of :func:`held`.
    """
    bounds = [("maximum", low), ("minimum", high)]
    bounds = [(name, bound) for name, bound in bounds if not math.isinf(bound)]
    for position, (name, bound) in enumerate(bounds):
        limit = broadcast(float(bound), lanes)
        if nan_maximum:
            x = _extremum(name, x, limit, lanes)
        else:
            x = held(x, lanes, scope) if position else T.Bind(x)
            x = T.Select(x < limit if name == "maximum" else limit < x, limit, x)
    return x


def maximum_of(values: Sequence[Expr], lanes: int, *, nan_maximum: bool) -> Expr:
    """Maximum of float32 vectors, NaN where any of them is.

    Parameters
    ----------
    nan_maximum : bool
        As of :func:`limited`. Without it only the last value's NaN comes through by itself; the
        others are compared, two to an instruction.
    """
    if nan_maximum or len(values) < 2:
        return reduce(lambda a, b: _extremum("maximum", a, b, lanes), values)
    values = [T.Bind(v) for v in values]
    # Each comparison uses the last one twice: bound alone, 25 values would be 2^24 of them.
    largest = reduce(lambda a, b: held(T.Select(a > b, a, b), lanes), values)
    # Not by v == v, which TVM simplifies to true.
    ordered = [v <= broadcast(math.inf, lanes) for v in values[:-1]]
    return T.Select(reduce(tirx.bitwise_and, ordered), largest, broadcast(math.nan, lanes))


def vector_exp(x: Expr, lanes: int, *, nan_maximum: bool = False) -> Expr:
    """exp(x) without a library call: relative error below 3e-7; 0 below -87 is exp(-87).

    From 88.4 on the result is infinite, as exp's is from 88.73 on; NaN stays NaN.
    """

    def const(value: float) -> Expr:
        return broadcast(value, lanes)

    ints, floats = _vector_type("int32", lanes), _vector_type("float32", lanes)
    x = held(limited(x, lanes, EXP_MIN, EXP_MAX, nan_maximum=nan_maximum), lanes)
    # Rounded by an addition: a conversion to integer is undefined for NaN, and takes longer.
    # The sum passes as an integer, or TVM would simplify (a + b) - b to a.
    rounded = T.Bind(T.reinterpret(ints, x * const(LOG2_E) + const(ROUNDING)))
    n = T.Bind(T.reinterpret(floats, rounded) - const(ROUNDING))
    r = held((x - n * const(LN2_HIGH)) - n * const(LN2_LOW), lanes)
    poly = const(EXP_COEFFICIENTS[0])
    for coefficient in EXP_COEFFICIENTS[1:]:
        poly = T.Bind(poly * r + const(coefficient))
    bias, shift = T.int32(FLOAT32_EXPONENT_BIAS), T.int32(FLOAT32_MANTISSA_BITS)
    if lanes > 1:
        bias, shift = T.broadcast(bias, lanes), T.broadcast(shift, lanes)
    # The shift drops all but the low bits, which hold n.
    power = T.shift_left(rounded + bias, shift)
    return poly * T.reinterpret(floats, power)


def vector_tanh(x: Expr, lanes: int, *, nan_maximum: bool = False) -> Expr:
    """tanh(x) without a library call: relative error below 1e-6; NaN stays NaN."""

    x = held(limited(x, lanes, -TANH_MAX, TANH_MAX, nan_maximum=nan_maximum), lanes)
    square = held(x * x, lanes)
    return x * _horner(TANH_TOP, square, lanes) / _horner(TANH_BOTTOM, square, lanes)


def vector_erf(x: Expr, lanes: int, *, nan_maximum: bool = False, scope: str = "global") -> Expr:
    """erf(x) without a library call: error below 5e-7, in [-1, 1]; NaN stays NaN."""
    within = partial(limited, lanes=lanes, nan_maximum=nan_maximum, scope=scope)
    x = held(within(x, low=-ERF_MAX, high=ERF_MAX), lanes, scope)
    square = held(x * x, lanes, scope)
    value = x * _horner(ERF_TOP, square, lanes) / _horner(ERF_BOTTOM, square, lanes)
    return within(held(value, lanes, scope), low=-1.0, high=1.0)


def _horner(coefficients: Sequence[float], at: Expr, lanes: int) -> Expr:
    """The polynomial of ``at``, highest power first."""
    value = broadcast(coefficients[0], lanes)
    for coefficient in coefficients[1:]:
        value = T.Bind(value * at + broadcast(coefficient, lanes))
    return value


def _gelu(x: Expr, lanes: int, scope: str, *, nan_maximum: bool) -> Expr:
    """x times the normal distribution up to x."""
    x = held(x, lanes, scope)
    at = x * broadcast(math.sqrt(0.5), lanes)
    half = broadcast(0.5, lanes)
    return x * (half + half * vector_erf(at, lanes, nan_maximum=nan_maximum, scope=scope))


def _gelu_tanh(x: Expr, lanes: int, exponential: Exponential, scope: str) -> Expr:
    """GELU by tanh, as x times the sigmoid of twice its argument: exact far below zero, too."""
    factor, cubic = GELU_TANH
    x = held(x, lanes, scope)
    inner = x * (broadcast(-2 * factor, lanes) + broadcast(-2 * factor * cubic, lanes) * (x * x))
    return x / (broadcast(1.0, lanes) + exponential(inner))


def _mish(x: Expr, lanes: int, exponential: Exponential, scope: str, *, nan_maximum: bool) -> Expr:
    """``x * tanh(softplus(x))`` as a quotient in exp(x): tanh(log(1 + e)) = n / (n + 2)."""
    x = held(x, lanes, scope)
    below = limited(x, lanes, high=MISH_MAX, nan_maximum=nan_maximum, scope=scope)
    power = held(exponential(below), lanes, scope)
    n = held(power * (power + broadcast(2.0, lanes)), lanes, scope)
    factor = n / (n + broadcast(2.0, lanes))
    # What underflows is zero: -inf times zero is NaN, as in torch.
    none = broadcast(0.0, lanes)
    return x * T.Select(x < broadcast(EXP_MIN, lanes), none, factor)


def _softplus(
    x: Expr, lanes: int, exponential: Exponential, scope: str, *, nan_maximum: bool
) -> Expr:
    """``max(x, 0) + log(1 + exp(-|x|))``."""
    x = held(x, lanes, scope)
    positive = x > broadcast(0.0, lanes)
    power = held(exponential(T.Select(positive, broadcast(0.0, lanes) - x, x)), lanes, scope)
    at_least = limited(x, lanes, 0.0, nan_maximum=nan_maximum, scope=scope)
    return at_least + power * _horner(LOG1P_COEFFICIENTS, power, lanes)


def _elu(x: Expr, alpha: float, lanes: int, exponential: Exponential, scope: str) -> Expr:
    x = held(x, lanes, scope)
    negative = (exponential(x) - broadcast(1.0, lanes)) * broadcast(alpha, lanes)
    return T.Select(x < broadcast(0.0, lanes), negative, x)


def activate(
    x: Expr,
    activation: str,
    lanes: int,
    bounds: tuple[float, float] = (0.0, 6.0),
    *,
    nan_maximum: bool = False,
    exponential: Exponential | None = None,
    scope: str = "global",
) -> Expr:
    """``activation(x)`` for a vector of ``lanes`` float32.

    Parameters
    ----------
    activation : str
        One of :data:`ACTIVATIONS`; ``clip`` takes ``bounds``, either of which may be infinite, and
        the first of them is the slope of ``leaky_relu`` below 0 and the factor of ``elu`` there;
        those of ``affine`` are factor and term.
    nan_maximum : bool
        As of :func:`limited`.
    exponential : callable, optional
        exp of a vector; default: :func:`vector_exp`.
    scope : str
        As of :func:`held`.

    Raises
    ------
    ValueError
        If the activation is unknown.
    """

    def const(value: float) -> Expr:
        return broadcast(value, lanes)

    within = partial(limited, lanes=lanes, nan_maximum=nan_maximum, scope=scope)
    exponential = exponential or partial(vector_exp, lanes=lanes, nan_maximum=nan_maximum)
    if activation == "none":
        return x
    if activation in ("relu", "relu6", "clip"):
        low, high = {"relu": (0.0, math.inf), "relu6": (0.0, 6.0)}.get(activation, bounds)
        return within(x, low=low, high=high)
    if activation in ("hardswish", "hardsigmoid"):
        x = T.Bind(x)
        gate = within(x + const(3.0), low=0.0, high=6.0) * const(1 / 6)
        return gate if activation == "hardsigmoid" else x * gate
    if activation in ("silu", "sigmoid"):
        x = T.Bind(x)
        bottom = const(1.0) + exponential(const(0.0) - x)
        return (x if activation == "silu" else const(1.0)) / bottom
    if activation == "tanh":
        return vector_tanh(x, lanes, nan_maximum=nan_maximum)
    if activation == "gelu":
        return _gelu(x, lanes, scope, nan_maximum=nan_maximum)
    if activation == "gelu_tanh":
        return _gelu_tanh(x, lanes, exponential, scope)
    if activation in ("mish", "softplus"):
        make = _mish if activation == "mish" else _softplus
        return make(x, lanes, exponential, scope, nan_maximum=nan_maximum)
    if activation == "elu":
        return _elu(x, bounds[0], lanes, exponential, scope)
    if activation == "leaky_relu":
        x = held(x, lanes, scope)
        return T.Select(x > const(0.0), x, x * const(bounds[0]))
    if activation == "affine":
        return x * const(bounds[0]) + const(bounds[1])
    raise ValueError(f"activation {activation!r} is unknown; expected one of {ACTIVATIONS}")
