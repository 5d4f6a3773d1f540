"""Oracle and data for convolution tests: torch convolution, planes filled pixel by pixel."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
import tvm
from guards import run_guarded

from topi_kernels.conv_task import ConvTask
from topi_kernels.geometry import ConvGeometry
from topi_kernels.layout import PlaneLayout
from topi_kernels.layout_choice import MAX_BORDER, LaneOrder, default_layout
from topi_kernels.operator import ConvPlan, plan_conv
from topi_kernels.pattern import fixed8_patterns
from topi_kernels.schedules.config import ConvConfig
from topi_kernels.workload import Epilogue

HOST_TARGET = tvm.target.Target({"kind": "llvm", "mcpu": tvm.target.codegen.llvm_get_system_cpu()})

ACTIVATIONS = {
    "none": lambda v: v,
    "relu": torch.relu,
    "relu6": torch.nn.functional.relu6,
    "hardswish": torch.nn.functional.hardswish,
    "silu": torch.nn.functional.silu,
    "gelu": torch.nn.functional.gelu,
    "gelu_tanh": lambda v: torch.nn.functional.gelu(v, approximate="tanh"),
    "mish": torch.nn.functional.mish,
}


def pattern_weights(
    out_channels: int,
    in_channels: int,
    *,
    group: int = 1,
    connectivity: float = 3.6,
    masks: np.ndarray | None = None,
    seed: int = 0,
) -> np.ndarray:
    """Random pattern- and connectivity-pruned weights shared by ``group`` neighbouring filters."""
    rng = np.random.default_rng(seed)
    masks = fixed8_patterns().masks if masks is None else masks
    weight = np.zeros((out_channels, in_channels, *masks.shape[1:]), np.float32)
    kept = max(0, min(in_channels, round(in_channels / connectivity)))
    for first in range(0, out_channels, group):
        count = min(group, out_channels - first)
        for i in rng.permutation(in_channels)[:kept]:
            mask = masks[rng.integers(len(masks))]
            values = rng.uniform(0.5, 1.5, (count, *mask.shape)) * rng.choice([-1, 1])
            weight[first : first + count, i] = mask * values
    return weight


def pixels_of(layout: PlaneLayout) -> dict[int, tuple[int, int]]:
    """Element of a plane -> pixel that it holds, written down from the layout's definition.

    Interleaved lanes: band ``b`` holds rows ``b * band_height ...``, its lane ``j`` of vector ``c``
    pixel ``j * columns + c``; rows and vectors beyond the band hold what lies there in the image.
    """
    places = {}
    if layout.lanes == 1:
        for y in range(layout.height):
            for x in range(layout.width):
                places[layout.origin + y * layout.row_stride + x] = (y, x)
        return places
    lanes = layout.lanes // layout.bands
    height, columns = -(-layout.height // layout.bands), -(-layout.width // lanes)
    for band in range(layout.bands):
        for row in range(-layout.pad, height + layout.pad):
            for c in range(-layout.border, columns + layout.border):
                for j in range(lanes):
                    y, x = band * height + row, j * columns + c
                    start = layout.origin + row * layout.row_stride + c * layout.lanes
                    if 0 <= y < layout.height and 0 <= x < layout.width:
                        places[start + band * lanes + j] = (y, x)
    return places


def to_planes(images: np.ndarray, layout: PlaneLayout) -> np.ndarray:
    """``[n, c, h, w]`` -> ``[n, c, size]``, zeros outside the image."""
    planes = np.zeros((*images.shape[:2], layout.size), np.float32)
    for element, (y, x) in pixels_of(layout).items():
        planes[:, :, element] = images[:, :, y, x]
    return planes


def from_planes(planes: np.ndarray, layout: PlaneLayout) -> np.ndarray:
    """Inverse of :func:`to_planes`."""
    images = np.zeros((*planes.shape[:2], layout.height, layout.width), np.float32)
    for element, (y, x) in pixels_of(layout).items():
        images[:, :, y, x] = planes[:, :, element]
    return images


@dataclass(frozen=True)
class ConvCase:
    """One convolution to check; a ``config`` fetches ahead as its family does by default."""

    height: int = 14
    width: int = 14
    batch: int = 1
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    bias: bool = True
    residual: bool = False
    activation: str = "none"
    family: str = "x86-avx512"
    threads: int = 1
    config: ConvConfig | None = None
    out_pad: int = 1
    lanes: LaneOrder | None = None
    winograd: bool = True

    def out_size(self, kernel: tuple[int, int]) -> tuple[int, int]:
        sizes = zip(
            (self.height, self.width), self.padding, self.dilation, kernel, self.stride, strict=True
        )
        height, width = ((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, p, d, k, s in sizes)
        return height, width

    def plan(self, weight: np.ndarray) -> ConvPlan:
        height, width = self.out_size(weight.shape[2:])

        def layout(height: int, width: int, pad: int, border: int = 0) -> PlaneLayout:
            if self.lanes is None:
                return default_layout(height, width, pad, self.family)
            return self.lanes.layout(height, width, pad, border)

        task = ConvTask.from_weight(
            weight,
            ConvGeometry(weight.shape[2:], self.stride, self.padding, self.dilation),
            layout(self.height, self.width, max(self.padding), MAX_BORDER),
            layout(height, width, self.out_pad, MAX_BORDER),
            family=self.family,
            batch=self.batch,
            epilogue=Epilogue(self.bias, self.residual, self.activation),
            residual_layout=layout(height, width, self.out_pad) if self.residual else None,
            winograd=self.winograd,
        )
        config = self.config and replace(self.config, fetch_ahead=task.machine.fetch_ahead)
        return plan_conv(task, weight, config, self.threads)


def run_case(
    case: ConvCase, weight: np.ndarray, *, naive: bool = False, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, ConvPlan]:
    """Run the operator; returns ``(planes it wrote, torch's answer, plan)``.

    The output buffer starts as NaN, so whatever the operator leaves unwritten is seen; around it
    lies what the operator must not touch.
    """
    rng = np.random.default_rng(seed)
    plan = case.plan(weight)
    w = plan.workload
    x = rng.standard_normal((case.batch, w.in_channels, case.height, case.width), np.float32)
    bias = rng.standard_normal(w.out_channels, np.float32)
    shape = (case.batch, w.out_channels, w.out_layout.height, w.out_layout.width)
    residual = rng.standard_normal(shape, np.float32)
    expected = torch.nn.functional.conv2d(
        torch.from_numpy(x),
        torch.from_numpy(weight),
        torch.from_numpy(bias) if case.bias else None,
        case.stride,
        case.padding,
        case.dilation,
    )
    if case.residual:
        expected = expected + torch.from_numpy(residual)
    expected = ACTIVATIONS[case.activation](expected).numpy()

    arguments = [to_planes(x, w.in_layout), *plan.arrays]
    arguments += [bias] if case.bias else []
    arguments += [to_planes(residual, w.residual_layout)] if case.residual else []
    arguments += [np.full((case.batch, w.out_channels, w.out_layout.size), np.nan, np.float32)]
    primfunc = plan.naive_primfunc() if naive else plan.primfunc()
    library = tvm.compile(primfunc, target=HOST_TARGET)
    out = run_guarded(library[str(primfunc.attrs["global_symbol"])], *arguments)
    return out, expected, plan


def assert_case(case: ConvCase, weight: np.ndarray, *, naive: bool = False) -> ConvPlan:
    """The operator agrees with torch on the image and writes zeros everywhere else.

    The tolerance is that of float32 sums: products of order one, accumulated in another order than
    torch's, differ by a few times sqrt(reduction length) * 2**-24 of the largest term.
    """
    got, expected, plan = run_case(case, weight, naive=naive)
    layout = plan.workload.out_layout
    length = max(1, int(np.count_nonzero(weight.reshape(len(weight), -1), axis=1).max()))
    scale = max(1.0, float(np.abs(expected).max()))
    tolerance = 8 * np.sqrt(length) * 2.0**-24 * scale + 1e-6
    # All elements: pixels, their copies at the edges of interleaved lanes, and zeros elsewhere.
    np.testing.assert_allclose(got, to_planes(expected, layout), rtol=0, atol=tolerance)
    outside = to_planes(np.ones_like(expected), layout) == 0
    assert np.array_equal(got[outside], np.zeros(int(outside.sum()), np.float32))
    return plan
