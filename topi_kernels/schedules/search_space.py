"""Search space and level-0 default of the pattern-sparse convolution.

The default needs no measurement: legal configurations are ranked by the model of :mod:`.cost`, and
the cheapest is taken. The tuner searches the same space by measuring.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

from ..reorder import GROUP_SIZES
from .choices import CHOICES
from .config import MAX_CHAINS, MAX_PREFETCH, SHIFTS, ConvConfig
from .cost import (
    channel_block,
    estimate_cost,
    least_cost,
    live_early,
    tiles_across,
    weight_loads,
)
from .family import Family
from .gemm.space import gemm_configs
from .legality import illegal_for
from .pointwise import pointwise_configs
from .shape import ConvShape
from .tap_space import level_0_taps, tap_configs

MIN_VECTOR_WIDTH = 4
MAX_FILTER_VECTORS = 4
# Vectors of a row that LLVM loads ahead of their use for in-order cores: with more accumulators
# beside them it spilled.
EARLY_INPUTS = 11
# Dense kernels take several steps; LLVM starts the next step's loads early, which needs registers.
MULTI_STEP_ACCUMULATORS = 0.5


def _filter_splits(family: Family, group: int) -> Iterator[tuple[int, int, int]]:
    """``(vector_width, filter_lanes, filter_vectors)`` that make up a ``group``."""
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
    yield from _pattern_configs(shape, family)
    for configs in (tap_configs, pointwise_configs, gemm_configs):
        yield from _legal(configs(shape, family), shape, family)


def _legal(configs: Iterator[ConvConfig], shape: ConvShape, family: Family) -> Iterator[ConvConfig]:
    return (config for config in configs if illegal_for(shape, config, family) is None)


# Registers for each tap of a row that is computed in one step: longer rows go in steps of four.
REGISTERS_A_TAP = 2


def _default_space(shape: ConvShape, family: Family) -> Iterator[ConvConfig]:
    """What the level-0 configuration is chosen from."""
    yield from _pattern_configs(shape, family)
    yield from _legal(level_0_taps(shape, family), shape, family)
    if family.copied_tiles:
        yield from _legal(pointwise_configs(shape, family), shape, family)
    yield from _legal(gemm_configs(shape, family), shape, family)


def _pattern_configs(shape: ConvShape, family: Family) -> Iterator[ConvConfig]:
    """Those with a body for each pattern."""
    layout = shape.out_layout
    budget = family.vector_registers - family.temporaries
    most_taps = shape.most_taps
    kernel_width = shape.geometry.kernel_size[1]
    steps: tuple[int, ...] = (most_taps,) if most_taps <= 4 else (kernel_width,)
    if REGISTERS_A_TAP * kernel_width > family.vector_registers and most_taps > 4:
        steps = (4,)
    if family.vector_registers <= 16 and most_taps == 4:
        steps = (4, 2)
    # Long bodies give the hardware time to fetch; short ones need to look further ahead.
    distance = family.prefetch if most_taps > 1 else MAX_PREFETCH * (family.prefetch > 0)
    if most_taps > 4:
        distance = 0
    interleaved = layout.is_interleaved or shape.in_layout.is_interleaved
    shifts = [shift for shift in SHIFTS if (shift == "lanes") == interleaved]
    for group in GROUP_SIZES:
        if group > shape.max_group or (group > shape.out_channels and group > 1):
            continue
        for split in _filter_splits(family, group):
            width, filter_lanes, filter_vectors = split
            if layout.is_interleaved and (filter_lanes > 1 or width != layout.lanes):
                continue
            columns = -(-layout.width // (width // filter_lanes))
            columns = layout.columns if layout.is_interleaved else columns
            fitting = [s for s in shifts if interleaved or _suits(shape, family, split, s)]
            # What exceeds the registers is not even looked at: most tiles do.
            most = budget // filter_vectors
            for rows in range(1, min(layout.band_height, most) + 1):
                even = interleaved and layout.band_height % rows != 0
                if even and rows > -(-layout.band_height // -(-layout.band_height // rows)):
                    continue  # fewer rows make as many tiles
                for cols in range(1, min(columns, most // rows) + 1):
                    base = ConvConfig(
                        width,
                        filter_lanes,
                        filter_vectors,
                        rows,
                        cols,
                        prefetch=distance,
                        fetch_ahead=family.fetch_ahead,
                        isa=family.isa if width == family.vector_width else "any",
                        even_rows=even,
                    )
                    for step in steps:
                        for shift in fitting:
                            config = replace(base, taps_per_step=step, shift=shift)
                            if _why_not(shape, config, family) is not None:
                                continue
                            yield config
                            yield from _more_chains(shape, config, family)
                            block = channel_block(shape, config, family)
                            if block:
                                yield replace(config, channel_block=block, prefetch=0)


def _more_chains(shape: ConvShape, config: ConvConfig, family: Family) -> Iterator[ConvConfig]:
    """A tile as large as the image whose sums are too few to hide the latency of a multiply-add."""
    is_whole = config.tile_rows == shape.out_layout.band_height
    is_whole = is_whole and tiles_across(shape, config) == 1
    own, _ = family.slots_of(config.vector_width)
    wanted = math.ceil(own.fma_ports * own.fma_latency / config.accumulators)
    if not is_whole or wanted == 1 or shape.geometry.kernel_size == (1, 1):
        return
    more = replace(config, chains=min(wanted, MAX_CHAINS))
    if _why_not(shape, more, family) is None:
        yield more


def _suits(shape: ConvShape, family: Family, split: tuple[int, int, int], shift: str) -> bool:
    """Whether the smallest tile of plain rows can have a ``shift``; else no larger one can."""
    if shift == "rotate" and shape.geometry.kernel_size[1] == 1:
        return False
    return illegal_for(shape, ConvConfig(*split, 1, 1, shift=shift), family) is None


def _interleaved_registers(shape: ConvShape, config: ConvConfig, family: Family) -> str | None:
    """Why the inputs of a row and the weights do not fit beside the accumulators, or None."""
    kw = shape.patterns[0].kernel_size[1]
    inputs = min(kw, 3) if kw == 1 or shape.in_layout.border else config.tile_cols + 2
    if family.early_loads:
        if config.tile_cols == shape.in_layout.columns and not shape.in_layout.border:
            return "whole rows are loaded as late as they are used, which in-order cores wait for"
        inputs = max(EARLY_INPUTS, 2 * inputs)
    need = config.accumulators + inputs + weight_loads(config, config.taps_per_step)
    if need <= family.vector_registers:
        return None
    return f"{need} registers are wanted, there are {family.vector_registers}"


def _why_not(shape: ConvShape, config: ConvConfig, family: Family) -> str | None:
    reason = illegal_for(shape, config, family)
    if reason is not None:
        return reason
    limit = family.vector_registers - family.temporaries
    if shape.most_taps > config.taps_per_step:
        limit = int(family.vector_registers * MULTI_STEP_ACCUMULATORS)
    if config.isa == "neon" and 1 < config.filter_lanes < config.vector_width:
        return "lanes that mix pixels and filters cost NEON a shuffle per weight vector"
    # Of interleaved lanes LLVM loads pairs, near their use: see _interleaved_registers.
    early = family.early_loads and config.shift != "lanes"
    if early and live_early(shape, config) > family.vector_registers:
        return "the inputs and weights of a step do not fit beside the accumulators"
    extra = weight_loads(config, config.taps_per_step)
    halved = config.taps_per_step < min(4, shape.most_taps)
    if config.shift == "lanes" and halved and config.filter_vectors == 1:
        return "the inputs of a single filter would be loaded twice"
    if config.shift == "rotate":
        extra += 2 * config.tile_cols
    if config.shift == "lanes":  # a row that goes in a circle is held while it is used
        return _interleaved_registers(shape, config, family)
    extra += family.temporaries // 2
    if 1 < config.filter_lanes < config.vector_width:
        extra += 1  # the index vector that spreads weights over pixels
    if config.filter_lanes > 1 and family.vector_registers <= 16:
        extra += 3  # AVX2 cannot broadcast an input inside the multiply-add
    if config.accumulators + extra > family.vector_registers or config.accumulators > limit:
        return "the weights of a step do not fit beside the accumulators"
    if config.shift == "rotate" and shape.geometry.kernel_size[1] == 1:
        return "rotate is pointless without horizontal taps"
    return None


@CHOICES.remembered(ConvConfig)
def default_config(shape: ConvShape, family: Family) -> ConvConfig:
    """The level-0 configuration: the cheapest of the search_space by the model.

    Raises
    ------
    ValueError
        If no configuration is legal.
    """
    best: tuple[float, ConvConfig] | None = None
    for config in _default_space(shape, family):
        if best is not None and least_cost(shape, config, family) >= best[0]:
            continue
        cost = estimate_cost(shape, config, family)
        if best is None or cost < best[0]:
            best = (cost, config)
    if best is None:
        raise ValueError(
            f"no legal configuration for {shape.out_layout.height}x{shape.out_layout.width} output"
            f" on {family.name}; its row stride {shape.out_layout.row_stride} may be too small"
        )
    return best[1]
