"""NaN and infinities through networks executed as ARM code, in float32 and float16."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from benchmarks import arm_emulation as arm
from relay_passes import pipeline, targets
from tvm_pattern.frontend import import_model

NAN, INF = float("nan"), float("inf")


class Network(nn.Module):
    """The activations and windows of islands; dense, so that torch's NaN go where ours do."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU6())
        self.block = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.Hardswish())
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.gate = nn.Sequential(nn.Conv2d(8, 8, 1), nn.SiLU())
        self.point = nn.Conv2d(8, 8, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        x = torch.relu(self.block(x) + x)
        x = F.max_pool2d(torch.relu(self.depthwise(x)), 3, 2, 1)
        x = F.hardtanh(self.gate(x))
        return F.avg_pool2d(torch.sigmoid(self.point(x)), 2)


@pytest.mark.parametrize(
    ("core", "dtype"),
    [
        ("cortex-a76", torch.float32),
        ("armv7", torch.float32),
        ("cortex-a55", torch.float16),
    ],
)
def test_network(core, dtype, tmp_path):
    torch.manual_seed(0)
    model = Network().eval().to(dtype)
    x = torch.randn(1, 3, 42, 45).to(dtype)
    x[0, 1, 20, 31], x[0, 0, 0, 0], x[0, 2, 41, 44] = NAN, INF, -INF
    target = targets.resolve(f"pattern/{core}")
    lowered, report = pipeline.lower(import_model(model, (x,)).mod, target, num_threads=1)
    assert all(row.taken for row in report.rows)
    plan = arm.network_plan(lowered, [x.numpy()])
    library = arm.export(arm.primfuncs(lowered), target, tmp_path / "network.so")
    (got,), _ = arm.run(library, plan, target)
    with torch.no_grad():
        want = model.double()(x.double()).numpy()
    assert np.isnan(want).any()
    assert not np.isnan(want).all()
    np.testing.assert_array_equal(np.isnan(got), np.isnan(want))
    tolerance = 1e-5 if dtype == torch.float32 else 2.0**-11 * 8
    np.testing.assert_allclose(got, want, rtol=tolerance, atol=tolerance)
