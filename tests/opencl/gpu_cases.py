"""Operators of GPU targets, built and run on the OpenCL device of this computer."""

from __future__ import annotations

import numpy as np
import torch
import tvm
from conv_cases import ACTIVATIONS, to_planes
from torch.nn.functional import conv2d
from tvm import tirx

from relay_passes.targets import resolve
from topi_kernels.backend import Backend
from topi_kernels.conv_task import ConvTask
from topi_kernels.geometry import ConvGeometry
from topi_kernels.layout import PlaneLayout
from topi_kernels.operator import ConvPlan
from topi_kernels.workload import Epilogue


def run(func: tirx.PrimFunc, arrays: list[np.ndarray], folder) -> np.ndarray:
    """The last of ``arrays`` after a call of ``func`` on the device; its values start as NaN."""
    # A name that was loaded before would give the library of then.
    path = str(folder / f"operator{len(list(folder.iterdir()))}.so")
    target = resolve("pattern/mali", "native")
    module = tvm.IRModule({"main": func.with_attr("global_symbol", "main")})
    tvm.compile(module, target).export_library(path)
    loaded = tvm.runtime.load_module(path)
    tensors = [tvm.runtime.tensor(np.ascontiguousarray(a), tvm.opencl(0)) for a in arrays]
    loaded["main"](*tensors)
    return tensors[-1].numpy()


def planned(
    weight: np.ndarray,
    geometry: ConvGeometry,
    layouts: tuple[PlaneLayout, PlaneLayout],
    epilogue: Epilogue,
    *,
    batch: int = 1,
    config=None,
    family: str = "mali",
) -> ConvPlan:
    """The plan of a convolution."""
    task = ConvTask.from_weight(
        weight,
        geometry,
        *layouts,
        family=family,
        batch=batch,
        epilogue=epilogue,
        residual_layout=layouts[1] if epilogue.residual else None,
    )
    return Backend.named(family).plan(task, weight, config)


def conv_difference(
    weight: np.ndarray,
    folder,
    *,
    size: tuple[int, int] = (14, 14),
    stride: int = 1,
    padding: int = 1,
    dilation: int = 1,
    batch: int = 1,
    epilogue: Epilogue | None = None,
    config=None,
    family: str = "mali",
) -> float:
    """Largest error against torch over whole planes, halo included."""
    epilogue = epilogue or Epilogue(bias=True)
    rng = np.random.default_rng(7)
    filters, channels, *kernel = weight.shape
    out_size = tuple(
        (n + 2 * padding - dilation * (k - 1) - 1) // stride + 1
        for n, k in zip(size, kernel, strict=True)
    )
    backend = Backend.named(family)
    layouts = (backend.layout_for(*size, max(padding, 1)), backend.layout_for(*out_size, 1))
    pairs = ((stride, stride), (padding, padding), (dilation, dilation))
    geometry = ConvGeometry((kernel[0], kernel[1]), *pairs)
    plan = planned(weight, geometry, layouts, epilogue, batch=batch, config=config, family=family)
    x = rng.standard_normal((batch, channels, *size)).astype(np.float32)
    bias = rng.standard_normal(filters).astype(np.float32)
    residual = rng.standard_normal((batch, filters, *out_size)).astype(np.float32)
    arrays = [to_planes(x, layouts[0]), *plan.arrays]
    arrays += [bias] if epilogue.bias else []
    arrays += [to_planes(residual, layouts[1])] if epilogue.residual else []
    arrays += [np.full((batch, filters, layouts[1].size), np.nan, np.float32)]
    got = run(plan.primfunc(), arrays, folder)
    tensors = (torch.tensor(a) for a in (x, weight, bias if epilogue.bias else np.zeros_like(bias)))
    expected = conv2d(*tensors, stride, padding, dilation).double()
    if epilogue.residual:
        expected = expected + torch.tensor(residual)
    expected = ACTIVATIONS[epilogue.activation](expected).numpy()
    return float(np.abs(got - to_planes(expected, layouts[1])).max())
