"""GELU, Mish, softplus and ELU in any spelling: known by the values of the operators that spell it.

Exporters write these activations as five to twelve scalar operators, in many orders: a product may
come before or after the half, a root of two as factor or divisor, a threshold may guard the
logarithm or not. Here the operators that lead from one variable to another are evaluated in double
precision at some hundred places, close to every constant among them too, and compared with the
activations. Nothing is recognised without the operator that makes it smooth (:data:`_SMOOTH`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from tvm import relax
from tvm.ir import Expr, Var

from .dataflow import Uses, constant, op_name, static_shape
from .markers import parse

#: ``(x, activation, bounds)``, as of :func:`topi_kernels.vector_math.activate`.
Found = tuple[Expr, str, tuple[float, float]]

MAX_OPERATORS = 16
# Constants of exported models are float32 roundings; GELU and its form by tanh differ by 5e-4.
TOLERANCE = 3e-6
_NEAR = 1e-3
_FAR = (15.0, 19.9, 20.1, 25.0, 40.0, 80.0, 300.0, 1e3, 1e5)
_PLACES = np.concatenate([np.linspace(-12, 12, 97), _FAR, np.negative(_FAR)])
_SMOOTH = frozenset(f"relax.{name}" for name in ("erf", "tanh", "exp", "nn.gelu", "nn.gelu_tanh"))


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def _gelu(x: np.ndarray) -> np.ndarray:
    return x * 0.5 * (1 + _erf(x * math.sqrt(0.5)))


def _gelu_tanh(x: np.ndarray) -> np.ndarray:
    return x * 0.5 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def _softplus(x: np.ndarray) -> np.ndarray:
    return np.logaddexp(0, x)


_erf = np.vectorize(math.erf, otypes=[np.float64])
_OPERATORS: dict[str, Callable[..., np.ndarray]] = {
    "relax.add": np.add,
    "relax.subtract": np.subtract,
    "relax.multiply": np.multiply,
    "relax.divide": np.divide,
    "relax.power": np.power,
    "relax.maximum": np.maximum,
    "relax.minimum": np.minimum,
    "relax.erf": _erf,
    "relax.tanh": np.tanh,
    "relax.exp": np.exp,
    "relax.log": np.log,
    "relax.sigmoid": _sigmoid,
    "relax.negative": np.negative,
    "relax.abs": np.abs,
    "relax.greater": np.greater,
    "relax.where": np.where,
    "relax.nn.relu": lambda x: np.maximum(x, 0),
    "relax.nn.gelu": _gelu,
    "relax.nn.gelu_tanh": _gelu_tanh,
}
_MARKERS: dict[str, Callable[[np.ndarray, float, float], np.ndarray]] = {
    "relu": lambda x, _low, _high: np.maximum(x, 0),
    "clip": np.clip,
    "sigmoid": lambda x, _low, _high: _sigmoid(x),
    "tanh": lambda x, _low, _high: np.tanh(x),
    "softplus": lambda x, _low, _high: _softplus(x),
}
_ACTIVATIONS: Mapping[str, Callable[[np.ndarray], np.ndarray]] = {
    "gelu": _gelu,
    "gelu_tanh": _gelu_tanh,
    "mish": lambda x: x * np.tanh(_softplus(x)),
    "softplus": _softplus,
}


class _Unknown(Exception):
    """An operator that is not evaluated, or a second variable."""


def smooth_activation(uses: Uses, var: Var) -> Found | None:
    """The activation whose last operator is the value of ``var``, or None."""
    shape = static_shape(var)
    if shape is None or _operator(uses.definition(var)) is None:
        return None
    cone = _cone(uses, var, shape)
    if not any(_is_smooth(uses.definition(each)) for each in cone):
        return None
    for base in _bases(uses, cone, shape):
        found = _named(uses, base, var)
        if found is not None:
            return (base, *found)
    return None


def _cone(uses: Uses, var: Var, shape: tuple[int, ...]) -> list[Var]:
    """Variables of operators that are evaluated, from ``var`` backwards."""
    cone: list[Var] = []
    waiting = [var]
    while waiting and len(cone) <= MAX_OPERATORS:
        each = waiting.pop(0)
        value = uses.definition(each)
        if each in cone or static_shape(each) != shape or _operator(value) is None:
            continue
        cone.append(each)
        waiting += [a for a in _arguments(value) if isinstance(a, Var)]
    return cone


def _bases(uses: Uses, cone: list[Var], shape: tuple[int, ...]) -> list[Var]:
    """What the operators of a cone read, the nearest first."""
    read: list[Var] = []
    for each in cone:
        for a in _arguments(uses.definition(each)):
            if isinstance(a, Var) and a not in read and static_shape(a) == shape:
                read.append(a)
    return read


def _operator(value: Any) -> Callable[..., np.ndarray] | None:
    """How a value is computed of its arguments, or None."""
    marker = parse(value)
    if marker is None:
        return _OPERATORS.get(op_name(value))
    if marker.op != "activation" or marker.params["activation"] not in _MARKERS:
        return None
    evaluate = _MARKERS[marker.params["activation"]]
    low, high = marker.params["bounds"]
    return lambda x: evaluate(x, low, high)


def _arguments(value: Any) -> list[Expr]:
    marker = parse(value)
    return list(value.args if marker is None else marker.tensors)


def _is_smooth(value: Any) -> bool:
    marker = parse(value)
    if marker is not None:
        return marker.params.get("activation") in ("tanh", "softplus")
    return op_name(value) in _SMOOTH


def _named(uses: Uses, base: Var, var: Var) -> tuple[str, tuple[float, float]] | None:
    """The activation that leads from ``base`` to ``var``."""
    try:
        constants = _constants(uses, base, var)
        near = [c * f for c in constants for f in (1 - _NEAR, 1, 1 + _NEAR, -1)]
        places = np.concatenate([_PLACES, near])
        with np.errstate(all="ignore"):
            got = _evaluated(uses, base, var, places)
    except _Unknown:
        return None
    alpha = -float(got[len(_PLACES) - 1])
    candidates = {name: (make(places), (0.0, 0.0)) for name, make in _ACTIVATIONS.items()}
    if math.isfinite(alpha):
        elu = np.where(places > 0, places, alpha * np.expm1(np.minimum(places, 0)))
        candidates["elu"] = (elu, (alpha, 0.0))
    for name, (want, bounds) in candidates.items():
        if np.all(np.abs(got - want) <= TOLERANCE * np.maximum(1, np.abs(want))):
            return name, bounds
    return None


def _constants(uses: Uses, base: Var, var: Var) -> list[float]:
    """All numbers among the operators between ``base`` and ``var``.

    Raises
    ------
    _Unknown
        If there is something else among them.
    """
    found: list[float] = []
    seen: set[Var] = {base}
    waiting = [var]
    while waiting:
        each = waiting.pop()
        if each in seen:
            continue
        seen.add(each)
        value = uses.definition(each)
        if _operator(value) is None or len(seen) > MAX_OPERATORS:
            raise _Unknown
        for a in _arguments(value):
            if isinstance(a, Var):
                waiting.append(a)
            else:
                found.append(_number(a))
        marker = parse(value)
        found += [b for b in marker.params["bounds"] if math.isfinite(b)] if marker else []
    return found


def _number(expr: Expr) -> float:
    value = constant(expr)
    if value is None or value.size != 1:
        raise _Unknown
    return float(value.reshape(-1)[0])


def _evaluated(uses: Uses, base: Var, var: Var, places: np.ndarray) -> np.ndarray:
    """Values of ``var`` where ``base`` has the values ``places``."""
    known: dict[Var, np.ndarray] = {base: places}

    def of(expr: Expr) -> np.ndarray:
        if not isinstance(expr, relax.Var):
            return np.float64(_number(expr))
        if expr not in known:
            value = uses.definition(expr)
            operator = _operator(value)
            if operator is None:
                raise _Unknown
            known[expr] = operator(*map(of, _arguments(value)))
        return known[expr]

    return np.broadcast_to(of(var), places.shape)
