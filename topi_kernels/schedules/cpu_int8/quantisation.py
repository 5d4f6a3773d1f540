"""How bytes stand for real numbers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

LEVELS = 255


@dataclass(frozen=True)
class Quantisation:
    """``real = scale * (byte - zero_point)`` of a tensor of unsigned bytes.

    Raises
    ------
    ValueError
        If the scale is not positive and finite, or the zero point no byte.
    """

    scale: float
    zero_point: int

    def __post_init__(self) -> None:
        if not (np.isfinite(self.scale) and self.scale > 0):
            raise ValueError(f"a scale is positive and finite, got {self.scale}")
        if not 0 <= self.zero_point <= LEVELS:
            raise ValueError(f"a zero point is in 0..{LEVELS}, got {self.zero_point}")


def byte_limits(result: Quantisation, low: float, high: float) -> tuple[int, int]:
    """Bytes that stand for the limits of an activation."""

    def byte(value: float) -> int:
        return int(np.clip(np.rint(value / result.scale) + result.zero_point, 0, LEVELS))

    return byte(low), byte(high)
