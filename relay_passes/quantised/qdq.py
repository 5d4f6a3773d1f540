"""Reading ``quantize`` and ``dequantize``: scales, zero points, limits of activations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm.ir import Call

from topi_kernels.schedules.cpu_int8.quantisation import Quantisation

from ..dataflow import constant, op_name, scalar_constant

QUANTIZE, DEQUANTIZE = "relax.quantize", "relax.dequantize"
#: Added to signed bytes and their zero point to make them unsigned.
SIGNED_OFFSET = 128


class Unsupported(Exception):
    """A quantised operator has no form on bytes; the text is the reason."""


def is_quantize(expr: Any) -> bool:
    """Whether ``expr`` makes bytes of real numbers."""
    return op_name(expr) == QUANTIZE


def is_dequantize(expr: Any) -> bool:
    """Whether ``expr`` makes real numbers of bytes."""
    return op_name(expr) == DEQUANTIZE


def byte_dtype(call: Call) -> str:
    """Type of the quantised side of a ``quantize`` or ``dequantize``."""
    return str((call.ty if is_quantize(call) else call.args[0].ty).dtype)


def per_tensor(call: Call) -> Quantisation:
    """Scale and zero point of a ``quantize`` or ``dequantize`` of activations, as unsigned bytes.

    Raises
    ------
    Unsupported
        If it is of another kind, or they are no constants.
    """
    dtype = byte_dtype(call)
    if dtype not in ("uint8", "int8"):
        raise Unsupported(f"activations are quantised to {dtype}; expected uint8 or int8")
    scale, zero_point = (constant(argument) for argument in call.args[1:3])
    if scale is None or zero_point is None:
        raise Unsupported("the scale or zero point of activations is not a constant")
    if scale.size != 1 or zero_point.size != 1:
        raise Unsupported(
            f"activations are quantised per channel ({scale.size} scales); expected one scale for"
            " a tensor"
        )
    offset = SIGNED_OFFSET if dtype == "int8" else 0
    try:
        return Quantisation(float(scale.reshape(-1)[0]), int(zero_point.reshape(-1)[0]) + offset)
    except ValueError as error:
        raise Unsupported(str(error)) from error


@dataclass(frozen=True, eq=False)
class QuantisedWeight:
    """int8 weights, filters first, with one scale for each."""

    values: np.ndarray
    scale: np.ndarray


def weight_of(call: Any, axis: int = 0) -> QuantisedWeight:
    """The weights that a ``dequantize`` holds.

    Parameters
    ----------
    call : Call
    axis : int
        That of the filters; they come first in the result.

    Raises
    ------
    Unsupported
        If they are no symmetric int8 constants, with one scale or one for each filter.
    """
    if not is_dequantize(call):
        raise Unsupported("the weight is not quantised")
    values, scale, zero_point = (constant(argument) for argument in call.args[:3])
    if values is None or scale is None or zero_point is None:
        raise Unsupported("the quantised weight, its scale or zero point is not a constant")
    if str(values.dtype) != "int8":
        raise Unsupported(f"the weight is quantised to {values.dtype}; expected int8")
    if zero_point.any():
        raise Unsupported(
            "the weight is quantised with zero points that are not 0; expected symmetric int8"
        )
    filters, along = values.shape[axis], int(call.attrs.axis) % values.ndim
    if scale.size not in (1, filters) or (scale.size > 1 and along != axis):
        raise Unsupported(
            f"the weight has {scale.size} scales along axis {along}; expected one for each of"
            f" {filters} filters"
        )
    if not np.isfinite(scale).all() or not (scale > 0).all():
        raise Unsupported("the scales of the weight are not positive and finite")
    full = np.broadcast_to(scale.reshape(-1).astype(np.float32), (filters,)).copy()
    return QuantisedWeight(np.ascontiguousarray(np.moveaxis(values, axis, 0)), full)


@dataclass(frozen=True)
class Limits:
    """What a chain of activations limits a value to."""

    low: float = -np.inf
    high: float = np.inf

    def of_limited(self, low: float, high: float) -> Limits:
        """These limits, applied to a value that is limited already."""
        return Limits(min(max(low, self.low), self.high), min(max(high, self.low), self.high))


def activation_limits(value: Any) -> tuple[float, float] | None:
    """Limits of a relu, relu6 or clip; None for anything else."""
    name = op_name(value)
    if name == "relax.nn.relu":
        return 0.0, np.inf
    if name == "relax.nn.relu6":
        return 0.0, 6.0
    if name == "relax.clip":
        low, high = (scalar_constant(argument) for argument in value.args[1:3])
        return None if low is None or high is None else (low, high)
    return None
