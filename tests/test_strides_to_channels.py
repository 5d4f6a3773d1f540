"""Convolutions of wide steps and of long rows, as convolutions of more channels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from relax_oracle import check_against_torch, import_torch
from torch import nn

from relay_passes.dataflow import op_name
from relay_passes.fold_constants import FoldConstants
from relay_passes.pipeline import marker_passes
from relay_passes.report import ReportBuilder
from relay_passes.strides_to_channels import LONGEST_ROW, StridesToChannels
from topi_kernels.backend import Backend
from topi_kernels.structure import Structure

#: Convolution, size of the image, what the convolution becomes: kernel and in_channels.
CASES = {
    "patches": (nn.Conv2d(3, 5, 8, 8), (32, 24), ((1, 1), 192)),
    "a part of a patch is left over": (nn.Conv2d(2, 4, 6, 6), (20, 15), ((1, 1), 72)),
    "steps wider than the kernel": (nn.Conv2d(2, 4, 3, 5, 1), (13, 17), ((1, 1), 50)),
    "overlapping": (nn.Conv2d(2, 4, (7, 3), (6, 2), (3, 1)), (20, 16), ((2, 2), 24)),
    "a long row": (nn.Conv2d(2, 4, (3, 39), 1, (1, 19)), (5, 50), ((3, 13), 6)),
    "a long row in steps": (nn.Conv2d(1, 4, (1, 40), (1, 2), (0, 7)), (1, 100), ((1, 10), 4)),
    "in steps of a filter bank": (nn.Conv2d(1, 4, (1, 256), (1, 64)), (1, 700), ((1, 4), 64)),
}


def rewritten(conv: nn.Conv2d, size: tuple[int, int], assigned: tuple[str, ...] = ()):
    """The convolution of the module, and the names of the layers that changed."""
    mod = FoldConstants()(import_torch(conv, torch.randn(2, conv.in_channels, *size)))
    origins: dict = {}
    mod = StridesToChannels(origins, assigned)(mod)
    calls = [b.value for block in mod["main"].body.blocks for b in block.bindings]
    (call,) = [c for c in calls if op_name(c) == "relax.nn.conv2d"]
    return call, origins


@pytest.mark.parametrize("name", CASES)
def test_they_become_others_that_compute_the_same(name: str) -> None:
    torch.manual_seed(0)
    conv, size, (kernel, in_channels) = CASES[name]
    call, origins = rewritten(conv, size)
    weight = [int(d) for d in call.args[1].ty.shape]
    assert weight == [conv.out_channels, in_channels, *kernel]
    (origin,) = origins.values()
    assert origin.kernel_size == conv.kernel_size
    assert origin.stride == conv.stride
    report = check_against_torch(conv.eval(), torch.randn(2, conv.in_channels, *size))
    (row,) = report.rows
    assert row.taken
    assert tuple(row.kernel_size) == conv.kernel_size
    assert row.dense_equivalent_gflop == pytest.approx(origin.flops / 1e9)


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(2, 4, 4, 4),
        nn.Conv2d(2, 4, (1, LONGEST_ROW)),
        nn.Conv2d(4, 4, 8, 8, groups=2),
        nn.Conv2d(2, 4, (1, 17), dilation=2),
    ],
)
def test_others_stay(conv: nn.Conv2d) -> None:
    call, origins = rewritten(conv, (32, 40))
    assert not origins
    assert [int(d) for d in call.args[1].ty.shape] == list(conv.weight.shape)


def test_an_assigned_layer_stays() -> None:
    conv = nn.Conv2d(2, 4, (1, 20), bias=False)
    _, origins = rewritten(conv, (3, 40))
    _, none = rewritten(conv, (3, 40), tuple(origins))
    assert (len(origins), len(none)) == (1, 0)
    (name,) = origins
    kept = Structure(np.ones((4, 2, 1, 20), bool), "assignment")
    report = ReportBuilder()
    mod = import_torch(conv, torch.randn(1, 2, 3, 40))
    for step in marker_passes(Backend.named("x86-avx2"), report, {name: kept}):
        mod = step(mod)
    assert report.row(name).taken
