"""Bundles: OpenCL kernels of one layer as files that run without TVM, see ``run_bundle.py``.

A bundle is a folder: ``bundle.json`` says what is computed and how each kernel is launched, one
``.cl`` file is the source of each, ``arrays.npz`` holds the packed weights, an input and the
expected output, which torch computed in float64.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional
from tvm.target import Target

from topi_kernels.conv_task import ConvTask
from topi_kernels.layout import to_planes
from topi_kernels.operator import ConvPlan, plan_conv
from topi_kernels.schedules.opencl.config import ALIGNED, BUFFER, GLOBAL, GpuConfig
from topi_kernels.schedules.opencl.source import kernel_sources
from topi_kernels.structure import Structure, longest_sum

from ..atomic import write_file

FORMAT = 1
RUNNER = Path(__file__).with_name("run_bundle.py")
_ACTIVATIONS = {
    "none": lambda x: x,
    "relu": torch.relu,
    "relu6": functional.relu6,
    "hardswish": functional.hardswish,
    "silu": functional.silu,
    "gelu": functional.gelu,
    "gelu_tanh": partial(functional.gelu, approximate="tanh"),
    "mish": functional.mish,
}


def write_bundle(
    folder: Path,
    task: ConvTask,
    weight: np.ndarray,
    target: Target,
    *,
    structure: Structure | None = None,
    configs: Sequence[GpuConfig] | None = None,
    name: str = "",
) -> Path:
    """Write one convolution as a bundle.

    Parameters
    ----------
    folder : Path
        Made if it is missing; ``run_bundle.py`` is put beside it.
    task : ConvTask
        Of an OpenCL device.
    weight : numpy.ndarray
        ``[out_channels, in_channels, kh, kw]``.
    target : tvm.target.Target
        Of kind ``opencl``.
    structure : Structure, optional
        Which weights are kept; default: what they say.
    configs : sequence of GpuConfig, optional
        A kernel for each, all of the same group; default: the level-0 configuration.
    name : str
        Default: the folder's name.

    Returns
    -------
    Path
        The folder.

    Raises
    ------
    ValueError
        If a config is illegal, the configs are of several groups, or the task is of a CPU.
    """
    configs = [task.default_config()] if configs is None else list(configs)
    if len({config.group for config in configs}) != 1:
        raise ValueError(
            f"the configs of a bundle share their packed weights, got groups of"
            f" {sorted({config.group for config in configs})} filters; write one bundle for each"
        )
    plans = [plan_conv(task, weight, config, 1, structure) for config in configs]
    folder.mkdir(parents=True, exist_ok=True)
    # Written last: a bundle that was not finished has none, and does not run.
    description = folder / "bundle.json"
    description.unlink(missing_ok=True)
    kernels = [_kernel(folder, plan, target) for plan in plans]
    inputs, expected = _arrays(plans[0], weight)
    np.savez_compressed(folder / "arrays.npz", allow_pickle=False, expected=expected, **inputs)
    described = {
        "format": FORMAT,
        "name": name or folder.name,
        "output": "out",
        "output_dtype": task.dtype,
        "tolerance": _tolerance(task, weight, expected),
        "facts": _facts(task),
        "kernels": kernels,
    }
    shutil.copyfile(RUNNER, folder.parent / RUNNER.name)
    write_file(description, (json.dumps(described, indent=1) + "\n").encode())
    return folder


def config_name(config: GpuConfig) -> str:
    """A short name that tells configs apart."""
    c = config
    tile = f"{c.vector_width}px_{c.filters}f_{c.tile_rows}x{c.tile_cols}_t{c.taps_per_step}"
    sums = "" if c.accumulator == "float32" else "_half"
    memories = [c.loads, c.reads, c.input_tile]
    memories = [m for m in memories if m not in (ALIGNED, BUFFER, GLOBAL)]
    name = f"{tile}_g{c.tiles_per_group}x{c.filter_groups_per_group}_{c.order}{sums}"
    return "_".join([name, *memories])


def _kernel(folder: Path, plan: ConvPlan, target: Target) -> dict[str, Any]:
    (kernel,) = kernel_sources(plan.primfunc(), target)
    name = config_name(plan.config)
    (folder / f"{name}.cl").write_text(kernel.source, encoding="utf-8")
    return {
        "name": name,
        "source": f"{name}.cl",
        "function": kernel.name,
        "arguments": [argument.name for argument in kernel.arguments],
        "textures": [argument.name for argument in kernel.arguments if argument.is_texture],
        "work_groups": list(kernel.work_groups),
        "work_items": list(kernel.work_items),
        "facts": {"config": plan.config.as_dict()},
    }


def _arrays(plan: ConvPlan, weight: np.ndarray) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """The operator's inputs by name, and the planes that it has to write."""
    task, epilogue = plan.task, plan.task.epilogue
    rng = np.random.default_rng(0)

    def images(channels: int, layout: Any) -> np.ndarray:
        values = rng.standard_normal((task.batch, channels, layout.height, layout.width))
        # Few bits, so that the file is small.
        return (np.round(values * 16) / 16).astype(task.dtype)

    x = images(task.in_channels, task.in_layout)
    inputs = {"x": to_planes(x, task.in_layout), **plan.packed.named_arrays}
    bias = residual = None
    if epilogue.bias:
        bias = rng.standard_normal(task.out_channels).astype(task.dtype)
        inputs["bias"] = bias
    if task.residual_layout is not None and epilogue.residual:
        residual = images(task.out_channels, task.residual_layout)
        inputs["residual"] = to_planes(residual, task.residual_layout)
    expected = _expected(task, weight, x, bias, residual)
    return inputs, to_planes(expected.astype(np.float32), task.out_layout)


