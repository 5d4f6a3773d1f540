"""Cross-compiled operators and networks, executed as ARM code, against torch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conv_cases import ConvCase, from_planes, pattern_weights, to_planes
from torch import nn

import tvm_pattern as tp
from benchmarks import arm_emulation as arm
from benchmarks.arm_assembly import inner_loops
from relay_passes import pipeline, targets
from topi_kernels.devices import DEVICES
from tvm_pattern.frontend import import_model

CORES = ["cortex-a53", "cortex-a55", "cortex-a76", "cortex-x1", "neoverse-n1", "armv7"]


@pytest.mark.parametrize("core", CORES)
def test_network(core, tmp_path):
    """Pruned convolutions, residual, stride 2, depthwise, pooling and a dense layer."""
    torch.manual_seed(0)
    model = Network().eval()
    tp.pruning.oneshot(model, connectivity=2.0, group=1 if core == "cortex-a53" else 4)
    x = torch.randn(1, 3, 17, 20)
    target = targets.resolve(f"pattern/{core}")
    imported = import_model(model, (x,))
    lowered, report = pipeline.lower(imported.mod, target, num_threads=1)
    assert all(row.taken for row in report.rows)
    plan = arm.network_plan(lowered, [x.numpy()])
    library = arm.export(arm.primfuncs(lowered), target, tmp_path / "network.so")
    (got,), _ = arm.run(library, plan, target)
    with torch.no_grad():
        expected = model(x).numpy()
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


class Network(nn.Module):
    """Small, with every kind of layer that networks for phones are made of."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU6())
        self.down = nn.Conv2d(8, 16, 3, stride=2, padding=1)
        self.block = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.Hardswish())
        self.depthwise = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.point = nn.Conv2d(16, 24, 1)
        self.head = nn.Linear(24, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.down(self.stem(x)))
        x = torch.relu(self.block(x) + x)
        x = nn.functional.max_pool2d(torch.relu(self.depthwise(x)), 2)
        return self.head(self.point(x).mean((2, 3)))


@pytest.mark.parametrize(
    ("group", "core"), [(1, "cortex-a76"), (4, "cortex-a76"), (1, "cortex-a55")]
)
def test_no_more_multiply_adds_than_weights(group, core, tmp_path):
    """Executed FMLA: at most 5 % above kept weights x pixels / lanes, tails apart."""
    target = targets.resolve(f"pattern/{core}")
    case = ConvCase(28, 28, family=DEVICES.of(target).name)
    weight = pattern_weights(32, 32, group=group)
    plan = case.plan(weight)
    w, c = plan.workload, plan.config
    steps = arm.Plan()
    steps.constant(np.zeros((1, w.in_channels, w.in_layout.size), np.float32))
    for array in plan.arrays:
        steps.constant(array)
    if w.epilogue.bias:
        steps.constant(np.zeros(w.out_channels, np.float32))
    out = steps.empty((1, w.out_channels, w.out_layout.size), "float32")
    steps.call("pattern_conv2d", range(out + 1))
    library = arm.export(plan.primfunc(), target, tmp_path / "conv.so")
    _, counts = arm.run(library, steps, target, count=True)
    columns = -(-w.out_layout.width // c.pixel_lanes)
    tiles = -(-w.out_layout.height // c.tile_rows) * -(-columns // c.tile_cols)
    with_tails = np.count_nonzero(weight) * tiles * c.tile_rows * c.tile_cols // c.filter_lanes
    assert counts.fmla == with_tails
    assert counts.fmla <= 1.15 * np.count_nonzero(weight) * 28 * 28 / c.vector_width


@pytest.mark.parametrize("core", ["cortex-a76", "cortex-a55", "cortex-x1"])
def test_stride_two_separates_columns_once(core, tmp_path):
    """Lanes over pixels read neighbours: no shuffles and no spills among the multiply-adds."""
    target = targets.resolve(f"pattern/{core}")
    case = ConvCase(28, 26, stride=(2, 2), family=DEVICES.of(target).name, activation="relu")
    weight = pattern_weights(32, 32)
    plan = case.plan(weight)
    assert plan.config.shift == "split"
    for loop in inner_loops(arm.assembly(plan.primfunc(), target)):
        assert loop.stack == 0
        assert not any("uzp" in line or "ld2" in line for line in loop.lines)
    w, rng = plan.workload, np.random.default_rng(0)
    x = rng.standard_normal((1, 32, 28, 26)).astype(np.float32)
    bias = rng.standard_normal(32).astype(np.float32)
    steps = arm.Plan()
    for array in (to_planes(x, w.in_layout), *plan.arrays, bias):
        steps.constant(array)
    steps.outputs.append(steps.empty((1, 32, w.out_layout.size), "float32"))
    steps.call("pattern_conv2d", range(len(steps.tensors)))
    library = arm.export(plan.primfunc(), target, tmp_path / "conv.so")
    (planes,), _ = arm.run(library, steps, target)
    tensors = (torch.from_numpy(a) for a in (x, weight, bias))
    expected = torch.relu(torch.nn.functional.conv2d(*tensors, stride=2, padding=1))
    got = from_planes(planes, w.out_layout)
    np.testing.assert_allclose(got, expected.numpy(), rtol=1e-4, atol=1e-4)


def test_missing_emulator(monkeypatch):
    monkeypatch.setattr(arm.shutil, "which", lambda _: None)
    with pytest.raises(arm.EmulationError, match="apt-get install qemu-user gcc-aarch64"):
        arm.emulator("aarch64")


def test_program_that_fails(tmp_path):
    target = targets.resolve("pattern/cortex-a76")
    with pytest.raises(arm.EmulationError, match="cannot load"):
        arm.run(tmp_path / "missing.so", arm.Plan(), target)


def test_functions_that_need_the_runtime():
    torch.manual_seed(0)
    imported = import_model(nn.Conv2d(3, 4, 3).eval(), (torch.randn(1, 3, 8, 8),))
    with pytest.raises(arm.EmulationError, match="without TVM's runtime"):
        arm.network_plan(imported.mod, [np.zeros((1, 3, 8, 8), np.float32)])
