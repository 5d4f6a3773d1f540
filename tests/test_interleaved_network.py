"""Whole networks whose tensors have interleaved lanes, against torch."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import tvm_pattern as tp
from relay_passes import pipeline
from topi_kernels import layout_choice
from tvm_pattern.frontend import import_model


class Mixed(nn.Module):
    """Stride 1 and 2, a pool, a residual, a depthwise layer and a value used outside."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 16, 3, padding=1)
        self.second = nn.Conv2d(16, 16, 3, padding=1)
        self.third = nn.Conv2d(16, 16, 3, padding=1)
        self.pointwise = nn.Conv2d(16, 16, 1)
        self.strided = nn.Conv2d(16, 24, 3, stride=2, padding=1)
        self.depthwise = nn.Conv2d(24, 24, 3, padding=1, groups=24)
        self.last = nn.Conv2d(24, 24, 3, padding=1)
        self.pool = nn.MaxPool2d(2)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = self.pool(torch.relu(self.second(torch.relu(self.first(x)))))
        x = torch.relu(self.pointwise(self.third(x)) + x)
        y = self.last(torch.relu(self.depthwise(torch.relu(self.strided(x)))))
        return x, y.mean((2, 3))


@pytest.mark.parametrize("size", [20])
def test_a_network_on_interleaved_lanes_matches_torch(
    size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layout_choice, "CHANGE_COST", 0.0)
    monkeypatch.setattr(layout_choice, "LEAST_GAIN", 10.0)  # so small a network gains nothing
    torch.manual_seed(0)
    model = Mixed().eval()
    tp.pruning.oneshot(model, connectivity=2, skip=("first", "depthwise"))
    x = torch.randn(2, 3, size, size)
    target = "pattern/x86-avx2"
    imported = import_model(model, x)
    plain, _ = pipeline.lower(imported.mod, target, num_threads=1)
    moved, _ = pipeline.lower(imported.mod, target, num_threads=1, interleaved_lanes=True)
    changes = [
        sum("change_layout" in str(gv.name_hint) for gv in m.functions) for m in (plain, moved)
    ]
    assert changes[0] == 0
    assert changes[1] > 0
    library = tp.compile(model, x, target=target, num_threads=1, interleaved_lanes=True)
    for got, expected in zip(library(x), model(x), strict=True):
        torch.testing.assert_close(torch.from_numpy(got), expected, rtol=1e-5, atol=1e-5)
