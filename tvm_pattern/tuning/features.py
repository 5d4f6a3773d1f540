"""Static facts of a configuration, for the cost model.

Records of one layer shall mean something to another, and those of one target to the next. So
nothing here is an absolute size where a ratio can be had: registers are shares of the register
file, vectors shares of the widest, loads are counted per multiply-add.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np

from topi_kernels.conv_task import ConvTask
from topi_kernels.geometry import ConvGeometry
from topi_kernels.pattern import Pattern
from topi_kernels.schedules.choose import Config
from topi_kernels.schedules.config import TAPS, ConvConfig, register_need
from topi_kernels.schedules.cost import tiles_across
from topi_kernels.schedules.cpu_int8.workload import Int8Config
from topi_kernels.schedules.load_reuse import input_rows
from topi_kernels.schedules.opencl.config import GpuConfig
from topi_kernels.task import Task

from .gpu_features import gpu_features
from .int8_features import int8_features

FEATURES = (
    "issue_share",
    "loads_per_fma",
    "weight_loads_per_fma",
    "loops_per_fma",
    "in_flight",
    "twice_in_flight",
    "accumulator_share",
    "register_share",
    "width_share",
    "filter_lanes",
    "pixel_lanes",
    "filter_vectors",
    "tile_rows",
    "tile_cols",
    "step_share",
    "rotate",
    "split",
    "splits_per_fma",
    "input_tile_bytes",
    "weight_bytes",
    "halo",
    "filter_outer",
    "prefetch",
    "block_share",
    "other_isa",
    "parallel_tasks",
    "flops_per_byte",
    "estimate",
)
#: Column of the schedule's own estimate, whatever the device.
ESTIMATE = -1


@lru_cache(maxsize=4096)
def _input_loads(
    geometry: ConvGeometry, patterns: tuple[Pattern, ...], config: ConvConfig
) -> float:
    """Input vectors that a register_tile loads for one kernel, each once; mean over patterns."""
    total = 0
    for pattern in patterns:
        for columns in input_rows(geometry, config, pattern.taps).values():
            if config.shift != "rotate":
                total += len(columns)
                continue
            # The aligned vectors that the shifted ones lie in, and one more; as if the leftmost
            # tap were aligned.
            ends = (max(columns), min(columns))
            last, first = ((end + geometry.padding[1]) // config.pixel_lanes for end in ends)
            total += last - first + 2
    return total / len(patterns)


def config_features(task: Task, config: Config, estimate: float) -> np.ndarray:
    """Knobs and static facts of one configuration.

    Parameters
    ----------
    task : ConvTask or Int8Task
    config : ConvConfig, GpuConfig or Int8Config
    estimate : float
        The schedule's own cost estimate.

    Returns
    -------
    numpy.ndarray
        float32 in the order of :data:`FEATURES`, of ``GPU_FEATURES`` on an OpenCL device, or of
        ``INT8_FEATURES``; the estimate is the last of each. What spans orders of magnitude is a
        base-2 logarithm.

    Raises
    ------
    TypeError
        If the config is of another kind of device than the task.
    """
    expected = task.schedules.config
    if type(config) is not expected:
        raise TypeError(
            f"the configs of {task.family!r} are of the class {expected.__name__}, got a"
            f" {type(config).__name__}"
        )
    return _FEATURES[expected](task, config, estimate)


def _cpu_features(task: ConvTask, config: ConvConfig, estimate: float) -> np.ndarray:
    family: Any = task.machine
    itemsize = np.dtype(task.dtype).itemsize
    c, layout = config, task.out_layout
    pixels, (filters, channels) = c.pixel_lanes, task.weight_shape[:2]
    rows, across = c.computed_rows(layout.band_height), tiles_across(task.shape, c)
    tiles = across * sum(number for _, number in c.row_tiles(layout.band_height))
    groups = -(-filters // c.group)
    outputs = layout.height * layout.width * filters
    # Outputs computed, tails and over-run columns included, to outputs wanted.
    computed = rows * across * groups * c.tile_cols * pixels * c.group / outputs
    width_share = c.vector_width / family.vector_width
    kernels = max(1.0, task.shape.kernels_per_group)
    taps = max(1.0, task.kept_weights / max(1, task.kept_kernels))
    fmas = c.outputs * taps
    rotate = c.shift == "rotate"
    # Of all knobs only these say what is loaded; one answer serves every value of the others.
    tile = ConvConfig(c.vector_width, c.filter_lanes, 1, c.tile_rows, c.tile_cols, shift=c.shift)
    loads = _input_loads(task.geometry, task.patterns, tile)
    if c.body == TAPS:  # no entry of a list shares an input with another
        loads = taps * c.tile_rows * c.tile_cols
    (sh, sw), (kh, kw) = task.geometry.stride, task.geometry.kernel_size
    if sw > 1 and pixels > 1 and c.shift != "split":
        loads *= 2  # neighbouring outputs have their inputs in two vectors
    inputs = ((c.tile_rows - 1) * sh + kh) * ((c.tile_cols * pixels - 1) * sw + kw)
    input_bytes, weight_bytes = itemsize * kernels * inputs, itemsize * kernels * taps * c.group
    line_bytes = 4 * family.cache_line_floats
    in_flight = c.accumulators / (family.fma_ports * family.fma_latency)
    flops = 2.0 * kernels * taps * c.group * c.tile_rows * c.tile_cols * pixels
    return np.array(
        [
            np.log2(computed / width_share),
            np.log2(loads / fmas),
            np.log2(taps * c.filter_vectors / fmas),
            -np.log2(fmas),
            min(1.0, in_flight),
            min(1.0, in_flight / 2),
            c.accumulators / family.vector_registers,
            register_need(c) / family.vector_registers,
            np.log2(width_share),
            np.log2(c.filter_lanes),
            np.log2(pixels),
            np.log2(c.filter_vectors),
            np.log2(c.tile_rows),
            np.log2(c.tile_cols),
            min(1.0, c.taps_per_step / taps),
            rotate,
            c.shift == "split",
            0.0 if rotate else loads / fmas * pixels * itemsize / line_bytes,
            np.log2(input_bytes),
            np.log2(weight_bytes),
            inputs / (c.tile_rows * c.tile_cols * pixels),
            c.loop_order == "filter_outer",
            np.log2(1 + c.prefetch),
            np.log2(min(channels, c.channel_block or channels) / channels),
            c.isa != "any",
            np.log2(tiles * groups),
            np.log2(flops / (input_bytes + weight_bytes)),
            # Against the work itself, so that it compares across layers.
            np.log2(estimate / max(1.0, task.effective_flops)),
        ],
        np.float32,
    )


#: Class of the configs -> what is known of one.
_FEATURES: dict[type, Callable[[Any, Any, float], np.ndarray]] = {
    ConvConfig: _cpu_features,
    GpuConfig: gpu_features,
    Int8Config: int8_features,
}
