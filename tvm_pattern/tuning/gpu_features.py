"""Static facts of a configuration of an OpenCL device, for the cost model."""

from __future__ import annotations

from typing import Any

import numpy as np

from topi_kernels.conv_task import ConvTask
from topi_kernels.schedules.opencl.config import LOCAL, TEXTURE, GpuConfig
from topi_kernels.schedules.opencl.cost import counts_of, register_need, roofline, tile_grid

GPU_FEATURES = (
    "computed_share",
    "loads_per_fma",
    "weight_loads_per_fma",
    "loops_per_fma",
    "register_share",
    "vector_width",
    "filters",
    "tile_rows",
    "tile_cols",
    "taps_per_step",
    "work_items",
    "filter_groups",
    "idle_share",
    "items",
    "tiles_first",
    "float16_sums",
    "textures",
    "local_copies",
    "arithmetic",
    "loads",
    "estimate",
)


def gpu_features(task: ConvTask, config: GpuConfig, estimate: float) -> np.ndarray:
    """Knobs and static facts of one configuration, in the order of :data:`GPU_FEATURES`.

    Parameters
    ----------
    task : ConvTask
        Of an OpenCL device.
    config : GpuConfig
    estimate : float
        The schedule's own cost estimate.

    Returns
    -------
    numpy.ndarray
        ``[len(GPU_FEATURES)]``, float32; what spans orders of magnitude is a base-2 logarithm.
    """
    facts: Any = task.machine
    shape, c, layout = task.shape, config, task.out_layout
    counts = counts_of(shape, c, facts)
    fmas = sum(count.multiply_adds for count in counts)
    rows, cols = tile_grid(shape, c)
    groups = -(-shape.out_channels // c.filters)
    computed = rows * cols * groups * c.accumulators * c.vector_width
    launched = -(-rows * cols // c.tiles_per_group) * c.tiles_per_group * groups
    bounds = roofline(shape, c, facts)
    work = max(1.0, task.effective_flops)
    return np.array(
        [
            np.log2(computed / (layout.height * layout.width * shape.out_channels)),
            np.log2(sum(count.input_loads for count in counts) / fmas),
            np.log2(sum(count.weight_loads for count in counts) / fmas),
            np.log2(len(counts) / fmas),
            register_need(shape, c, facts) / facts.registers,
            np.log2(c.vector_width),
            np.log2(c.filters),
            np.log2(c.tile_rows),
            np.log2(c.tile_cols),
            np.log2(c.taps_per_step),
            np.log2(c.work_items / facts.wave),
            np.log2(c.filter_groups_per_group),
            np.log2(launched / (rows * cols * groups)),
            np.log2(launched / (facts.cores * facts.wave)),
            c.order == "tiles",
            c.accumulator == "float16",
            c.reads == TEXTURE,
            c.input_tile == LOCAL,
            np.log2(bounds.arithmetic / work),
            np.log2(bounds.loads / work),
            # Against the work itself, so that it compares across layers.
            np.log2(max(estimate, 1e-9) / work),
        ],
        np.float32,
    )
