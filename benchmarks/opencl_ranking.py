"""Does the model rank configurations as what they execute does?

Configurations of one layer, spread over what the model thinks of them, are run in oclgrind.
Executed multiply-adds and loads, at the rates that the model knows of the device, give another
time. Both orders are compared by Spearman's rank correlation, and by what the model's first choice
costs above the best by execution. The simulator knows nothing of how many work_items a device
wants in flight; the model does, and puts the largest tiles behind for that.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from relay_passes import targets
from topi_kernels.schedules.opencl.config import BUFFER, GLOBAL, GpuConfig, GpuFacts
from topi_kernels.schedules.opencl.cost import estimate_cost, register_need, waste
from topi_kernels.schedules.opencl.space import MAX_WASTE
from tvm_pattern.opencl.bundle import write_bundle

from .oclgrind import Executed, count
from .opencl_layers import COUNTED_FILTERS, Case

LOAD_BYTES = 16


def spread_configs(case: Case, most: int) -> list[GpuConfig]:
    """Register_tiles of a layer, from the cheapest by the model to the dearest."""
    shape, facts = case.task.shape, case.facts
    tiles: dict[tuple[Any, ...], tuple[float, GpuConfig]] = {}
    for c in case.task.configs():
        plain = (c.reads, c.input_tile, c.accumulator) == (BUFFER, GLOBAL, "float32")
        fits = register_need(shape, c, facts) <= facts.registers and waste(shape, c) <= MAX_WASTE
        if c.filters != max(case.group, 1) or not plain or not fits:
            continue
        cost = estimate_cost(shape, c, facts)
        tile = (c.vector_width, c.tile_rows, c.tile_cols, c.taps_per_step, c.loads)
        if tile not in tiles or cost < tiles[tile][0]:
            tiles[tile] = cost, c
    ordered = [c for _, c in sorted(tiles.values(), key=lambda pair: pair[0])]
    places = np.linspace(0, len(ordered) - 1, min(most, len(ordered))).round().astype(int)
    return [ordered[i] for i in places]


def executed_us(executed: Executed, facts: GpuFacts) -> float:
    """Microseconds that executed multiply-adds or loads take at the device's rates."""
    clock = facts.clock_mhz * facts.cores
    arithmetic = executed.multiply_adds / (clock * facts.multiply_adds)
    loads = executed.global_loads * LOAD_BYTES / (clock * facts.load_bytes)
    return max(arithmetic, loads)


def rank_correlation(a: Sequence[float], b: Sequence[float]) -> float:
    """Spearman's; equal values share their mean rank."""
    x, y = _ranks(a), _ranks(b)
    return float(x @ y / np.sqrt((x @ x) * (y @ y)))


def _ranks(values: Sequence[float]) -> np.ndarray:
    """Ranks around their mean."""
    _, inverse, counts = np.unique(np.array(values), return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    return np.asarray(ranks - ranks.mean())


def ranking(case: Case, folder: Path, most: int = 10) -> dict[str, Any]:
    """Both times of some configurations, and how well their orders agree."""
    some = np.ascontiguousarray(case.weight[:COUNTED_FILTERS])
    target, task = targets.resolve(f"pattern/{case.device}"), case.task_of(some)
    configs = spread_configs(case, most)
    model, run = [], []
    for number, config in enumerate(configs):
        bundle = write_bundle(folder / str(number), task, some, target, configs=[config])
        model.append(estimate_cost(case.task.shape, config, case.facts))
        run.append(executed_us(count(bundle), case.facts))
    rows = [
        {"config": config.as_dict(), "model_us": estimate, "executed_us": executed}
        for config, estimate, executed in zip(configs, model, run, strict=True)
    ]
    return {
        "workload": case.layer.name,
        "device": case.device,
        "group": case.group,
        "rank_correlation": rank_correlation(model, run),
        "first_over_best": run[0] / min(run),
        "rows": rows,
    }
