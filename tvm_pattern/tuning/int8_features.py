"""Static facts of a configuration of a convolution of bytes, for the cost model."""

from __future__ import annotations

import numpy as np

from topi_kernels.schedules.cpu_int8.task import Int8Task
from topi_kernels.schedules.cpu_int8.workload import LINES, WINDOW, Int8Config, tiles_of

INT8_FEATURES = (
    "computed_share",
    "shuffles_per_dot",
    "accumulator_share",
    "vectors",
    "strips",
    "group",
    "square",
    "lines",
    "window",
    "tiles",
    "entries_per_group",
    "tile_bytes",
    "estimate",
)


def int8_features(task: Int8Task, config: Int8Config, estimate: float) -> np.ndarray:
    """Knobs and static facts of one configuration, in the order of :data:`INT8_FEATURES`.

    Parameters
    ----------
    task : Int8Task
    config : Int8Config
    estimate : float
        The schedule's own cost estimate.

    Returns
    -------
    numpy.ndarray
        ``[len(INT8_FEATURES)]``, float32; what spans orders of magnitude is a base-2 logarithm.
    """
    isa, workload = task.machine, task.workload(task.filing(config))
    down, beside = tiles_of(workload, config)
    tiles, vectors = down * beside, config.strips * config.vectors
    outputs = task.out_layout.height * task.out_layout.width
    shuffled = 0.0 if config.form not in (*LINES, WINDOW) else 1.0 / config.group
    return np.array(
        [
            np.log2(tiles * vectors * isa.pixels / outputs),
            shuffled,
            config.group * vectors / isa.registers,
            np.log2(config.vectors),
            np.log2(config.strips),
            np.log2(config.group),
            config.form == LINES[0],
            config.form in LINES,
            config.form == WINDOW,
            np.log2(tiles),
            np.log2(1 + workload.entries / max(1, workload.groups)),
            np.log2(workload.units * vectors * isa.vector_bytes),
            # Against the work itself, so that it compares across layers.
            np.log2(max(estimate, 1e-9) / max(1.0, task.effective_flops)),
        ],
        np.float32,
    )
