"""Search space and level-0 default of the pattern-sparse convolution.

The default needs no measurement: legal configurations are ranked by a small model of the inner loop
(FMA slots, loads, shuffles, loop overhead, tile tails) and the cheapest is taken. The tuner searches
the same space by measuring.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from ..layout import PlaneLayout
from ..pattern import Pattern
from ..reorder import GROUP_SIZES
from .config import ConvConfig, Family, illegal_reason

# What one vector load takes from the FMA pipes although it has ports of its own, in FMA slots;
# measured with loops of independent FMAs and loads from L1 on AVX-512.
LOAD_PENALTY = 0.2
# The same for a load that crosses a cache line.
SPLIT_LOAD_PENALTY = 0.6
LOOP_OVERHEAD = 4.0
LIST_OVERHEAD = 12.0
MIN_VECTOR_WIDTH = 4
MAX_FILTER_VECTORS = 4
# Dense kernels take several steps; LLVM starts the next step's loads early, which needs registers.
MULTI_STEP_ACCUMULATORS = 0.5


@dataclass(frozen=True)
class ConvShape:
    """What the model and the legality check must know of a convolution."""

    out_channels: int
    stride: tuple[int, int]
    dilation: tuple[int, int]
    padding: tuple[int, int]
    in_layout: PlaneLayout
    out_layout: PlaneLayout
    patterns: tuple[Pattern, ...]
    kernels_per_group: float
    max_group: int


def _distinct_inputs(shape: ConvShape, config: ConvConfig, taps: Sequence[tuple[int, int]]) -> set:
    (sh, sw), (dh, dw) = shape.stride, shape.dilation
    pl = shape.padding[1]
    return {
        (r * sh + kh * dh, c * config.pixel_lanes * sw + kw * dw - pl)
        for kh, kw in taps
        for r in range(config.tile_rows)
        for c in range(config.tile_cols)
    }


def _step_cost(
    shape: ConvShape, config: ConvConfig, family: Family, taps: Sequence[tuple[int, int]]
) -> float:
    """Cost of one kernel's step in FMA slots."""
    inputs = _distinct_inputs(shape, config, taps)
    width = config.vector_width
    loads = len(taps) * config.filter_vectors
    splits = shuffles = 0.0
    if config.shift == "rotate":
        rows: dict[int, set[int]] = {}
        for row, col in inputs:
            rows.setdefault(row, set()).update({col // width, -(-col // width)})
            shuffles += col % width != 0
        wraps = config.tile_cols * width == shape.in_layout.row_stride
        loads += sum(min(len(v), config.tile_cols) if wraps else len(v) for v in rows.values())
    else:
        loads += len(inputs) * (2 if shape.stride[1] == 2 and config.pixel_lanes > 1 else 1)
        if config.pixel_lanes * 4 >= 64:
            splits = sum(1 for _, col in inputs if col % 16)
        shuffles += len(inputs) if shape.stride[1] > 1 and config.pixel_lanes > 1 else 0
    if 1 < config.filter_lanes < width:
        shuffles += len(taps) * config.filter_vectors
    fma = config.accumulators * len(taps)
    port_bound = (loads + splits) / family.load_ports * family.fma_ports
    busy = fma + shuffles * family.shuffle_cost
    return max(busy + LOAD_PENALTY * loads + SPLIT_LOAD_PENALTY * splits, port_bound)


def estimate_cost(shape: ConvShape, config: ConvConfig, family: Family) -> float:
    """Estimated cost of the whole layer in FMA slots of one core; only its order matters."""
    layout = shape.out_layout
    columns = -(-layout.width // config.pixel_lanes)
    tiles = -(-layout.height // config.tile_rows) * -(-columns // config.tile_cols)
    groups = -(-shape.out_channels // config.group)
    per_kernel = 0.0
    for pattern in shape.patterns:
        taps = pattern.taps
        for first in range(0, len(taps), config.taps_per_step):
            step = taps[first : first + config.taps_per_step]
            per_kernel += _step_cost(shape, config, family, step)
    per_kernel = per_kernel / len(shape.patterns) + LOOP_OVERHEAD
    # Few FMAs in flight can't hide their latency.
    if config.accumulators < 8:
        per_kernel *= 8 / config.accumulators
    store = config.accumulators * (2.0 + (1.5 * config.filter_lanes if config.filter_lanes > 1 else 0))
    lists = LIST_OVERHEAD * len(shape.patterns)
    return tiles * groups * (shape.kernels_per_group * per_kernel + store + lists)


def _filter_splits(family: Family, group: int) -> Iterator[tuple[int, int, int]]:
    """``(vector_width, filter_lanes, filter_vectors)`` whose product of the last two is ``group``."""
    width = family.vector_width
    while width >= MIN_VECTOR_WIDTH:
        lanes = 1
        while lanes <= min(width, group):
            if group % lanes == 0 and group // lanes <= MAX_FILTER_VECTORS:
                yield width, lanes, group // lanes
            lanes *= 2
        width //= 2


def search_space(shape: ConvShape, family: Family) -> Iterator[ConvConfig]:
    """All legal configurations of a convolution, in a fixed order."""
    layout = shape.out_layout
    budget = family.vector_registers - family.temporaries
    most_taps = max(len(p) for p in shape.patterns)
    kernel_width = shape.patterns[0].kernel_size[1]
    steps = (most_taps,) if most_taps <= 4 else (kernel_width,)
    for group in GROUP_SIZES:
        if group > shape.max_group or (group > shape.out_channels and group > 1):
            continue
        for width, filter_lanes, filter_vectors in _filter_splits(family, group):
            pixels = width // filter_lanes
            columns = -(-layout.width // pixels)
            for rows in range(1, min(layout.height, budget) + 1):
                for cols in range(1, min(columns, budget // rows) + 1):
                    base = ConvConfig(
                        width, filter_lanes, filter_vectors, rows, cols, prefetch=family.prefetch
                    )
                    for step in steps:
                        for shift in ("load", "rotate"):
                            config = replace(base, taps_per_step=step, shift=shift)
                            if _why_not(shape, config, family) is None:
                                yield config


def _why_not(shape: ConvShape, config: ConvConfig, family: Family) -> str | None:
    reason = illegal_reason(
        config,
        family,
        out_height=shape.out_layout.height,
        out_width=shape.out_layout.width,
        in_row_stride=shape.in_layout.row_stride,
        out_row_stride=shape.out_layout.row_stride,
        stride_w=shape.stride[1],
    )
    if reason is not None:
        return reason
    limit = family.vector_registers - family.temporaries
    if max(len(p) for p in shape.patterns) > config.taps_per_step:
        limit = family.vector_registers * MULTI_STEP_ACCUMULATORS
    extra = config.taps_per_step * config.filter_vectors
    if config.shift == "rotate":
        extra += 2 * config.tile_cols
    if config.accumulators + extra + 2 > family.vector_registers or config.accumulators > limit:
        return "the weights of a step do not fit beside the accumulators"
    if config.shift == "rotate" and max(p.kernel_size[1] for p in shape.patterns) == 1:
        return "rotate is pointless without horizontal taps"
    return None


def default_config(shape: ConvShape, family: Family) -> ConvConfig:
    """The level-0 configuration: the cheapest of the search_space by the model.

    Raises
    ------
    ValueError
        If no configuration is legal.
    """
    best: tuple[float, ConvConfig] | None = None
    for config in search_space(shape, family):
        cost = estimate_cost(shape, config, family)
        if best is None or cost < best[0]:
            best = (cost, config)
    if best is None:
        raise ValueError(
            f"no legal configuration for {shape.out_layout.height}x{shape.out_layout.width} output"
            f" on {family.name}; its row stride {shape.out_layout.row_stride} may be too small"
        )
    return best[1]
