"""Integer oracle and data for tests of convolutions of bytes."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import tvm
from conv_cases import pattern_weights
from guards import run_guarded

from benchmarks import arm_emulation
from topi_kernels.geometry import ConvGeometry
from topi_kernels.layout import PlaneLayout
from topi_kernels.schedules.cpu_int8.byte_layout import byte_layout
from topi_kernels.schedules.cpu_int8.plan import Int8Layer, Int8Plan, plan_int8_conv
from topi_kernels.schedules.cpu_int8.quantisation import Quantisation
from topi_kernels.schedules.cpu_int8.workload import Int8Config
from topi_kernels.structure import Structure
from tvm_pattern.cpu_flags import surely_has

#: Instructions, a Target that has them, and what the computer that runs the tests must have.
TARGETS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "avx512-vnni": ({"kind": "llvm", "mcpu": "icelake-server"}, ("avx512vnni", "avx512vbmi")),
    "avx-vnni": ({"kind": "llvm", "mcpu": "cascadelake"}, ("avx512vnni", "avx512vl")),
    "avx2": ({"kind": "llvm", "mcpu": "haswell"}, ("avx2", "fma")),
    "avx2-narrow": ({"kind": "llvm", "mcpu": "haswell"}, ("avx2", "fma")),
    "neon-dotprod": (
        {"kind": "llvm", "mtriple": "aarch64-linux-gnu", "mcpu": "cortex-a76", "mattr": ["+neon"]},
        (),
    ),
}


def needs(isa: str) -> None:
    """Skip where the computer lacks the instructions."""
    if not surely_has(TARGETS[isa][1]):
        pytest.skip(f"this computer lacks {' and '.join(TARGETS[isa][1])}")


def planes_of(images: np.ndarray, layout: PlaneLayout, around: int) -> np.ndarray:
    """``[n, c, h, w]`` -> ``[n, c, size]``; ``around`` everywhere outside the image."""
    planes = np.full((*images.shape[:2], layout.size), around, images.dtype)
    for y in range(layout.height):
        start = layout.origin + y * layout.row_stride
        planes[..., start : start + layout.width] = images[:, :, y]
    return planes


def images_of(planes: np.ndarray, layout: PlaneLayout) -> np.ndarray:
    """The pixels of planes."""
    starts = layout.origin + np.arange(layout.height)[:, None] * layout.row_stride
    return planes[..., starts + np.arange(layout.width)]


def padding_of(planes: np.ndarray, layout: PlaneLayout) -> np.ndarray:
    """The elements around the images that are padding."""
    first = layout.origin - layout.pad * layout.row_stride - layout.pad
    last = layout.origin + (layout.height - 1 + layout.pad) * layout.row_stride
    last += layout.width + layout.pad
    inside = layout.origin + np.arange(layout.height)[:, None] * layout.row_stride
    keep = np.ones(planes.shape[-1], bool)
    keep[inside + np.arange(layout.width)] = False
    keep[:first] = keep[last:] = False
    return planes[..., keep]


@dataclass
class Int8Case:
    """A convolution of bytes and its input."""

    layer: Int8Layer
    x: np.ndarray
    residual: np.ndarray | None = None

    def sums(self) -> np.ndarray:
        """The exact sums, bias included; float64 holds them without rounding."""
        layer = self.layer
        bias = np.rint(layer.bias / (layer.weight_scale.astype(np.float64) * layer.source.scale))
        x = torch.tensor(self.x.astype(np.float64) - layer.source.zero_point)
        geometry = layer.geometry
        out = torch.nn.functional.conv2d(
            x,
            torch.tensor(layer.weight.astype(np.float64)),
            torch.tensor(bias),
            geometry.stride,
            geometry.padding,
            geometry.dilation,
        )
        return out.numpy()

    def expected(self) -> np.ndarray:
        """uint8 ``[n, out_channels, h, w]``: scaled in float32, rounded half to even, limited."""
        layer, result = self.layer, self.layer.result
        factor = layer.weight_scale.astype(np.float64) * layer.source.scale / result.scale
        factor = factor.astype(np.float32).astype(np.float64)[:, None, None]
        value = self.sums().astype(np.float32).astype(np.float64) * factor
        if layer.residual is not None and self.residual is not None:
            shifted = self.residual.astype(np.float32) - np.float32(layer.residual.zero_point)
            added = shifted * np.float32(layer.residual.scale / result.scale)
            value = (value + added).astype(np.float32).astype(np.float64)
        low, high = (
            np.clip(np.rint(limit / result.scale) + result.zero_point, 0, 255)
            for limit in (layer.low, layer.high)
        )
        return np.clip(np.rint(value) + result.zero_point, low, high).astype(np.uint8)

    def layouts(self) -> tuple[PlaneLayout, PlaneLayout]:
        height, width = self.expected().shape[2:]
        pad = max(1, *self.layer.geometry.padding)
        return byte_layout(*self.x.shape[2:], pad), byte_layout(height, width, 1)

    def plan(self, isa: str, config: Int8Config | None = None, threads: int = 1) -> Int8Plan:
        return plan_int8_conv(
            self.layer, len(self.x), self.layouts(), isa, config=config, num_threads=threads
        )

    def arguments(self, plan: Int8Plan) -> list[np.ndarray]:
        """What the operator is called with, the output last."""
        source, result = self.layouts()
        args = [planes_of(self.x, source, self.layer.source.zero_point), *plan.arrays]
        if self.residual is not None:
            args.append(planes_of(self.residual, result, 0))
        shape = (len(self.x), self.layer.weight.shape[0], result.size)
        return [*args, np.full(shape, 99, np.uint8)]

    def run(self, isa: str, config: Int8Config | None = None, threads: int = 1) -> np.ndarray:
        """Output planes."""
        plan = self.plan(isa, config, threads)
        assert plan.workload.isa == isa
        if isa == "neon-dotprod":
            return self.emulated(plan)
        library = tvm.compile(plan.primfunc(), target=tvm.target.Target(TARGETS[isa][0]))
        return run_guarded(library["int8_conv2d"], *self.arguments(plan))

    def emulated(self, plan: Int8Plan) -> np.ndarray:
        """Output planes, of code for ARM."""
        steps = arm_emulation.Plan()
        *inputs, out = self.arguments(plan)
        for array in inputs:
            steps.constant(array)
        steps.outputs.append(steps.empty(out.shape, "uint8"))
        steps.call("int8_conv2d", range(len(steps.tensors)))
        target = tvm.target.Target(TARGETS["neon-dotprod"][0])
        with tempfile.TemporaryDirectory() as folder:
            library = arm_emulation.export(plan.primfunc(), target, Path(folder) / "conv.so")
            (planes,), _ = arm_emulation.run(library, steps, target)
        return planes

    def check(self, isa: str, config: Int8Config | None = None, threads: int = 1) -> None:
        """Every byte of the images, and of the padding around them."""
        needs(isa)
        planes, layout = self.run(isa, config, threads), self.layouts()[1]
        np.testing.assert_array_equal(images_of(planes, layout), self.expected())
        assert (padding_of(planes, layout) == self.layer.result.zero_point).all()


def int8_case(
    out_channels: int,
    in_channels: int,
    size: tuple[int, int],
    *,
    kernel: int = 3,
    stride: int = 1,
    dilation: int = 1,
    group: int = 1,
    weight: np.ndarray | None = None,
    residual: bool = False,
    batch: int = 1,
    low: float = 0.0,
    high: float = np.inf,
    largest: int = 127,
    seed: int = 0,
) -> Int8Case:
    """A case with random bytes; ``weight`` says which weights are kept, by default patterns."""
    rng = np.random.default_rng(seed)
    if weight is None:
        weight = pattern_weights(out_channels, in_channels, group=group)
    structure = Structure.from_zeros(weight.astype(np.float32))
    values = rng.integers(-largest, largest + 1, weight.shape).astype(np.int8) * structure.kept
    pad = kernel // 2 * dilation
    spread = max(1.0, np.sqrt(structure.kept_weights / out_channels)) * largest * 90
    layer = Int8Layer(
        weight=values,
        weight_scale=rng.uniform(0.5, 1.5, out_channels).astype(np.float32) / 1000,
        bias=rng.standard_normal(out_channels).astype(np.float32),
        geometry=ConvGeometry((kernel, kernel), (stride,) * 2, (pad,) * 2, (dilation,) * 2),
        source=Quantisation(0.02, 7),
        result=Quantisation(0.02 / 1000 * spread / 100, 5),
        structure=structure,
        low=low,
        high=high,
        residual=Quantisation(0.02 / 1000 * spread / 120, 9) if residual else None,
    )
    case = Int8Case(layer, rng.integers(0, 256, (batch, in_channels, *size), np.uint8))
    if residual:
        shape = case.sums().shape
        case.residual = rng.integers(0, 256, shape, np.uint8)
    return case
