"""Which tiles and blocks the body of tap lists is tried with, and what it is estimated to cost.

The estimate is made of what the machine does: an entry of a list takes as long as its multiply-adds
or its loads, whichever are more; leaving a list costs a wrong prediction; partial sums of a block
go through L2, and so does the part of a block's input that the nearest cache does not hold. For one
filter nothing is fetched ahead: fetches take load slots, which bound these loops.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

from ..tap_lists import why_no_tap_lists
from .config import TAPS, ConvConfig, taps_registers
from .family import Family
from .shape import ConvShape

# What an entry takes beyond what its ports allow, measured with everything in L1 where two
# multiply-adds start in a cycle: its other instructions are as many however long these last.
ENTRY_OVERHEAD, OVERHEAD_PORTS = 0.18, 2.0
# Parts of what fetching lines costs that out-of-order execution and prefetching leave: lines of a
# block that does not stay near, and lines of the next block.
MISSED_LINES, FETCHED_LINES = 0.6, 0.3
# Tiles with fewer accumulators than this share of the best are not tried; with stride 2, whose rows
# share no input, small ones leave room for more in_channels.
LEAST_TILE, LEAST_STRIDED = 0.6, 0.2
#: Sharing among more filters leaves no registers for pixels.
MAX_FILTERS = 4
#: Pairs of filters that share a block, at least, where level 0 takes lists of pairs. Measured on a
#: Zen 3 against a body for each pattern: 256 pairs gain 7 to 13 points of the peak, 128 none to 3,
#: and 64 or fewer lose 1 to 4.
LEAST_PAIRS = 256


def _channel_floats(shape: ConvShape, rows: int, cols: int, width: int, family: Family) -> int:
    """Elements of the lines that a tile touches of one in_channel."""
    kh, kw = shape.geometry.kernel_size
    (dh, dw), (sh, sw) = shape.geometry.dilation, shape.geometry.stride
    interleaved, line = shape.in_layout.is_interleaved, family.cache_line_floats
    step = shape.in_layout.lanes if interleaved else 1
    columns = ((cols - 1) * sw + 1) * width + (kw - 1) * dw * step
    # A row that starts anywhere in a line touches one more; half a line further, every other time.
    if not interleaved or width % line:
        columns += line // 2 if interleaved else line
    return ((rows - 1) * sh + (kh - 1) * dh + 1) * max(columns, line)


def channel_block(shape: ConvShape, rows: int, cols: int, width: int, family: Family) -> int:
    """In_channels of the fewest equal blocks whose input stays near; 0 for all at once."""
    floats = _channel_floats(shape, rows, cols, width, family)
    blocks = -(-shape.in_channels * floats // max(family.block_floats, floats))
    return -(-shape.in_channels // blocks) if blocks > 1 else 0


def tap_configs(shape: ConvShape, family: Family) -> Iterator[ConvConfig]:
    """Configurations of tap lists that are worth trying, in a fixed order."""
    suits = family.block_floats and shape.most_taps > 1
    if not suits or (shape.geometry.stride != (1, 1) and not shape.in_layout.is_interleaved):
        return
    if why_no_tap_lists(shape.geometry, shape.in_layout) is not None:
        return
    layout = shape.out_layout
    width = layout.lanes if layout.is_interleaved else family.vector_width
    least = LEAST_TILE if shape.geometry.stride == (1, 1) else LEAST_STRIDED
    for tile in list_tiles(shape, family, width, MAX_FILTERS, least):
        yield _with_block(shape, tile, family)


def list_tiles(
    shape: ConvShape, family: Family, width: int, most_filters: int, least: float
) -> Iterator[ConvConfig]:
    """Tiles for vectors of ``width`` lanes that fit the registers, without blocks of in_channels.

    Of each number of filters up to ``most_filters``, those with ``least`` of the most accumulators.
    """
    layout = shape.out_layout
    interleaved = layout.is_interleaved
    columns = layout.columns if interleaved else -(-layout.width // width)
    filters = 1
    while filters <= min(most_filters, shape.max_group):
        tiles = [
            ConvConfig(
                width,
                1,
                filters,
                rows,
                cols,
                taps_per_step=1,
                shift="lanes" if interleaved else "load",
                prefetch=0,
                body=TAPS,
            )
            for rows in range(1, min(layout.band_height, family.vector_registers) + 1)
            for cols in range(1, min(columns, family.vector_registers // rows) + 1)
        ]
        tiles = [c for c in tiles if taps_registers(c) <= family.vector_registers]
        most = max((c.accumulators for c in tiles), default=0)
        yield from (c for c in tiles if c.accumulators >= least * most)
        filters *= 2


def _with_block(shape: ConvShape, tile: ConvConfig, family: Family) -> ConvConfig:
    block = channel_block(shape, tile.tile_rows, tile.tile_cols, tile.vector_width, family)
    fetched = fetches_ahead(shape, tile, family)
    return replace(tile, channel_block=block, fetch_ahead=fetched)


def fetches_ahead(shape: ConvShape, tile: ConvConfig, family: Family) -> bool:
    """Whether the lists of a tile fetch the next one's input, see ``Family.fetched_lists``."""
    planes = shape.in_channels * shape.in_layout.size
    several = tile.filter_vectors > 1 and shape.geometry.stride == (1, 1)
    return family.fetched_lists and several and planes > family.l2_floats


