"""Whole networks whose tensors have interleaved lanes, against torch."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import tvm_pattern as tp
from relay_passes import pipeline
from relay_passes.targets import resolve
from topi_kernels import layout_choice
from topi_kernels.conv_task import ConvTask
from tvm_pattern.frontend import import_model
from tvm_pattern.lanes import Lanes
from tvm_pattern.tuning.tasks import extract_tasks


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
    plain, _ = pipeline.lower(imported.mod, target, num_threads=1, interleaved_lanes=False)
    moved, _ = pipeline.lower(imported.mod, target, num_threads=1, interleaved_lanes=True)
    changes = [
        sum("change_layout" in str(gv.name_hint) for gv in m.functions) for m in (plain, moved)
    ]
    assert changes[0] == 0
    assert changes[1] > 0
    library = tp.compile(model, x, target=target, num_threads=1, interleaved_lanes=True)
    for got, expected in zip(library(x), model(x), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


def test_tuning_asks_for_the_layouts_that_compiling_will() -> None:
    """At F = 1 in 56x56 AVX-512 gets interleaved lanes by itself; records hold that layout."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU()
    ).eval()
    tp.pruning.oneshot(model, connectivity=2)
    mod, target = import_model(model, torch.randn(1, 8, 56, 56)).mod, resolve("pattern/x86-avx512")
    keys = {}
    for asked in (None, True, False):
        tasks = [w.task for w in extract_tasks(mod, target, interleaved_lanes=asked)]
        seen: list[ConvTask] = []
        pipeline.lower(mod, target, num_threads=1, config_for=seen.append, interleaved_lanes=asked)
        keys[asked] = [task.key for task in tasks]
        assert keys[asked] == [task.key for task in seen]
        assert all(task.in_layout.is_interleaved is (asked is not False) for task in tasks)
        assert all(ConvTask.from_dict(task.as_dict()) == task for task in tasks)
    assert keys[None] == keys[True]
    assert not set(keys[None]) & set(keys[False])


@pytest.mark.parametrize(
    ("name", "choice"), [("auto", None), ("plain", False), ("interleaved", True)]
)
def test_the_command_line_names_the_switch(name: str, choice: bool | None) -> None:
    assert Lanes(name).choice is choice
