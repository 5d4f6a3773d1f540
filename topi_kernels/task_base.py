"""What every task has, whatever its convolution is computed in."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from typing import Any

from .geometry import ConvGeometry
from .layout import PlaneLayout


def digest(data: dict[str, Any]) -> str:
    """16 hexadecimal digits, equal for equal plain data in every process and version."""
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:16]


class TaskBase(ABC):
    """One convolution to choose a configuration for."""

    batch: int
    in_channels: int
    geometry: ConvGeometry
    out_layout: PlaneLayout
    kept_weights: int

    @abstractmethod
    def as_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON; records hold it, so its form stays."""

    @property
    @abstractmethod
    def weight_shape(self) -> tuple[int, int, int, int]:
        """``(out_channels, in_channels of a filter, kh, kw)``."""

    @property
    def key(self) -> str:
        """Stable identifier: equal tasks have equal keys in every process and version."""
        return digest(self.as_dict())

    @property
    def label(self) -> str:
        """A short name for people, such as ``3x3 256->256 14x14``."""
        o, _, kh, kw = self.weight_shape
        stride = self.geometry.stride
        moved = "" if stride == (1, 1) else f" s{stride[0]}"
        size = f"{self.out_layout.height}x{self.out_layout.width}"
        return f"{kh}x{kw} {self.in_channels}->{o} {size}{moved}"

    @property
    def density(self) -> float:
        """Fraction of kept weights."""
        o, i, kh, kw = self.weight_shape
        return self.kept_weights / max(1, o * i * kh * kw)

    @property
    def effective_flops(self) -> int:
        """Operations of the kept weights."""
        return 2 * self.batch * self.kept_weights * self.out_layout.height * self.out_layout.width
