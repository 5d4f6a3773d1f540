"""Networks in float16: compiled for cores that compute in it, executed as ARM code."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import tvm_pattern as tp
from benchmarks import arm_emulation as arm
from relay_passes import pipeline, targets
from topi_kernels.backend import Backend
from tvm_pattern.frontend import import_model


class Network(nn.Module):
    """Every kind of layer that networks for phones are made of."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU6())
        self.down = nn.Conv2d(16, 32, 3, stride=2, padding=1)
        self.block = nn.Sequential(nn.Conv2d(32, 32, 3, padding=1), nn.Hardswish())
        self.depthwise = nn.Conv2d(32, 32, 3, padding=1, groups=32)
        self.point = nn.Conv2d(32, 24, 1)
        self.head = nn.Linear(24, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.down(self.stem(x)))
        x = torch.relu(self.block(x) + x)
        x = nn.functional.max_pool2d(torch.relu(self.depthwise(x)), 3, 2, 1)
        x = nn.functional.avg_pool2d(self.point(x), 2)
        return self.head(x.mean((2, 3)))


def network(group: int) -> nn.Module:
    torch.manual_seed(0)
    model = Network().eval()
    tp.pruning.oneshot(model, connectivity=2.0, group=group)
    return model.half()


def run(model: nn.Module, x: torch.Tensor, core: str, folder, *, count: bool = False):
    """``(output, counts, lowered module)`` of a model executed as code for ``core``."""
    target = targets.resolve(f"pattern/{core}")
    imported = import_model(model, (x,))
    lowered, report = pipeline.lower(imported.mod, target, num_threads=1)
    assert all(row.taken for row in report.rows), report
    plan = arm.network_plan(lowered, [x.numpy()])
    library = arm.export(arm.primfuncs(lowered), target, folder / f"{x.dtype}.so")
    (got,), counts = arm.run(library, plan, target, count=count)
    return got, counts


@pytest.mark.parametrize(
    ("core", "group"), [("cortex-a76", 1), ("cortex-a76", 4), ("cortex-a55", 4)]
)
def test_network(core, group, tmp_path):
    model = network(group)
    x = torch.randn(1, 3, 21, 18).half()
    got, _ = run(model, x, core, tmp_path)
    assert got.dtype == np.float16
    with torch.no_grad():
        expected = model.double()(x.double()).numpy()
    # Five layers in a row, of up to 16 kept kernels of 4 taps; roundings add up like random ones,
    # in each sum and from layer to layer.
    tolerance = 2.0**-11 * np.sqrt(5 * 4 * 16) * np.abs(expected).max()
    np.testing.assert_allclose(got, expected, rtol=0, atol=tolerance)


def test_half_the_multiply_adds(tmp_path):
    """Eight lanes instead of four: of the sparse convolutions' FMLA half are left."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1)
    )
    tp.pruning.oneshot(model.eval(), connectivity=2.0, group=4)
    x = torch.randn(1, 16, 16, 16)
    _, single = run(model, x, "cortex-a76", tmp_path, count=True)
    _, half = run(model.half(), x.half(), "cortex-a76", tmp_path, count=True)
    assert half.fmla == single.fmla / 2
    assert half.total < 0.8 * single.total


@pytest.mark.parametrize(
    ("core", "reason"),
    [
        ("cortex-a53", "float16 arithmetic needs ARMv8.2 (fullfp16), which cortex-a53 lacks"),
        ("cortex-a72", "which cortex-a72 lacks; compile the model in float32"),
        ("armv7", "float16 has no schedules for the device 'armv7-neon'"),
        ("x86-avx512", "float16 has no schedules for the device 'x86-avx512'"),
    ],
)
def test_cores_without_float16(core, reason):
    target = targets.resolve(f"pattern/{core}")
    assert reason in Backend.of(target).no_float16
    x = torch.randn(1, 3, 9, 8).half()
    _, report = pipeline.lower(import_model(network(4), (x,)).mod, target, num_threads=1)
    assert not report.taken
    assert all(reason in row.reason for row in report.skipped)


def test_float16_that_is_left_to_tvm():
    """Where the operator does not compute in float16, TVM's own convolutions do."""
    model = network(4)
    x = torch.randn(1, 3, 9, 8).half()
    library = tp.compile(model, x, target="pattern/native", num_threads=1)
    assert not library.report.taken
    with torch.no_grad():
        expected = model.double()(x.double()).numpy()
    tolerance = 2.0**-11 * np.sqrt(5 * 4 * 16) * np.abs(expected).max()
    np.testing.assert_allclose(library(x), expected, rtol=0, atol=tolerance)
