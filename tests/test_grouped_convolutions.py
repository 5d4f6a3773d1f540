"""Grouped convolutions and strides up to 4 on the pattern-sparse operator, against torch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import tvm_pattern as tp
from topi_kernels.structure import over_all_channels
from tvm_pattern.pruning import oneshot


class Net(nn.Module):
    """Convolutions side by side, so that one compilation tries them all."""

    def __init__(self) -> None:
        super().__init__()
        self.grouped = nn.Conv2d(8, 12, 3, padding=1, groups=4)
        self.halved = nn.Conv2d(8, 8, 3, stride=2, groups=2, bias=False)
        self.point = nn.Conv2d(8, 16, 1, groups=2)
        self.patches = nn.Conv2d(8, 8, 4, stride=4)
        self.third = nn.Conv2d(8, 5, (5, 3), stride=(3, 1), padding=(2, 1))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(layer(x).relu() for layer in self.children())


def pruned() -> nn.Module:
    torch.manual_seed(1)
    net = Net().eval()
    oneshot(net, connectivity=2.0, group=2, skip=["patches", "third"], first="prune")
    return net


@pytest.mark.parametrize("make", [lambda: Net().eval(), pruned], ids=["dense", "pruned"])
def test_grouped_and_strided_convolutions_are_taken(make):
    torch.manual_seed(0)
    net = make()
    x = torch.randn(2, 8, 13, 14)
    library = tp.compile(net, x, num_threads=1, verify=False)
    with torch.no_grad():
        for got, want in zip(library(x), net(x), strict=True):
            np.testing.assert_allclose(got, want.numpy(), atol=1e-5)
    rows = {row.layer: row for row in library.report.rows}
    assert all(row.taken for row in rows.values())
    grouped = rows["grouped"]
    kept = float((net.grouped.weight != 0).float().mean())
    # The zeros between groups are no sparsity, and no work that a dense engine would do.
    assert grouped.sparsity == pytest.approx(1 - kept)
    assert grouped.dense_equivalent_gflop == pytest.approx(2 * 2 * 12 * 2 * 9 * 13 * 14 / 1e9)
    assert grouped.effective_gflop == pytest.approx(grouped.dense_equivalent_gflop * kept)
    if kept < 1:
        assert kept == pytest.approx(4 / 9 / 2)
        assert rows["grouped"].structure == "assignment"


def test_weights_over_all_channels_compute_the_grouped_convolution():
    torch.manual_seed(0)
    conv = nn.Conv2d(6, 9, 3, groups=3, bias=False)
    full = over_all_channels(conv.weight.detach().numpy(), 3)
    x = torch.randn(1, 6, 5, 7)
    got = nn.functional.conv2d(x, torch.from_numpy(full))
    torch.testing.assert_close(got, conv(x))
    assert full.shape == (9, 6, 3, 3)
    assert np.count_nonzero(full) == conv.weight.numel()
