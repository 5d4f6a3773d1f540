"""float16 kernels with the type emulated, against torch's own float16."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from conv_cases import from_planes, pattern_weights, to_planes
from torch import nn
from torch.nn.functional import conv2d

import tvm_pattern as tp
from topi_kernels.backend import Backend
from topi_kernels.geometry import ConvGeometry
from topi_kernels.schedules.opencl.config import GpuConfig
from topi_kernels.workload import Epilogue
from tvm_pattern import opencl
from tvm_pattern.opencl.half_emulation import without_half

from .gpu_cases import planned, run

HALF = 2.0**-11
"""Largest relative error of a number rounded to float16."""
GEOMETRY = ConvGeometry((3, 3), padding=(1, 1))
TAPS = 4 * 20


@pytest.fixture(scope="module", autouse=True)
def emulated(device):
    if opencl.devices()[0].float16:
        yield
        return
    with opencl.emulated_float16():
        yield


def convolved(weight: np.ndarray, x: np.ndarray, config: GpuConfig, folder) -> np.ndarray:
    """The output image of a kernel for Mali."""
    layout = Backend.named("mali").layout_for(*x.shape[2:], 1, "float16")
    plan = planned(weight, GEOMETRY, (layout, layout), Epilogue(), config=config)
    out = np.full((1, len(weight), layout.size), np.nan, np.float16)
    planes = to_planes(x, layout).astype(np.float16)
    return from_planes(run(plan.primfunc(), [planes, *plan.arrays, out], folder), layout)


@pytest.fixture(scope="module")
def sums(tmp_path_factory):
    """Accumulator -> output; and the exact one, and the sums of the products' sizes."""
    rng = np.random.default_rng(3)
    weight = pattern_weights(8, 72, connectivity=3.6).astype(np.float16)
    x = rng.standard_normal((1, 72, 12, 12)).astype(np.float16)
    tile = GpuConfig(4, 1, 3, 1)
    result = {
        name: convolved(
            weight, x, replace(tile, accumulator=name), tmp_path_factory.mktemp("half")
        ).astype(np.float64)
        for name in ("float32", "float16")
    }
    wide, image = torch.tensor(weight).double(), torch.tensor(x).double()
    result["exact"] = conv2d(image, wide, padding=1).numpy()
    result["sizes"] = conv2d(image.abs(), wide.abs(), padding=1).numpy()
    result["torch"] = conv2d(torch.tensor(x), torch.tensor(weight), padding=1).double().numpy()
    return result


def test_sums_in_float32_are_rounded_once(sums):
    """Within half of a unit in the last place, and equal to torch's where that rounds once too."""
    error = np.abs(sums["float32"] - sums["exact"])
    assert np.all(error <= HALF * np.abs(sums["exact"]) + 2.0**-20 * sums["sizes"])
    assert np.mean(sums["float32"] == sums["torch"]) > 0.99
    np.testing.assert_allclose(sums["float32"], sums["torch"], rtol=2 * HALF, atol=1e-3)


def test_sums_in_float16_are_rounded_at_every_product(sums):
    """Worse than in float32, as a choice is to be; within the bound of that many roundings."""
    error = np.abs(sums["float16"] - sums["exact"])
    assert np.all(error <= TAPS * HALF * sums["sizes"])
    assert error.mean() > 4 * np.abs(sums["float32"] - sums["exact"]).mean()
    assert error.max() < 0.1
    assert np.array_equal(sums["float16"], sums["float16"].astype(np.float16))


class Net(nn.Module):
    """What networks are made of: strides, residuals, depthwise, pools, activations, dense."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, 2, 1)
        self.body = nn.Conv2d(16, 16, 3, padding=1)
        self.wide = nn.Conv2d(16, 24, 1)
        self.depthwise = nn.Conv2d(24, 24, 3, padding=1, groups=24)
        self.head = nn.Linear(24, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.stem(x))
        x = torch.relu(self.body(x) + x)
        x = nn.functional.max_pool2d(nn.functional.silu(self.wide(x)), 2)
        x = nn.functional.relu6(self.depthwise(x))
        return self.head(x.mean((2, 3)))


def test_a_network_in_float16(device):
    """Outputs within float16's rounding of torch's, and the same classes."""
    torch.manual_seed(0)
    model = Net().eval()
    tp.pruning.oneshot(model, connectivity=2.0)
    half = model.half()
    images = torch.randn(4, 1, 3, 20, 20).half()
    library = tp.compile(half, images[0], target="pattern/adreno", host="native", verify=False)
    assert any(row.taken for row in library.report)
    for image in images:
        expected = half(image).detach().numpy()
        got = np.asarray(library(image.numpy()))
        assert got.dtype == np.float16
        assert np.abs(got - expected).max() < 16 * HALF * np.abs(expected).max()
        assert got.argmax() == expected.argmax()


SOURCE = """#ifdef cl_khr_fp16
#pragma OPENCL EXTENSION cl_khr_fp16 : enable
#endif
__kernel void k(__global half* restrict x_ptr, __global float* restrict f_ptr, __global half* restrict o_ptr) {
  half4 s[1];
  half4 v = *(const __global half4*)(8 + (((__global half *)x_ptr + v_1)));
  float4 w = vload4(0, ((__global float *)f_ptr + 4));
  s[0] = (s[0] + (((half4)(x_ptr[(v_1 + 2)], v.s1, v.s2, (half)1.0e+00f)) * v));
  vstore4(s[0], 0, o_ptr + (v_1 * 4));
  vstore4(w, 0, f_ptr + 4);
  o_ptr[f(v_1, 2)] = convert_half(w.s0);
}
"""  # noqa: E501

EXPECTED = """  float4 s[1];
  float4 v = vload_half4(0, 8 + (((__global half *)x_ptr + v_1)));
  float4 w = vload4(0, ((__global float *)f_ptr + 4));
  s[0] = round_half4((s[0] + (((float4)(vload_half((v_1 + 2), x_ptr), v.s1, v.s2, (float)1.0e+00f)) * v)));
  vstore_half4_rte(s[0], 0, o_ptr + (v_1 * 4));
  vstore4(w, 0, f_ptr + 4);
  vstore_half_rte(round_half(w.s0), f(v_1, 2), o_ptr);
"""  # noqa: E501


def test_where_the_source_rounds():
    text = without_half(SOURCE)
    assert text[text.index("__kernel void k(") :].split("{\n", 1)[1] == EXPECTED + "}\n"
    assert "cl_khr_fp16" not in text


def test_sources_without_the_type_stay():
    assert without_half("__kernel void k() {}") == "__kernel void k() {}"


@pytest.mark.parametrize(
    ("pointer", "reason"),
    [("o_ptr + half2(1)", "cannot be emulated in .*half2"), ("(o_ptr", "brackets do not match")],
)
def test_what_is_not_understood(pointer, reason):
    broken = SOURCE.replace("vstore4(s[0], 0, o_ptr + (v_1 * 4))", f"vstore4(s[0], 0, {pointer})")
    with pytest.raises(opencl.OpenCLError, match=reason):
        without_half(broken.replace("half2(1)", "__global half2*"))
