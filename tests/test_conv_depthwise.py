"""A convolution and the depthwise one that alone reads it: one operator, where L2 is too small."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import tvm
from relax_oracle import check_against_torch, import_torch
from torch import nn

import tvm_pattern as tp
from relay_passes import pipeline, targets
from relay_passes.islands.conv_depthwise import TOGETHER
from topi_kernels.backend import default_layout
from topi_kernels.conv_task import ConvTask
from topi_kernels.devices import DEVICES
from topi_kernels.geometry import ConvGeometry
from topi_kernels.layout import PlaneLayout, from_planes, to_planes
from topi_kernels.operator import plan_conv
from topi_kernels.plane_ops import PlaneTarget
from topi_kernels.schedules import conv_depthwise
from topi_kernels.schedules.conv_depthwise import (
    DepthwiseStage,
    groups_together,
    schedule_conv_depthwise,
    why_not_followed,
)
from topi_kernels.workload import Epilogue

FAMILY = "x86-avx2"
HOST = targets.resolve("pattern/x86-avx2")


def sparse(rng, out_channels, in_channels, size, group):
    """Half of the kernels, the same for neighbouring filters; all of them for groups of 4."""
    weight = rng.standard_normal((out_channels, in_channels, size, size)).astype("float32")
    if group == 4:
        return weight
    kept = rng.permutation(-(-out_channels // group) * in_channels) % 2 == 0
    kept = kept.reshape(-1, in_channels).repeat(group, 0)[:out_channels]
    kept[:, -1] = False
    return weight * kept[:, :, None, None]


def configs_by_body(task, plan, group):
    """The cheapest configuration of each body that another convolution can follow."""
    fitting = [
        config
        for config in task.configs()
        if config.group == group and why_not_followed(plan.workload, config) is None
    ]
    return {c.body: c for c in sorted(fitting, key=task.cost, reverse=True)}


@pytest.mark.parametrize(
    ("kernel", "stride", "window", "step", "group", "filters", "together", "threads"),
    [
        (1, 1, 3, 2, 1, 6, 4, 1),  # the last share has two filters
        (1, 1, 5, 1, 4, 10, 2, 2),  # the last filter_group is half empty
        (3, 2, 3, 1, 1, 5, 1, 1),  # an input that is separated first
    ],
)
def test_both_are_what_torch_computes(
    kernel, stride, window, step, group, filters, together, threads
):
    rng = np.random.default_rng(0)
    size, middle = 18, 18 // stride
    geometry = ConvGeometry(*((n, n) for n in (kernel, stride, kernel // 2)))
    follows = ConvGeometry(*((n, n) for n in (window, step, window // 2)))
    end = -(-middle // step)
    layouts = [
        default_layout(n, n, pad, FAMILY)
        for n, pad in ((size, kernel // 2), (middle, window // 2), (end, 1))
    ]
    weight = sparse(rng, filters, 4, kernel, group)
    task = ConvTask.from_weight(
        weight,
        geometry,
        layouts[0],
        layouts[1],
        family=FAMILY,
        batch=2,
        epilogue=Epilogue(bias=True, activation="relu6"),
    )
    kernels, bias, last_bias = (
        rng.standard_normal(shape).astype("float32")
        for shape in ((filters, window, window), filters, filters)
    )
    x = rng.standard_normal((2, 4, size, size)).astype("float32")
    tensors = map(torch.from_numpy, (x, weight, bias))
    between = F.relu6(F.conv2d(*tensors, stride=stride, padding=kernel // 2))
    want = F.silu(
        F.conv2d(
            between,
            torch.from_numpy(kernels)[:, None],
            torch.from_numpy(last_bias),
            stride=step,
            padding=window // 2,
            groups=filters,
        )
    ).numpy()
    stage = DepthwiseStage(follows, layouts[2], Epilogue(bias=True, activation="silu"))
    found = configs_by_body(task, plan_conv(task, weight), group)
    assert set(found) == ({"patterns", "taps"} if (kernel, group) == (1, 1) else {"patterns"})
    for config in found.values():
        plan = plan_conv(task, weight, config)
        target = PlaneTarget(FAMILY, threads)
        primfunc = schedule_conv_depthwise(plan.workload, config, stage, target, together)
        function = tvm.tirx.build(primfunc, target=HOST)
        shape = (2, filters, layouts[2].size)
        out = tvm.runtime.tensor(np.full(shape, np.nan, "float32"))
        inputs = [to_planes(x, layouts[0]), *plan.arrays, bias, kernels, last_bias]
        function(*map(tvm.runtime.tensor, inputs), out)
        got = out.numpy()
        np.testing.assert_allclose(from_planes(got, layouts[2]), want, rtol=0, atol=2e-5)
        halo = to_planes(np.ones_like(want), layouts[2]) == 0
        assert (got[halo] == 0).all()


def test_what_cannot_be_followed_is_refused():
    weight = sparse(np.random.default_rng(0), 8, 8, 1, 1)
    layout = default_layout(14, 14, 1, FAMILY)
    task = ConvTask.from_weight(
        weight, ConvGeometry((1, 1), (1, 1), (0, 0)), layout, layout, family=FAMILY
    )
    plan = plan_conv(task, weight)
    config = replace(plan.config, channel_block=0, body="patterns")
    stage = DepthwiseStage(ConvGeometry((3, 3), (1, 1), (1, 1)), layout)
    blocks = replace(config, channel_block=4)
    with pytest.raises(ValueError, match="all filters take turns over one block"):
        schedule_conv_depthwise(plan.workload, blocks, stage, PlaneTarget(FAMILY))
    reasons = {
        "float16": replace(plan.workload, dtype="float16"),
        "residual": replace(
            plan.workload, epilogue=Epilogue(residual=True), residual_layout=layout
        ),
        "plain rows": replace(plan.workload, out_layout=PlaneLayout.interleave(14, 14, 1, 8, 2, 0)),
    }
    for expected, workload in reasons.items():
        assert expected in (why_not_followed(workload, config) or "")
    narrow = replace(stage, geometry=ConvGeometry((7, 7), (1, 1), (3, 3)))
    with pytest.raises(ValueError, match="padded by 1 rows, 3 are read"):
        schedule_conv_depthwise(plan.workload, config, narrow, PlaneTarget(FAMILY))


def test_planes_of_a_task_fit_a_part_of_l2_and_leave_work_for_all_threads():
    layout = PlaneLayout.make(112, 112, 0)
    weight = sparse(np.random.default_rng(0), 96, 16, 1, 1)
    task = ConvTask.from_weight(
        weight, ConvGeometry((1, 1), (1, 1), (0, 0)), layout, layout, family=FAMILY
    )
    workload, family = plan_conv(task, weight).workload, DEVICES.facts(FAMILY)
    quarter = replace(family, l2_floats=4 * 10 * layout.size)
    assert groups_together(workload, 1, quarter, 1) == 10
    assert groups_together(workload, 4, quarter, 1) == 2
    assert groups_together(workload, 1, replace(family, l2_floats=1), 1) == 1
    assert groups_together(workload, 1, replace(family, l2_floats=1 << 40), 1) == 96
    assert groups_together(workload, 1, replace(family, l2_floats=1 << 40), 8) == 3


class Inverted(nn.Module):
    """A residual block whose wide planes exceed L2, or not; optionally they are read twice."""

    def __init__(self, size, twice=False):
        super().__init__()
        self.size, self.twice = size, twice
        self.first = nn.Conv2d(4, 8, 3, padding=1)
        self.wide = nn.Conv2d(8, 48, 1)
        self.depthwise = nn.Conv2d(48, 48, 3, stride=2, padding=1, groups=48)
        self.narrow = nn.Conv2d(48, 8, 1)
        tp.pruning.oneshot(self, connectivity=2.0, connectivity_1x1=2.0)

    def forward(self, x):
        wide = F.relu6(self.wide(F.relu6(self.first(x))))
        y = self.narrow(F.relu6(self.depthwise(wide)))
        return y + self.narrow(F.max_pool2d(wide, 2)) if self.twice else y

    def example(self, batch=1):
        values = np.random.default_rng(0).standard_normal((batch, 4, self.size, self.size), "f4")
        return torch.from_numpy(values)


def together(report):
    return [row.layer for row in report.rows if row.reason == TOGETHER]


@pytest.mark.parametrize(
    ("size", "twice", "expected"), [(96, False, 1), (32, False, 0), (96, True, 0)]
)
def test_which_convolutions_become_one_operator(size, twice, expected):
    torch.manual_seed(0)
    model = Inverted(size, twice).eval()
    mod, report = pipeline.lower(
        import_torch(model, model.example()), "pattern/x86-avx2", num_threads=1
    )
    names = {gv.name_hint for gv in mod.get_global_vars()}
    assert len(together(report)) == expected
    assert (conv_depthwise.NAME in names) == bool(expected)
    assert any(n.startswith("plane_depthwise") for n in names) != bool(expected)


@pytest.mark.parametrize("threads", [1, 2])
def test_a_network_with_them_equals_torch(threads):
    torch.manual_seed(0)
    model = Inverted(96).eval()
    report = check_against_torch(
        model, model.example(2), target="pattern/x86-avx2", num_threads=threads
    )
    assert len(together(report)) == 1
