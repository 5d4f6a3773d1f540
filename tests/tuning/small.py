"""A small pruned convolution to tune, and a recorded search over it."""

from __future__ import annotations

import numpy as np

from relay_passes.targets import resolve
from topi_kernels.backend import default_layout
from topi_kernels.conv_task import ConvTask
from topi_kernels.devices import DEVICES
from topi_kernels.geometry import ConvGeometry
from topi_kernels.pattern import fixed8_patterns
from topi_kernels.schedules.config import ConvConfig
from topi_kernels.workload import Epilogue
from tvm_pattern.tuning.records import Record
from tvm_pattern.tuning.space import Space

FAMILY = DEVICES.of(resolve("pattern/native")).name


def small_weight(
    out_channels: int = 8, in_channels: int = 8, group: int = 2, kept: int = 4, seed: int = 0
) -> np.ndarray:
    """Random pattern-pruned weights; ``group`` filters share kernels."""
    rng = np.random.default_rng(seed)
    masks = fixed8_patterns().masks
    weight = np.zeros((out_channels, in_channels, 3, 3), np.float32)
    for first in range(0, out_channels, group):
        for i in rng.permutation(in_channels)[:kept]:
            values = rng.standard_normal((group, 3, 3)).astype(np.float32)
            weight[first : first + group, i] = masks[rng.integers(len(masks))] * values
    return weight


def small_task(
    size: int = 8, activation: str = "relu", family: str = FAMILY, **weight: int
) -> tuple[ConvTask, np.ndarray]:
    """A 3x3 convolution of ``size x size`` planes, and its weights."""
    values = small_weight(**weight)
    layout = default_layout(size, size, 1, family)
    task = ConvTask.from_weight(
        values,
        ConvGeometry((3, 3), padding=(1, 1)),
        layout,
        layout,
        family=family,
        epilogue=Epilogue(bias=True, activation=activation),
    )
    return task, values


def record_of(task: ConvTask, config: ConvConfig, seconds: float | None = 1e-3, **more) -> Record:
    """A record of ``config``; None seconds is a crash."""
    failed = {} if seconds is not None else {"error_kind": "crash", "error": "it died"}
    times = () if seconds is None else (seconds,)
    return Record(
        **{
            "task_key": task.key,
            "task": task.as_dict(),
            "config": config.as_dict(),
            "times": times,
            **failed,
            **more,
        }
    )


def synthetic_times(space: Space, seed: int = 0) -> np.ndarray:
    """Plausible times of every point: the schedule's estimate, distorted."""
    rng = np.random.default_rng(seed)
    times = space.estimates * np.exp(0.25 * rng.standard_normal(len(space)))
    return times / times.min() * 1e-3
