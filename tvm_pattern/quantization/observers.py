"""Ranges of values, from calibration data and from weights: observers for torchao's PT2E.

Activations are uint8 per tensor, weights symmetric int8 per out_channel. Zero is always one of the
steps, so that padding and pruned weights stay exactly zero.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torchao.quantization.pt2e.fake_quantize import FakeQuantize
from torchao.quantization.pt2e.observer import (
    HistogramObserver,
    MinMaxObserver,
    PerChannelMinMaxObserver,
)

from .errors import QuantizationError

Calibration = Literal["minmax", "percentile", "mse"]
CALIBRATIONS: tuple[Calibration, ...] = ("minmax", "percentile", "mse")
# Shares of a channel's largest weight that are tried as the end of its range.
_CLIPS = torch.linspace(0.6, 1.0, 41)


class NotFiniteError(QuantizationError):
    """An activation is NaN or Inf; ``observer`` saw it."""

    def __init__(self, observer: torch.nn.Module, bad: int, size: int) -> None:
        super().__init__(f"{bad} of {size} values are NaN or Inf")
        self.observer, self.bad, self.size = observer, bad, size


def _refuse_not_finite(observer: torch.nn.Module, x: torch.Tensor) -> None:
    finite = torch.isfinite(x)
    if not bool(finite.all()):
        raise NotFiniteError(observer, int((~finite).sum()), x.numel())


def _one_value(observer: Any) -> bool:
    """Whether everything that was seen is zero: any scale represents it."""
    return bool((observer.min_val == 0) & (observer.max_val == 0))


class MinMax(MinMaxObserver):
    """From the smallest to the largest value."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        _refuse_not_finite(self, x)
        return super().forward(x)

    def calculate_qparams(self) -> Any:
        if _one_value(self):
            return torch.tensor([1.0]), torch.tensor([0])
        return super().calculate_qparams()


class LeastSquares(HistogramObserver):
    """The range whose steps have the least squared error over a histogram."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        _refuse_not_finite(self, x)
        return super().forward(x)

    def calculate_qparams(self) -> Any:
        if _one_value(self):
            return torch.tensor([1.0]), torch.tensor([0])
        if self.min_val == self.max_val:
            return self._calculate_qparams(self.min_val, self.max_val)
        return super().calculate_qparams()


class Percentile(LeastSquares):
    """A range that leaves the outermost ``100 - percentile`` per cent out, half at each end.

    Values of one sign keep zero as their end and lose all of the share at the other.
    """

    def __init__(self, percentile: float = 99.99, **options: Any) -> None:
        super().__init__(**options)
        self.percentile = percentile

    def _non_linear_param_search(self) -> tuple[torch.Tensor, torch.Tensor]:
        width = (self.max_val - self.min_val) / self.bins
        cumulative = torch.cumsum(self.histogram.double(), 0) / self.histogram.double().sum()
        outside = 1 - self.percentile / 100
        sides = 2 if self.min_val < 0 < self.max_val else 1
        low = int(torch.searchsorted(cumulative, outside / sides, right=True))
        high = int(torch.searchsorted(cumulative, 1 - outside / sides))
        first = low if self.min_val < 0 else 0
        last = min(high, self.bins - 1) if self.max_val > 0 else self.bins - 1
        return self.min_val + width * first, self.min_val + width * (last + 1)


class Weights(PerChannelMinMaxObserver):
    """Symmetric range of each out_channel's weights as they are now; nothing is remembered.

    Parameters
    ----------
    search : bool
        Look for the end of the range with the least squared error, instead of the largest weight.
    """

    def __init__(self, *, search: bool = False, **options: Any) -> None:
        super().__init__(**options)
        self.search = search

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.reset_min_max_vals()
        super().forward(x)
        rows = x.detach().transpose(0, self.ch_axis).flatten(1)
        self._scale = _scales(rows, self.quant_max, search=self.search)
        return x

    def calculate_qparams(self) -> Any:
        return self._scale, torch.zeros(len(self._scale), dtype=torch.int64)


def _scales(rows: torch.Tensor, steps: int, *, search: bool) -> torch.Tensor:
    """float32 ``[out_channels]``: the value of a step; 1 for channels of zeros."""
    largest = rows.abs().amax(1)
    best = largest / steps
    if search and rows.numel():
        error = torch.full_like(best, torch.inf)
        for clip in _CLIPS.tolist():
            scale = (clip * largest / steps).clamp_min(torch.finfo(torch.float32).tiny)[:, None]
            rounded = (rows / scale).round().clamp(-steps, steps) * scale
            found = (rounded - rows).square().sum(1)
            better = found <= error
            error, best = torch.where(better, found, error), torch.where(better, scale[:, 0], best)
    return torch.where(best > torch.finfo(torch.float32).tiny, best, torch.ones_like(best))


class SettledRange(FakeQuantize):
    """Fake quantisation that first only looks, and once settled rounds by what it has seen."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.observer_enabled[0] == 1:
            self.activation_post_process(x.detach())
            return x
        return super().forward(x)

    def settle(self) -> None:
        """Fix the range."""
        scale, zero_point = self.calculate_qparams()
        self.scale.copy_(scale)
        self.zero_point.copy_(zero_point)
        self.disable_observer()


def activation_observer(calibration: Calibration, percentile: float) -> Any:
    """Constructor of the observer of activations."""
    if calibration == "percentile":
        return Percentile.with_args(percentile=percentile)
    return {"minmax": MinMax, "mse": LeastSquares}[calibration]
