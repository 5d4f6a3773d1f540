"""How far two arrays are apart, and how far they may be."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import tvm
from tvm import relax

from relay_passes.dataflow import op_name

#: Unit roundoff of the float types that a model may compute in.
UNIT_ROUNDOFF = {"float64": 2.0**-53, "float32": 2.0**-24, "float16": 2.0**-11}
# Rounding errors of sums grow like the square root of their length; the factor covers the spread of
# the maximum over many outputs and other orders of summation.
SAFETY = {"float64": 8.0, "float32": 8.0, "float16": 2.0}
# Elementary functions are approximated, by some 10^2 units of the last place in float32.
NARROWEST = {"float64": 1e-13, "float32": 1e-5, "float16": 8e-3}
# What is left beyond would not be worth the name of a check.
WIDEST = {"float64": 1e-4, "float32": 1e-3, "float16": 0.05}
# Parts of a tensor with small values (scores beside pixel coordinates) are held to their own scale,
# down to this share of the whole tensor's.
SMALLEST_SCALE = 0.01

# Of a network with 8-bit values: rounding in floats decides now and then which of two neighbours an
# activation becomes, in right libraries too, so that results differ by a step.
QUANTUM = 1 / 255

_NORMALISATIONS = {
    "relax.nn.softmax": "axis",
    "relax.nn.log_softmax": "axis",
    "relax.nn.layer_norm": "axes",
    "relax.nn.group_norm": "axes",
    "relax.nn.instance_norm": "axes",
    "relax.nn.rms_norm": "axes",
}


@dataclass(frozen=True)
class Tolerance:
    """Largest accepted error, as a fraction of an output's scale.

    Parameters
    ----------
    value : float
    dtype : str
        The coarsest float type that the model computes in.
    reduction_length : int
        Products and sums that lie one after another on the longest way through the model.
    basis : str
        How ``value`` follows from them.
    is_quantum : bool
        Results may differ by a step of 8 bits: the scale is that of the whole tensor, and 8-bit
        integers count as steps.
    """

    value: float
    dtype: str
    reduction_length: int
    basis: str
    is_quantum: bool = False

    def applies_to(self, want: np.ndarray) -> bool:
        """Whether values of this dtype may differ at all."""
        return want.dtype.kind == "f" or (self.is_quantum and want.dtype.itemsize == 1)

    def error(self, got: np.ndarray, want: np.ndarray) -> float:
        """:func:`error_of` by the scale that this tolerance is a fraction of."""
        if not self.is_quantum:
            return error_of(got, want)
        if want.dtype.kind in "iu" and want.dtype.itemsize == 1 and got.dtype == want.dtype:
            wide = [a.astype(np.float64).reshape(-1) for a in (got, want)]
            same = got.shape == want.shape and want.size
            return float(np.abs(wide[0] - wide[1]).max()) * QUANTUM if same else math.inf
        return error_of(got, want, by_slice=False)

    def widened(self, value: float, why: str) -> Tolerance:
        """A wider one, with the reason."""
        return replace(self, value=value, basis=f"{self.basis}; widened: {why}")


def tolerance_of(mod: tvm.IRModule, growth: float = 1.0) -> Tolerance:
    """The tolerance for a Relax module, from its dtypes and reduction lengths.

    Parameters
    ----------
    mod : tvm.IRModule
    growth : float
        How much larger rounding errors of the compiled form may be than those of plain sums, see
        :attr:`topi_kernels.report.RewriteReport.error_growth`.
    """
    dtypes = {"float32"}
    depth: dict[Any, int] = {}
    steps: dict[Any, int] = {}
    deepest = 1
    for block in mod["main"].body.blocks:
        for binding in block.bindings:
            dtypes.add(_float_dtype(binding.var.ty))
            if not isinstance(binding, relax.VarBinding):
                continue
            read = relax.analysis.free_vars(binding.value)
            before = max((depth.get(v, 0) for v in read), default=0)
            depth[binding.var] = before + _reduction_length(binding.value)
            deepest = max(deepest, depth[binding.var])
            before = max((steps.get(v, 0) for v in read), default=0)
            steps[binding.var] = before + (op_name(binding.value) == "relax.quantize")
    dtype = max(dtypes & set(UNIT_ROUNDOFF), key=UNIT_ROUNDOFF.__getitem__)
    unit = UNIT_ROUNDOFF[dtype]
    value = SAFETY[dtype] * unit * math.sqrt(deepest)
    value = min(max(value, NARROWEST[dtype]) * growth, WIDEST[dtype])
    if roundings := max(steps.values(), default=0):
        basis = (
            f"1/255, a step of 8 bits, x sqrt({roundings} roundings to such steps on the longest"
            " way): the network's own values are rounded"
        )
        value = QUANTUM * math.sqrt(roundings)
        return Tolerance(value, dtype, deepest, basis, is_quantum=True)
    basis = (
        f"{SAFETY[dtype]:g} x 2^{round(math.log2(unit))} ({dtype}) x sqrt({deepest} products and"
        f" sums on the longest way), between {NARROWEST[dtype]:g} and {WIDEST[dtype]:g}"
    )
    if growth > 1.0:
        basis += f"; {growth:g} times that, for layers computed by Winograd's filtering"
    return Tolerance(value, dtype, deepest, basis)


def _float_dtype(ty: Any) -> str:
    return str(ty.dtype) if isinstance(ty, relax.TensorType) else ""


def _shape(expr: Any) -> tuple[int, ...]:
    shape = getattr(expr.ty, "shape", None)
    if shape is None or not all(isinstance(d, tvm.tirx.IntImm) for d in shape):
        return ()
    return tuple(int(d) for d in shape)


def _reduction_length(value: Any) -> int:
    """Terms that go into one element of the result."""
    if not isinstance(value, relax.Call):
        return 0
    name = op_name(value) or ""
    shapes = [_shape(argument) for argument in value.args if hasattr(argument, "ty")]
    if name.startswith("relax.nn.conv") and len(shapes) > 1:
        # Either way round of the weight's channels: an upper bound for transposed ones.
        return math.prod(shapes[1][2:]) * max(shapes[1][:2], default=1)
    if name == "relax.matmul" and shapes and shapes[0]:
        return shapes[0][-1]
    if name in _NORMALISATIONS and shapes and shapes[0]:
        axes = getattr(value.attrs, _NORMALISATIONS[name])
        axes = [int(axes)] if isinstance(axes, int) else [int(a) for a in axes]
        return math.prod(shapes[0][axis] for axis in axes)
    if not isinstance(value.ty, relax.TensorType):
        return 1  # batch norm, split, top-k
    size = math.prod(_shape(value)) or 1
    return max([math.prod(shape) // size for shape in shapes if shape] + [1])


def error_of(got: np.ndarray, want: np.ndarray, *, by_slice: bool = True) -> float:
    """Largest difference as a fraction of the scale of ``want``.

    The scale is the largest magnitude in the tensor; with three or more axes, that of an element's
    own slice along axis 1 and along the last axis (not with ``by_slice=False``), down to a
    hundredth of the tensor's. NaN and Inf
    at the same places are equal; on one side only the error is infinite, and so it is for another
    shape or kind of number. Integers and booleans differ by the fraction of unequal elements.
    """
    if got.shape != want.shape or (got.dtype.kind == "f") != (want.dtype.kind == "f"):
        return math.inf
    if want.size == 0:
        return 0.0
    if want.dtype.kind != "f":
        return float(np.mean(got != want))
    got, want = _saturated(got), _saturated(want)
    finite = np.isfinite(want)
    if not np.array_equal(finite, np.isfinite(got)):
        return math.inf
    if not np.array_equal(got[~finite], want[~finite], equal_nan=True):
        return math.inf
    if not finite.any():
        return 0.0
    difference = np.abs(np.where(finite, got, 0) - np.where(finite, want, 0))
    if not difference.any():
        return 0.0
    magnitude = np.where(finite, np.abs(want), 0)
    scale = _scale(magnitude) if by_slice else np.asarray(magnitude.max())
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        return float(np.max(np.where(difference > 0, difference / scale, 0)))


def _saturated(array: np.ndarray) -> np.ndarray:
    """In float64; float16 values about to overflow count as Inf, on whichever side they round."""
    if array.dtype != np.float16:
        return array.astype(np.float64)
    wide = array.astype(np.float64)
    return np.where(np.abs(wide) > 6.0e4, np.copysign(np.inf, wide), wide)


def _scale(magnitude: np.ndarray) -> np.ndarray:
    whole = np.asarray(magnitude.max())
    if magnitude.ndim < 3:
        return whole
    slices = np.minimum(
        *(
            magnitude.max(axis=tuple(a for a in range(magnitude.ndim) if a != axis), keepdims=True)
            for axis in (1, magnitude.ndim - 1)
        )
    )
    return np.maximum(slices, SMALLEST_SCALE * whole)


def is_finite_somewhere(arrays: Sequence[np.ndarray]) -> bool:
    """Whether there is anything to compare: some output without a float is one too."""
    return any(a.dtype.kind != "f" or np.isfinite(a).any() for a in arrays)