def _expected(
    task: ConvTask,
    weight: np.ndarray,
    x: np.ndarray,
    bias: np.ndarray | None,
    residual: np.ndarray | None,
) -> np.ndarray:
    """Torch's answer in float64; padding below and right follows from the sizes."""

    def wide(array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(array.astype(np.float64))

    move, out = task.geometry, task.out_layout
    sizes = ((x.shape[2], out.height), (x.shape[3], out.width))
    (top, bottom), (left, right) = (
        (move.padding[i], (size - 1) * move.stride[i] + move.reach[i] + 1 - n - move.padding[i])
        for i, (n, size) in enumerate(sizes)
    )
    padded = functional.pad(wide(x), (left, right, top, bottom))
    value = functional.conv2d(
        padded,
        wide(weight),
        None if bias is None else wide(bias),
        stride=move.stride,
        dilation=move.dilation,
    )
    if residual is not None:
        value = value + wide(residual)
    return _ACTIVATIONS[task.epilogue.activation](value).numpy()


def _tolerance(task: ConvTask, weight: np.ndarray, expected: np.ndarray) -> float:
    """Rounding of sums of this length, and of the stored result."""
    length = longest_sum(weight)
    scale = max(1.0, float(np.abs(expected).max()))
    return 8.0 * float(np.finfo(task.dtype).eps) * scale * length**0.5


def _facts(task: ConvTask) -> dict[str, Any]:
    effective = task.effective_flops / 1e9
    return {
        "layer": task.label,
        "device": task.family,
        "dtype": task.dtype,
        "kept": task.density,
        "effective_gflop": effective,
        "dense_equivalent_gflop": effective / max(task.density, 1e-9),
    }


def write_bundles(folder: Path, tasks: Iterable[Any], target: Target) -> list[Path]:
    """One bundle for each of a model's distinct convolutions.

    Parameters
    ----------
    folder : Path
    tasks : iterable of WeightedTask
        See :func:`tvm_pattern.tuning.tasks.extract_tasks`.
    target : tvm.target.Target
        Of kind ``opencl``.

    Returns
    -------
    list of Path
        Their folders, named after the first layer of each.
    """
    result = []
    for weighted in tasks:
        name = re.sub(r"[^\w.-]", "_", weighted.layers[0])
        path = folder / name
        result.append(
            write_bundle(path, weighted.task, weighted.weight, target, structure=weighted.structure)
        )
    return result
