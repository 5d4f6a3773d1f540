"""Sparse kernels of one tap as tap lists: which tiles and blocks are tried, and their estimate.

Such a kernel uses each loaded vector once per filter, so what counts is that a block of in_channels
stays in L1 while all filters take turns. A tile's input is read where it lies (``taps``), or is
copied first (``copied``), which pays where many filters share the copy. The estimate is made of
cycles measured on a Zen 4 with either width of vectors: port-bound multiply-adds, the start of a
list, partial sums to and from L2 between blocks, and the copy.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from ..layout import round_up
from ..tap_lists import why_no_tap_lists
from .config import COPIED, TAPS, ConvConfig
from .family import Family
from .shape import ConvShape
from .tap_space import MAX_FILTERS, fetches_ahead, list_tiles
from .tile_copy import why_not_copied

# Of what leaving a list costs elsewhere: this end is known while multiply-adds still wait.
LIST_SHARE = 0.44
# Cycles of a line of partial sums moved between blocks, of a line that is copied, and of one that
# comes from beyond L1 for the first time in a block.
SUM_CYCLES, COPY_CYCLES, FETCH_CYCLES = 3.7, 5.0, 1.0
# What an accumulator fewer than twice those in flight adds to an entry: less hides late loads.
FEW_SUMS = 0.005
# A loop over kernels of one filter, of which no two share anything, over its estimate: measured on
# eight layers, 1.25 to 1.5.
SINGLE_FILTER = 1.35
# What lines of a block that conflict in L1 add to an entry, where rows are whole lines and where
# they are not, and how much of L1 a block may then fill.
WHOLE_LINES, BROKEN_LINES = (0.05, 0.9), (0.12, 0.6)
# Lines of a block beyond what stays near, each time they are read.
MISSED_CYCLES = 1.0
# Tiles with fewer accumulators than this share of the most are not tried.
LEAST_TILE = 0.2
# Denser lists name nearly every in_channel: without a list it is no load.
MAX_DENSITY = 0.9
# Filters up to which partial sums come and go while multiply-adds keep their ports busy.
MOST_HIDDEN = 2
#: Of vectors of a whole line: four filters ran at 80 % of the peak, two at 91.
MAX_FILTERS_OF_LINES = 2


def is_pointwise(shape: ConvShape) -> bool:
    """Whether a convolution has sparse kernels of one tap."""
    sparse = shape.kernels_per_group <= MAX_DENSITY * shape.in_channels
    return sparse and why_not_copied(shape.geometry) is None


def _tile_floats(shape: ConvShape, config: ConvConfig, family: Family) -> int:
    """Elements of the lines that a tile reads of one in_channel."""
    floats, layout = config.tile_cols * config.vector_width, shape.in_layout
    if config.body == COPIED:
        return config.tile_rows * floats
    if floats == layout.row_stride:  # whole rows lie side by side
        return round_up(config.tile_rows * floats, family.cache_line_floats)
    return config.tile_rows * round_up(floats, family.cache_line_floats)


def _conflicts(shape: ConvShape, config: ConvConfig, family: Family) -> tuple[float, float]:
    """What reading a block in place adds to an entry, and the share of L1 that it may fill."""
    if config.body == COPIED:
        return 0.0, 1.0
    whole = shape.in_layout.row_stride % family.cache_line_floats == 0
    return WHOLE_LINES if whole else BROKEN_LINES


def _with_block(shape: ConvShape, config: ConvConfig, family: Family) -> int:
    """In_channels of the fewest equal blocks whose input stays near; 0 for all at once."""
    most = _conflicts(shape, config, family)[1] * family.block_floats
    floats = _tile_floats(shape, config, family)
    blocks = -(-shape.in_channels * floats // max(int(most), floats))
    if blocks > 1 or config.body == COPIED:
        return -(-shape.in_channels // blocks)
    return 0


def pointwise_configs(shape: ConvShape, family: Family) -> Iterator[ConvConfig]:
    """Configurations that are worth trying, in a fixed order; not all of them are legal."""
    if not is_pointwise(shape) or not family.block_floats:
        return
    in_place = shape.geometry.stride == (1, 1) or shape.out_layout.is_interleaved
    in_place = in_place and why_no_tap_lists(shape.geometry, shape.in_layout) is None
    for width in _widths(shape, family):
        yield from _of_width(shape, family, width, in_place=in_place)


def _widths(shape: ConvShape, family: Family) -> Iterator[int]:
    """Lanes of the vectors to try."""
    layout, width = shape.out_layout, family.vector_width
    if layout.is_interleaved:
        yield layout.lanes
        return
    while width > 4 and layout.width <= width // 2:
        width //= 2
    yield width
    half = width // 2
    as_fast = family.half_fma_ports > family.fma_ports and width == family.vector_width
    if as_fast and -(-layout.width // half) % 2:  # fewer empty lanes
        yield half


def _of_width(
    shape: ConvShape, family: Family, width: int, *, in_place: bool
) -> Iterator[ConvConfig]:
    whole = in_place and width % family.cache_line_floats == 0
    most_filters = MAX_FILTERS_OF_LINES if whole else MAX_FILTERS
    for tile in list_tiles(shape, family, width, most_filters, LEAST_TILE):
        yield from _bodies(shape, tile, family, in_place=in_place)


def _bodies(
    shape: ConvShape, tile: ConvConfig, family: Family, *, in_place: bool
) -> Iterator[ConvConfig]:
    for body in (TAPS, COPIED) if in_place else (COPIED,):
        config = replace(tile, body=body, fetch_ahead=fetches_ahead(shape, tile, family))
        yield replace(config, channel_block=_with_block(shape, config, family))


def single_filter_factor(shape: ConvShape, config: ConvConfig) -> float:
    """What sparse kernels of one tap take beyond their estimate with a body for each pattern."""
    return SINGLE_FILTER if config.group == 1 and is_pointwise(shape) else 1.0


def pointwise_cost(shape: ConvShape, config: ConvConfig, family: Family) -> float:
    """Estimated slots of one filter_group at one tile, its start and stores left out."""
    per_cycle = family.fma_ports
    conflict, share = _conflicts(shape, config, family)
    # Weights and offsets are scalars, which load at the rate of narrow vectors.
    scalars = config.filter_vectors + 1.0
    scalars *= family.load_ports / (family.half_load_ports or family.load_ports)
    loads = config.tile_rows * config.tile_cols + scalars
    loading = loads / family.load_ports * per_cycle
    adding = max(float(config.accumulators), per_cycle * family.fma_latency)
    block = config.channel_block or shape.in_channels
    blocks = -(-shape.in_channels // block)
    groups = -(-shape.out_channels // config.group)
    floats = _tile_floats(shape, config, family)
    lines = floats / family.cache_line_floats
    missing = max(0.0, 1.0 - share * family.block_floats / (block * floats))
    few = max(0.0, 2 * per_cycle * family.fma_latency - config.accumulators)
    entry = max(adding, loading) * (1.0 + conflict + FEW_SUMS * few)
    entry += missing * lines * per_cycle * MISSED_CYCLES
    # Loads of sums go where those of entries leave room; those of four filters did not.
    hidden = config.filter_vectors <= MOST_HIDDEN
    spare = max(0.0, adding - loading) * shape.kernels_per_group / blocks if hidden else 0.0
    sums = 2 * config.accumulators * config.vector_width / family.cache_line_floats
    sums *= SUM_CYCLES * per_cycle
    once = COPY_CYCLES if config.body == COPIED else FETCH_CYCLES
    lists = blocks * LIST_SHARE * family.list_cost
    once *= lines * shape.in_channels / groups
    work = shape.kernels_per_group * entry + (blocks - 1) * max(0.0, sums - spare)
    return (work + lists + per_cycle * once) * family.pointwise_share