def level_0_taps(shape: ConvShape, family: Family) -> Iterator[ConvConfig]:
    """Of :func:`tap_configs` those whose estimates were held against measurements."""
    if shape.most_taps >= math.prod(shape.geometry.kernel_size):  # dense kernels
        return
    few = shape.max_group <= family.tap_filters or shape.geometry.stride != (1, 1)
    if few and shape.in_layout.is_interleaved:
        yield from tap_configs(shape, family)
    elif not few and family.paired_taps and shape.out_channels >= 2 * LEAST_PAIRS:
        yield from (c for c in tap_configs(shape, family) if c.filter_vectors == 2)


def taps_cost(shape: ConvShape, config: ConvConfig, family: Family) -> float:
    """Estimated slots of one filter_group at one tile, its start and stores left out."""
    inputs, filters = config.tile_rows * config.tile_cols, config.filter_vectors
    # Weights and offsets are scalars, which load at the rate of narrow vectors.
    scalars = (filters + 1) * family.load_ports / (family.half_load_ports or family.load_ports)
    loads = inputs + scalars
    if not shape.in_layout.is_interleaved:  # of a kernel's columns all but one are unaligned
        kw = shape.geometry.kernel_size[1]
        loads += inputs * (kw - 1) / kw * config.vector_width / family.cache_line_floats
    overhead = 1.0 + ENTRY_OVERHEAD * family.fma_ports / OVERHEAD_PORTS
    # Multiply-adds of several filters, which outnumber the loads, hide it.
    hidden = filters > 1 and shape.geometry.stride == (1, 1)
    adding = config.accumulators * (1.0 if hidden else overhead)
    entry = max(adding, loads / family.load_ports * family.fma_ports * overhead)
    entry = max(entry, family.fma_ports * family.fma_latency)
    block = config.channel_block or shape.in_channels
    blocks = -(-shape.in_channels // block)
    tile = (config.tile_rows, config.tile_cols, config.vector_width)
    floats = block * _channel_floats(shape, *tile, family)
    lines_per_vector = config.vector_width / family.cache_line_floats
    missing = max(0.0, 1.0 - family.block_floats / floats)
    entry += missing * MISSED_LINES * inputs * lines_per_vector * family.line_cost
    groups = -(-shape.out_channels // config.group)
    # Every block of input comes from beyond once per tile, for all groups together.
    fetched = blocks * floats / family.cache_line_floats * family.line_cost / groups
    fetched *= FETCHED_LINES
    sums = 2 * config.accumulators * lines_per_vector * family.line_cost
    taps = shape.kernels_per_group * sum(len(p) for p in shape.patterns) / len(shape.patterns)
    return taps * entry + blocks * family.list_cost + (blocks - 1) * sums + fetched
