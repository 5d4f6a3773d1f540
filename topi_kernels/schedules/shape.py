"""What the cost model and the legality check must know of a convolution."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from ..geometry import ConvGeometry
from ..layout import PlaneLayout
from ..pattern import Pattern


@dataclass(frozen=True)
class ConvShape:
    """Geometry, layouts and sparsity of a convolution, as figures.

    ``is_dense`` says that all weights are stored, ``winograd`` that the layer may be computed by
    Winograd's filtering.
    """

    in_channels: int
    out_channels: int
    geometry: ConvGeometry
    in_layout: PlaneLayout
    out_layout: PlaneLayout
    patterns: tuple[Pattern, ...]
    kernels_per_group: float
    max_group: int
    is_dense: bool = False
    winograd: bool = False

    @cached_property
    def most_taps(self) -> int:
        """Taps of the largest pattern."""
        return max(len(p) for p in self.patterns)
