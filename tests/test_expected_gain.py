"""Which layers are compiled dense although they were pruned, and what is expected of the others."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import tvm_pattern as tp
from topi_kernels.conv_task import ConvTask
from topi_kernels.expected_gain import better_dense, dense_task, expected
from topi_kernels.geometry import ConvGeometry
from topi_kernels.layout_choice import default_layout
from topi_kernels.report import LayerRow, RewriteReport
from tvm_pattern.pruning import Rule

FAMILY = "x86-avx2"


def task_of(out_channels, in_channels, size, density, group=1, stride=1, kernel=1):
    rng = np.random.default_rng(0)
    kept = rng.random((out_channels // group, in_channels)) < density
    kept = np.repeat(kept, group, 0)[:, :, None, None]
    weight = kept * np.ones((1, 1, kernel, kernel), "float32")
    pad = kernel // 2
    geometry = ConvGeometry((kernel, kernel), (stride, stride), (pad, pad), (1, 1))
    source = default_layout(size, size, pad, FAMILY)
    result = default_layout(size // stride, size // stride, 0, FAMILY)
    return ConvTask.from_weight(weight, geometry, source, result, family=FAMILY)


def test_dense_task_has_every_weight_and_the_same_place():
    task = task_of(64, 32, 14, 0.25, kernel=3)
    whole = dense_task(task)
    assert (whole.structure, whole.density, whole.max_group) == ("dense", 1.0, 32)
    assert (whole.in_layout, whole.out_layout) == (task.in_layout, task.out_layout)
    from_weight = ConvTask.from_weight(
        np.ones(task.weight_shape, "float32"),
        task.geometry,
        task.in_layout,
        task.out_layout,
        family=FAMILY,
    )
    assert whole == from_weight


def test_dense_task_of_groups_is_that_of_the_groups():
    task = task_of(64, 32, 14, 0.05)
    whole = dense_task(task, 64 * 32 // 4)  # four groups
    assert (whole.structure, whole.max_group) == ("pattern", 16)
    assert whole.kept_kernels == 64 * 8
    assert better_dense(task, 64 * 32 // 4) is None


def test_expected_gain_is_the_ratio_of_the_costs():
    task = task_of(256, 256, 14, 0.25, group=4)
    config = task.default_config()
    found = expected(task, config)
    whole = dense_task(task)
    assert found.cost == task.cost(config)
    assert found.gain == whole.cost(whole.default_config()) / task.cost(config)
    assert found.gain > 2


@pytest.mark.parametrize("factor", [0.75, 0.9, 1.1])
def test_dense_is_compiled_where_it_wins_clearly(factor, monkeypatch):
    task = task_of(256, 256, 14, 0.25)
    sparse, cost = task.cost(task.default_config()), ConvTask.cost
    whole = dense_task(task)
    scale = factor * sparse / whole.cost(whole.default_config())
    monkeypatch.setattr(
        ConvTask,
        "cost",
        lambda self, config: cost(self, config) * (scale if self.structure == "dense" else 1),
    )
    assert better_dense(task) == (whole if factor < 0.8 else None)


def pruned_network():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 1),
        nn.Conv2d(32, 32, 3, padding=1, groups=2),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(128, 64),
    ).eval()
    tp.pruning.oneshot(model, connectivity_1x1=2.0, group=4, rules=[Rule(type="linear")])
    return model


def test_a_layer_that_loses_is_compiled_dense_and_says_so(monkeypatch, recwarn):
    model, x = pruned_network(), torch.randn(1, 3, 12, 12)
    cost = ConvTask.cost
    monkeypatch.setattr(
        ConvTask,
        "cost",
        lambda self, config: cost(self, config) * (0.01 if self.structure == "dense" else 1),
    )
    lib = tp.compile(model, (x,), target="pattern/x86-avx2", num_threads=1)
    rows = {row.layer: row for row in lib.report}
    assert rows["2"].reason == (
        "expected to be slower pruned than dense: 50% of the weights are removed, which is too"
        " little here; all are computed"
    )
    assert (rows["2"].taken, rows["2"].expected_gain) == (True, 1.0)
    assert rows["2"].structure == "assignment"
    assert rows["2"].effective_gflop == rows["2"].dense_equivalent_gflop
    assert rows["3"].reason == ""  # groups have no dense form of their own
    assert not [w for w in recwarn if "pruning" in str(w.message)]
    with torch.no_grad():
        torch.testing.assert_close(torch.as_tensor(lib(x.numpy())), model(x), rtol=1e-4, atol=1e-5)


def test_report_says_what_is_expected():
    model, x = pruned_network(), torch.randn(1, 3, 12, 12)
    lib = tp.compile(model, (x,), target="pattern/x86-avx2", num_threads=1, verify=False)
    rows = {row.layer: row for row in lib.report}
    assert all(row.expected_gain > 0 and row.expected_cost > 0 for row in rows.values())
    assert rows["0"].expected_gain > 1.2
    total = sum(r.expected_cost for r in rows.values())
    dense = sum(r.expected_cost * r.expected_gain for r in rows.values())
    assert lib.report.expected_gain == pytest.approx(dense / total)
    text = str(lib.report)
    assert f"{lib.report.expected_gain:.2f}x of the same 4 layers compiled dense" in text
    assert "expected" in text.splitlines()[2]
    again = RewriteReport.from_json(lib.report.to_json())
    assert again.expected_gain == lib.report.expected_gain


def test_a_report_without_estimates_says_nothing():
    report = RewriteReport((LayerRow("conv", "nn.conv2d", True),))
    assert report.expected_gain == 0
    assert not report.lines()
    lost = RewriteReport(
        (
            LayerRow("a", "nn.conv2d", True, expected_gain=0.5, expected_cost=2.0),
            LayerRow("b", "nn.conv2d", True, expected_gain=2.0, expected_cost=1.0),
        )
    )
    assert lost.expected_gain == 1.0
    assert lost.lines() == [
        "expected by the cost model, before any timing: 1.00x of the same 2 layers compiled dense;"
        " 1 of them are expected to lose"
    ]
