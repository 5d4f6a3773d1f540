"""One convolution of bytes as a network has it: weights, scales, limits."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ...geometry import ConvGeometry
from ...structure import Structure
from .quantisation import LEVELS, Quantisation, byte_limits
from .requantise import FAR


@dataclass(frozen=True, eq=False)
class Int8Layer:
    """One convolution of bytes, before it is planned.

    Parameters
    ----------
    weight : numpy.ndarray
        int8 ``[out_channels, in_channels, kh, kw]``.
    weight_scale : numpy.ndarray
        float32 ``[out_channels]``.
    bias : numpy.ndarray
        float32 ``[out_channels]``, of the real numbers.
    geometry : ConvGeometry
    source, result : Quantisation
    structure : Structure
    low, high : float
        Limits of the real results, such as 0 and infinity for a relu.
    residual : Quantisation, optional
        Of a tensor that is added before the limits.
    """

    weight: np.ndarray
    weight_scale: np.ndarray
    bias: np.ndarray
    geometry: ConvGeometry
    source: Quantisation
    result: Quantisation
    structure: Structure
    low: float = -np.inf
    high: float = np.inf
    residual: Quantisation | None = None

    def folded_bias(self, flip: int = 0) -> np.ndarray:
        """float64 ``[out_channels]``: what the sums begin with, bias and zero point together."""
        unit = self.weight_scale.astype(np.float64) * self.source.scale
        weights = self.weight.astype(np.int64).sum(axis=(1, 2, 3))
        return np.rint(self.bias / unit) - (self.source.zero_point - flip) * weights

    def factors(self) -> np.ndarray:
        """float32 ``[out_channels]``: what the sums are multiplied by."""
        unit = self.weight_scale.astype(np.float64) * self.source.scale
        return (unit / self.result.scale).astype(np.float32)

    def limits(self) -> tuple[int, int]:
        """Least and largest byte of the result."""
        return byte_limits(self.result, self.low, self.high)

    def residual_factor(self) -> np.float32:
        """What residuals are multiplied by."""
        if self.residual is None:
            return np.float32(0)
        return np.float32(self.residual.scale / self.result.scale)

    def is_far(self, bias: np.ndarray) -> bool:
        """Whether a result may be below ``-FAR``, in units of its scale, before it is limited.

        Parameters
        ----------
        bias : numpy.ndarray
            What the sums begin with.
        """
        flat = np.abs(self.weight.reshape(len(self.weight), -1).astype(np.int64))
        reach = (flat.sum(axis=1) * LEVELS + np.abs(bias)) * self.factors()
        return bool((reach + LEVELS * float(self.residual_factor()) >= FAR).any())
