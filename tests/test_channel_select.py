"""Concatenations, slices, splits and shuffles of channels: on planes, composed, and elsewhere."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import tvm
from conv_cases import from_planes, to_planes
from guards import run_guarded
from relax_oracle import check_against_torch, import_torch
from test_islands import laid_out, marker_names
from torch import nn

from relay_passes.report import ReportBuilder
from topi_kernels.backend import Backend
from topi_kernels.channel_select import channel_select, runs_of
from topi_kernels.layout import PlaneLayout
from topi_kernels.plane_ops import PlaneTarget


def conv(inputs: int, outputs: int, size: int = 3) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, size, padding=size // 2)


class Fire(nn.Module):
    """Branches of unlike padding, joined twice; a slice from the end."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = conv(4, 6, 1), conv(4, 6), conv(12, 4)
        self.last = conv(10, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.cat([self.a(x), self.b(x)], 1)
        z = torch.cat([self.c(y), y], 1)
        return nn.functional.max_pool2d(self.last(z[:, 2:-4]), 2)


class Shuffle(nn.Module):
    """A unit of ShuffleNet-V2."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.branch, self.last = conv(4, 12), conv(6, 6), conv(6, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        kept, other = self.first(x).chunk(2, 1)
        joined = torch.cat([kept, self.branch(other)], 1)
        n, c, h, w = joined.shape
        mixed = joined.view(n, 2, c // 2, h, w).transpose(1, 2).contiguous().view(n, c, h, w)
        kept, other = mixed.split([6, 6], 1)
        return torch.cat([kept, self.last(other)], 1)


CASES = {"fire": (Fire, 2), "shuffle": (Shuffle, 3)}


@pytest.mark.parametrize("name", CASES)
def test_they_stay_on_planes_and_are_composed(name: str) -> None:
    make, count = CASES[name]
    torch.manual_seed(0)
    model, x = make().eval(), torch.randn(2, 4, 9, 11)
    names = marker_names(
        laid_out(import_torch(model, x), Backend.named("x86-avx2"), ReportBuilder())
    )
    assert names.count("plane_select") == count
    assert (names.count("plane_pack"), names.count("plane_unpack")) == (1, 1)
    check_against_torch(model, x)


class Outside(nn.Module):
    """No convolution is near."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n, c, h, w = x.shape
        mixed = x.view(n, 3, c // 3, h, w).transpose(1, 2).contiguous().view(n, c, h, w)
        joined = torch.cat([mixed[:, 1:4], x[:, 2:5]], 1)
        return torch.cat([x[:, :2], x[:, 3:]], 1).exp() + joined[:, 1:].exp()


def test_outside_an_island_they_become_relax_operators_again() -> None:
    model, x = Outside(), torch.randn(2, 6, 3, 4)
    check_against_torch(model, x)
    mod = laid_out(import_torch(model, x), Backend.named("x86-avx2"), ReportBuilder())
    assert marker_names(mod) == []


@pytest.mark.parametrize("orders", ["plain", "interleaved", "mixed"])
def test_planes_of_any_layouts(orders: str) -> None:
    plain = PlaneLayout.make(5, 9, 1, 8)
    lanes = PlaneLayout.interleave(5, 9, 1, 8, 1, 1)
    a, b, out = {
        "plain": (plain, PlaneLayout.make(5, 9, 2, 8), plain),
        "interleaved": (lanes, PlaneLayout.interleave(5, 9, 0, 8, 1, 0), lanes),
        "mixed": (plain, lanes, lanes),
    }[orders]
    rng = np.random.default_rng(0)
    x, y = (rng.standard_normal((2, c, 5, 9)).astype("float32") for c in (4, 3))
    picks = ((0, 3), (1, 0), (0, 1), (1, 1), (1, 2), (0, 3))
    target = PlaneTarget("x86-avx2", 2)
    primfunc = channel_select(2, 6, (4, 3), (a, b), out, picks, target)
    func = tvm.tirx.build(primfunc, target=tvm.target.Target("llvm"))
    unwritten = np.full((2, 6, out.size), np.nan, "float32")
    result = run_guarded(func, to_planes(x, a), to_planes(y, b), unwritten)
    want = np.stack([(x, y)[i][:, c] for i, c in picks], 1)
    np.testing.assert_array_equal(from_planes(result, out), want)
    np.testing.assert_array_equal(result, to_planes(want, out))


def test_runs_cover_every_channel_once() -> None:
    shuffled = [(c % 2, c // 2) for c in range(12)]
    assert len(runs_of(shuffled)) == 2
    for picks in ([(0, 0)], shuffled, [(0, 3), (0, 3), (1, 0), (0, 2), (0, 1)]):
        found = {}
        for run in runs_of(picks):
            for i in range(run.count):
                found[run.out_first + i * run.out_step] = (run.source, run.first + i * run.step)
        assert [found[c] for c in range(len(picks))] == picks


def test_a_channel_without_a_pick_is_refused() -> None:
    layout = PlaneLayout.make(2, 2, 0)
    with pytest.raises(ValueError, match="3 out_channels need as many picks, got 1"):
        channel_select(1, 3, (3,), (layout,), layout, ((0, 0),), PlaneTarget("x86-avx2"))
