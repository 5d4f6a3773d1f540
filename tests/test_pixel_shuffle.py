"""Phases put between each other on planes, against torch and its specification."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import tvm
from conv_cases import from_planes, to_planes
from guards import run_guarded
from relax_oracle import execute, import_torch
from torch import nn
from torch.nn import functional as F
from tvm import relax

import tvm_pattern as tp
from relay_passes.dataflow import op_name
from relay_passes.islands.pixel_shuffle import marker_of
from relay_passes.plane_layout import PlaneLayout as PlaneLayoutPass
from relay_passes.transposed_by_phases import TransposedByPhases
from topi_kernels import compute
from topi_kernels.layout import PlaneLayout
from topi_kernels.pixel_shuffle import Phases, pixel_shuffle
from topi_kernels.plane_ops import PlaneTarget


def run(func, planes: np.ndarray, layout: PlaneLayout, channels: int) -> np.ndarray:
    out = np.full((planes.shape[0], channels, layout.size), np.nan, np.float32)
    return run_guarded(tvm.compile(tvm.IRModule({"main": func}), "llvm"), planes, out)


# Of the phases: size, stride, first pixel; of the result: size.
CASES = [
    ((5, 8), (2, 2), (0, 0), (10, 16)),
    ((5, 8), (2, 2), (1, 1), (8, 14)),
    ((4, 9), (2, 2), (1, 1), (7, 17)),  # a row whose vectors begin with different phases
    ((3, 20), (1, 4), (0, 3), (3, 70)),
    ((3, 7), (3, 3), (2, 1), (5, 19)),
    ((4, 40), (3, 2), (0, 5), (11, 70)),
    ((2, 3), (2, 1), (0, 0), (4, 3)),
    ((1, 1), (4, 4), (2, 3), (2, 1)),
]


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("case", CASES)
def test_phases_between_each_other(case, threads):
    size, (sh, sw), (top, left), out_size = case
    x = np.random.default_rng(0).standard_normal((2, 3 * sh * sw, *size)).astype(np.float32)
    whole = x.reshape(2, 3, sh, sw, *size).transpose(0, 1, 4, 2, 5, 3)
    whole = whole.reshape(2, 3, size[0] * sh, size[1] * sw)
    want = whole[:, :, top : top + out_size[0], left : left + out_size[1]]
    source, result = PlaneLayout.make(*size, 1), PlaneLayout.make(*out_size, (1, 2), 4)
    phases = Phases((sh, sw), (top, left))
    target = PlaneTarget("x86-avx512", threads)
    planes = to_planes(x, source)
    for make in (pixel_shuffle, compute.pixel_shuffle):
        got = run(make(2, 3, source, result, phases, target), planes, result, 3)
        np.testing.assert_array_equal(from_planes(got, result), want)
        np.testing.assert_array_equal(got, to_planes(want, result))  # zeros around the image


def test_what_does_not_fit_is_refused():
    layout, target = PlaneLayout.make(4, 4, 0), PlaneTarget("x86-avx2")
    with pytest.raises(ValueError, match=r"8x8 pixels from \(1, 0\) on are more than the 8x8"):
        pixel_shuffle(1, 1, layout, PlaneLayout.make(8, 8, 0), Phases((2, 2), (1, 0)), target)
    lanes = PlaneLayout.interleave(4, 16, 0, 8, 1)
    with pytest.raises(ValueError, match="in plain rows only"):
        pixel_shuffle(1, 1, lanes, PlaneLayout.make(4, 4, 0), Phases((1, 1)), target)


class Between(nn.Module):
    """Super-resolution's last layers: a shuffle inside of an island."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Conv2d(3, 16, 3, padding=1)
        self.up = nn.ConvTranspose2d(16, 4, 4, 2, 1)
        self.last = nn.Conv2d(4, 3, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(F.relu(self.up(F.relu(self.wide(x)))))


def test_an_island_goes_on_behind_a_transposed_convolution():
    torch.manual_seed(0)
    net, x = Between().eval(), torch.randn(2, 3, 9, 7)
    library = tp.compile(net, x, num_threads=1, verify=False)
    names = [step["op"] for step in library.manifest.steps]
    assert sum("pixel_shuffle" in name for name in names) == 1
    assert sum("unpack" in name for name in names) == 1
    with torch.no_grad():
        np.testing.assert_allclose(library(x.numpy()), net(x).numpy(), atol=2e-6)


CROPPED = Phases((2, 2), (1, 1))


def test_where_no_island_is_it_becomes_relax_again():
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((1, 8, 4, 5), "float32"))
    with builder.function("main", [x]):
        with builder.dataflow():
            marker = marker_of(x, CROPPED, (7, 8))
            out = builder.emit_output(marker.call(relax.TensorType((1, 2, 7, 8), "float32")))
        builder.emit_func_output(out)
    mod = PlaneLayoutPass(lambda *size, dtype: PlaneLayout.make(*size))(builder.get())
    relax.analysis.well_formed(mod)
    image = torch.randn(1, 8, 4, 5, generator=torch.Generator().manual_seed(0))
    (got,) = execute(tvm.compile(mod, "llvm"), image.numpy())
    np.testing.assert_array_equal(got, F.pixel_shuffle(image, 2)[:, :, 1:8, 1:9].numpy())


def test_devices_without_it_get_relax_operators():
    torch.manual_seed(0)
    net, x = nn.ConvTranspose2d(3, 4, 4, 2, 1).eval(), torch.randn(1, 3, 5, 6)
    mod = relax.transform.FoldConstant()(import_torch(net, x))
    mod = TransposedByPhases({}, on_planes=False)(mod)
    assert "pixel_shuffle" not in mod.script()
    bindings = [binding for block in mod["main"].body.blocks for binding in block.bindings]
    assert "relax.nn.conv2d_transpose" not in {op_name(binding.value) for binding in bindings}
    (got,) = execute(tvm.compile(mod, "llvm"), x.numpy())
    with torch.no_grad():
        np.testing.assert_allclose(got, net(x).numpy(), atol=2e-6)
