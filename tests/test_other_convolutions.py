"""Transposed and 1-D convolutions as ordinary ones, against torch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import tvm_pattern as tp
from relay_passes import pipeline, targets
from relay_passes.transposed_by_phases import phase_weights
from tvm_pattern.frontend import import_model


def compiled(net: nn.Module, x: torch.Tensor):
    """A library, after its outputs were compared."""
    library = tp.compile(net, x, num_threads=1, verify=False)
    with torch.no_grad():
        want = net(x)
    got = library(x)
    if isinstance(want, torch.Tensor):
        want, got = (want,), (got,)
    for mine, theirs in zip(got, want, strict=True):
        np.testing.assert_allclose(mine, theirs.numpy(), atol=2e-5)
    return library


def randomise(net: nn.Module) -> nn.Module:
    """Batch norms that are not the identity."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.normal_(module.running_mean)
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
    return net.eval()


@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "more", "groups"),
    [
        (2, 2, 0, 0, 1),
        (4, 2, 1, 0, 1),
        (3, 2, 1, 1, 2),
        (5, (3, 2), (2, 1), (1, 0), 1),
        (2, 3, 0, 2, 1),  # pixels without any tap
        (3, 1, 1, 0, 1),
        (4, 2, 3, 0, 4),  # cropped by more than a pixel of the input
    ],
)
def test_phases_are_the_transposed_convolution(kernel, stride, padding, more, groups):
    torch.manual_seed(0)
    conv = nn.ConvTranspose2d(4, 8, kernel, stride, padding, more, groups=groups, bias=False)
    sh, sw = conv.stride
    x = torch.randn(2, 4, 5, 6)
    phases = torch.from_numpy(phase_weights(conv.weight.detach().numpy(), groups, (sh, sw)))
    th, tw = phases.shape[2:]
    full = F.conv2d(F.pad(x, (tw - 1, 9, th - 1, 9)), phases, groups=groups)
    pixels = full.unflatten(1, (8, sh, sw)).permute(0, 1, 4, 2, 5, 3).flatten(4, 5).flatten(2, 3)
    want = conv(x)
    top, left = conv.padding
    got = pixels[:, :, top : top + want.shape[2], left : left + want.shape[3]]
    torch.testing.assert_close(got, want)


class Upward(nn.Module):
    """Transposed convolutions side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.twice = nn.Sequential(
            nn.ConvTranspose2d(8, 6, 2, 2), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 3)
        )
        self.smooth = nn.ConvTranspose2d(8, 8, 4, 2, 1, bias=False)
        self.odd = nn.ConvTranspose2d(8, 5, 3, 2, 1, 1)
        self.grouped = nn.ConvTranspose2d(8, 8, 3, (3, 2), (0, 1), groups=2)
        self.depthwise = nn.ConvTranspose2d(8, 8, 4, 2, 1, groups=8)
        self.dilated = nn.ConvTranspose2d(8, 4, 2, 2, dilation=2)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(layer(x) for layer in self.children())


def test_transposed_convolutions_are_taken():
    torch.manual_seed(0)
    net = randomise(Upward())
    library = compiled(net, torch.randn(2, 8, 7, 6))
    rows = {row.layer: row for row in library.report.rows}
    assert not rows["dilated"].taken
    assert "transposed" in rows["dilated"].reason
    assert all(row.taken for name, row in rows.items() if name != "dilated")
    odd = rows["odd"]
    assert (odd.op, odd.kernel_size, odd.stride) == ("nn.conv2d_transpose", (3, 3), (2, 2))
    assert (odd.in_shape, odd.out_shape) == ((2, 8, 7, 6), (2, 5, 14, 12))
    assert odd.sparsity == 0  # the zeros that complete a phase are none of the layer's
    assert odd.reason == "not pruned: runs dense in the same operator"
    assert odd.dense_equivalent_gflop == pytest.approx(2 * 2 * 42 * 8 * 5 * 9 / 1e9)
    assert odd.effective_gflop == odd.dense_equivalent_gflop


class Tail(nn.Module):
    """A transposed convolution whose bias and activation are applied to its phases, or are not."""

    def __init__(self, *, used_twice: bool) -> None:
        super().__init__()
        self.up = nn.Sequential(nn.ConvTranspose2d(4, 6, 4, 2, 1), nn.BatchNorm2d(6))
        self.used_twice = used_twice

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.up(x)
        return torch.sigmoid(y) * y if self.used_twice else torch.sigmoid(y)


@pytest.mark.parametrize("used_twice", [False, True])
def test_bias_and_activation_come_before_the_interleaving(used_twice):
    torch.manual_seed(0)
    library = compiled(randomise(Tail(used_twice=used_twice)), torch.randn(1, 4, 5, 6))
    names = [step["op"] for step in library.manifest.steps]
    before = names[: next(i for i, name in enumerate(names) if "pixel_shuffle" in name)]
    assert any("sigmoid" in name for name in before) != used_twice


def test_zeros_of_a_transposed_convolution_are_not_multiplied():
    torch.manual_seed(0)
    net = nn.ConvTranspose2d(8, 8, 4, 2, 1).eval()
    with torch.no_grad():
        net.weight[::2, 1::2] = 0
    library = compiled(net, torch.randn(1, 8, 6, 6))
    (row,) = library.report.rows
    assert row.sparsity == pytest.approx(0.25)
    assert row.effective_gflop == pytest.approx(row.dense_equivalent_gflop * 0.75)


class Audio(nn.Module):
    """A chain of 1-D convolutions as in networks for sound."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv1d(4, 8, 7, stride=2, padding=3)
        self.norm = nn.BatchNorm1d(8)
        self.wide = nn.Conv1d(8, 8, 3, padding=4, dilation=4)
        self.gate = nn.Conv1d(8, 8, 3, padding=4, dilation=4)
        self.depth = nn.Conv1d(8, 8, 5, padding=2, groups=8)
        self.point = nn.Conv1d(8, 6, 1)
        self.up = nn.ConvTranspose1d(6, 4, 4, stride=2, padding=1)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = F.relu(self.norm(self.stem(x)))
        x = x + torch.tanh(self.wide(x)) * torch.sigmoid(self.gate(x))
        x = F.max_pool1d(self.depth(x), 3, 2, 1)
        return self.up(self.point(x)), x.mean(2)


def test_one_dimensional_convolutions_are_taken():
    torch.manual_seed(0)
    net = randomise(Audio())
    with torch.no_grad():
        net.wide.weight[:, ::2] = 0
        net.wide.weight[:, :, 1] = 0
    library = compiled(net, torch.randn(2, 4, 41))
    rows = {row.layer: row for row in library.report.rows}
    assert list(rows) == ["stem", "wide", "gate", "depth", "point", "up"]
    assert all(row.taken for row in rows.values())
    assert rows["wide"].sparsity == pytest.approx(1 - 1 / 2 * 2 / 3)
    assert rows["stem"].kernel_size == (1, 7)


class FarApart(nn.Module):
    """Kernels whose taps lie further apart than the map is long, along and across rows."""

    def __init__(self) -> None:
        super().__init__()
        self.line = nn.Conv1d(3, 16, 3, padding=40, dilation=40)
        self.near = nn.Conv1d(16, 16, 3, padding=1)
        self.across = nn.Conv2d(16, 16, (3, 1), padding=(9, 0), dilation=(9, 1))
        self.along = nn.Conv2d(16, 16, (1, 3), padding=(0, 33), dilation=(1, 33))
        self.both = nn.Conv2d(16, 8, 3, padding=(2, 11), dilation=(2, 11))
        self.depth = nn.Conv2d(8, 8, (1, 5), padding=(0, 14), dilation=(1, 7), groups=8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.near(F.relu(self.line(x))))
        x = F.relu(self.across(x.unflatten(2, (4, 8))))
        return self.depth(self.both(x + self.along(x)))


@pytest.mark.parametrize("density", [1.0, 0.5])
def test_dilation_larger_than_the_map(density):
    torch.manual_seed(0)
    net = FarApart().eval()
    with torch.no_grad():
        for layer in net.children():
            layer.weight *= torch.rand(layer.weight.shape[:2] + (1,) * (layer.weight.ndim - 2)) < (
                density
            )
    library = compiled(net, torch.randn(2, 3, 32))
    assert all(row.taken for row in library.report.rows)


def test_kernels_wider_than_the_registers_are_scheduled():
    """A filter bank of long kernels; a step of the body holds a part of them."""
    torch.manual_seed(0)
    library = compiled(nn.Conv1d(2, 3, 40, padding=5, bias=False).eval(), torch.randn(1, 2, 60))
    assert library.report.rows[0].taken
    assert library.report.rows[0].config["taps_per_step"] <= 16


@pytest.mark.parametrize("tag", ["x86-avx512", "x86-avx2", "cortex-a76", "armv7", "generic"])
@pytest.mark.parametrize("width", [9, 14, 16, 40])
def test_wide_kernels_have_a_configuration_everywhere(tag, width):
    """Built only: each has its own number of registers."""
    net, x = nn.Conv1d(2, 3, width, padding=5, bias=False).eval(), torch.randn(1, 2, 60)
    target = {"kind": "llvm"} if tag == "generic" else f"pattern/{tag}"
    mod, _ = pipeline.lower(import_model(net, x).mod, targets.resolve(target), num_threads=1)
    assert any("pattern_conv" in gv.name_hint for gv in mod.functions)
