"""Level 0's model of the pattern-sparse convolution: what a configuration is estimated to cost.

The inner loop is counted in FMA slots: multiply-adds, loads, shuffles, loop overhead, what tiles
lose at the edges, and what does not stay in the nearest cache.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ..layout import PlaneLayout
from .config import ConvConfig
from .family import Family
from .gemm.space import gemm_cost
from .load_reuse import input_rows
from .pointwise import pointwise_cost, single_filter_factor
from .shape import ConvShape
from .tap_space import taps_cost

MIN_LIST = 4
MISSING_CHAIN_COST = 0.01
ONE_STEP_TAPS = 4
# Sums of floats in another order differ by less than this.
LEAST_SHARE = 1 - 1e-9


def _rows_of_step(
    shape: ConvShape, config: ConvConfig, taps: Sequence[tuple[int, int]]
) -> Iterator[set[int]]:
    """First columns of the input vectors of a step, row by row as they lie in memory."""
    sw = shape.geometry.stride[1]
    for columns in input_rows(shape.geometry, config, taps).values():
        if config.shift == "split":  # each remainder has a row of its own
            for rest in dict.fromkeys(column % sw for column in columns):
                yield {column // sw for column in columns if column % sw == rest}
        else:
            yield columns


def _row_vectors(shape: ConvShape, config: ConvConfig) -> int:
    """Vectors of an output row."""
    layout = shape.out_layout
    return layout.columns if layout.is_interleaved else -(-layout.width // config.pixel_lanes)


def tiles_across(shape: ConvShape, config: ConvConfig) -> int:
    """Register_tiles beside each other."""
    return -(-_row_vectors(shape, config) // config.tile_cols)


def _column_step(shape: ConvShape, config: ConvConfig) -> int:
    """Distance in memory of the inputs of two neighbouring outputs."""
    return 1 if config.shift == "split" else shape.geometry.stride[1]


def _separation_cost(shape: ConvShape, config: ConvConfig, family: Family) -> float:
    """Writing even and odd rows and columns apart, once per call."""
    if config.shift != "split":
        return 0.0
    kernel = shape.geometry.kernel_size
    rows = shape.out_layout.height * min(kernel[0], shape.geometry.stride[0])
    vectors = -(-shape.out_layout.width // config.vector_width) * min(
        kernel[1], shape.geometry.stride[1]
    )
    return shape.in_channels * rows * vectors * (2 * family.line_cost + family.store_cost)


def _load_columns(config: ConvConfig, columns: set[int]) -> set[int]:
    """Columns of an input row that loads start from."""
    if config.isa != "neon" or config.pixel_lanes > 1:
        return columns
    first, width = min(columns), config.vector_width
    return {first + (col - first) // width * width for col in columns}


def weight_loads(config: ConvConfig, taps: int) -> int:
    """Vectors of weights that a step of ``taps`` taps loads."""
    vectors = taps * config.filter_vectors
    if config.isa == "neon" and config.filter_lanes == 1:
        return -(-vectors // config.vector_width)
    return vectors


def live_early(shape: ConvShape, config: ConvConfig) -> int:
    """Registers in use if all loads of a step come before its multiply-adds."""
    most = 0
    for pattern in shape.patterns:
        for first in range(0, len(pattern), config.taps_per_step):
            step = pattern.taps[first : first + config.taps_per_step]
            rows = _rows_of_step(shape, config, step)
            inputs = sum(len(_load_columns(config, columns)) for columns in rows)
            most = max(most, inputs + weight_loads(config, len(step)))
    return config.accumulators + most


def _channel_floats(shape: ConvShape, config: ConvConfig, family: Family) -> int:
    """Input elements of one in_channel that a tile touches."""
    kh, kw = shape.geometry.kernel_size
    step = 1 if config.shift == "split" and kh == 1 else shape.geometry.stride[0]
    rows = (config.tile_rows - 1) * step + (kh - 1) * shape.geometry.dilation[0] + 1
    step = 1 if config.shift == "split" and kw == 1 else shape.geometry.stride[1]
    reach = (kw - 1) * shape.geometry.dilation[1] * config.column_step
    columns = config.tile_cols * config.pixel_lanes * step + reach
    return rows * min(columns + family.cache_line_floats, shape.in_layout.row_stride)


def _miss_share(shape: ConvShape, config: ConvConfig, family: Family) -> float:
    """Share of a tile's input lines that come from beyond the nearest cache."""
    floats = _channel_floats(shape, config, family)
    footprint = (config.channel_block or shape.in_channels) * floats
    reach = family.block_floats if config.channel_block else family.near_cache_floats
    missing = max(0.0, 1.0 - reach / footprint)
    if not config.channel_block:
        return missing
    # Every line of a block is fetched once, and then shared by the kernels of all filters.
    uses = shape.out_channels / config.group * shape.kernels_per_group / shape.in_channels
    return max(missing, min(1.0, 1.0 / max(uses, 1.0)))


def _block_cost(shape: ConvShape, config: ConvConfig, family: Family) -> float:
    """What taking turns costs one filter_group at one tile: partial sums, more lists to leave."""
    if not config.channel_block:
        return 0.0
    blocks = -(-shape.in_channels // config.channel_block)
    sums = 2 * config.accumulators * config.vector_width / family.cache_line_floats
    sums *= family.far_line_cost or family.line_cost
    return (blocks - 1) * (sums + len(shape.patterns) * family.list_cost)


def channel_block(shape: ConvShape, config: ConvConfig, family: Family) -> int:
    """In_channels of the fewest equal blocks whose input stays near; 0 if lists get too short."""
    if config.loop_order != "tile_outer" or not family.block_floats:
        return 0
    if shape.most_taps > 1:  # several taps share their lines anyway
        return 0
    total = shape.in_channels * _channel_floats(shape, config, family)
    blocks = -(-total // family.block_floats)
    kernels = shape.kernels_per_group / blocks / len(shape.patterns)
    return -(-shape.in_channels // blocks) if blocks > 1 and kernels >= MIN_LIST else 0


def _page_cost(shape: ConvShape, config: ConvConfig, family: Family) -> float:
    """Address translation: tall tiles of wide images touch a new page every few rows."""
    kh = shape.geometry.kernel_size[0]
    rows = (
        (config.tile_rows - 1) * shape.geometry.stride[0]
        + (kh - 1) * shape.geometry.dilation[0]
        + 1
    )
    pages = 1 + rows * shape.in_layout.row_stride / family.page_floats
    if pages * shape.in_channels <= family.near_pages:
        return 0.0
    return (pages - 1) * family.page_cost


def _interleaved_loads(layout: PlaneLayout, vectors: set[int]) -> tuple[int, int]:
    """Shuffles and loads for some vectors of a row, counted from the tile's first."""
    if layout.border:
        return 0, len(vectors)
    beyond = sum(1 for v in vectors if not 0 <= v < layout.columns)
    return beyond, len({v % layout.columns for v in vectors})


def _row_line_share(shape: ConvShape, family: Family) -> float:
    """See ``Family``; what was measured are kernels of one step, dense ones take several."""
    return family.row_line_share if shape.most_taps <= ONE_STEP_TAPS else 1.0


@dataclass(frozen=True)
class _Inputs:
    """What loading the inputs of a step takes: vectors, lines of the cache, work on lanes."""

    loads: float = 0.0
    splits: float = 0.0
    shuffles: float = 0.0
    lines: float = 0.0
    deinterleaves: int = 0


#: By all that decides them, taps last: many layers and configurations have them in common.
_inputs: dict[tuple[Any, ...], dict[Sequence[tuple[int, int]], _Inputs]] = {}
_MOST_INPUTS = 1 << 13


def _inputs_of_tile(
    shape: ConvShape, config: ConvConfig, family: Family
) -> Callable[[Sequence[tuple[int, int]]], _Inputs]:
    """The inputs of a step of given taps, each counted once."""
    layout, share = shape.in_layout, 1.0
    place: tuple[Any, ...] = ()
    if config.shift == "lanes":
        share = _row_line_share(shape, family)
        place = (layout.border, layout.columns, share)
    elif config.shift == "rotate":
        place = (config.tile_cols * config.vector_width == layout.row_stride,)
    tile = (config.tile_rows, config.tile_cols, config.vector_width, config.filter_lanes)
    key = (shape.geometry, tile, config.shift, config.isa, family.cache_line_floats, place)
    known = _inputs.get(key)
    if known is None:
        if len(_inputs) >= _MOST_INPUTS:
            _inputs.clear()
        known = _inputs[key] = {}

    def inputs(taps: Sequence[tuple[int, int]]) -> _Inputs:
        found = known.get(taps)
        if found is None:
            line = family.cache_line_floats
            found = known[taps] = _count_inputs(shape, config, line, share, taps)
        return found

    return inputs


def _count_inputs(
    shape: ConvShape, config: ConvConfig, line: int, share: float, taps: Sequence[tuple[int, int]]
) -> _Inputs:
    width, pixels = config.vector_width, config.pixel_lanes
    loads, splits, shuffles, lines, deinterleaves = 0.0, 0.0, 0.0, 0.0, 0
    for columns in _rows_of_step(shape, config, taps):
        if config.shift == "lanes":
            moved, count = _interleaved_loads(shape.in_layout, {c // width for c in columns})
            loads += count
            shuffles += moved
            lines += count * width / line * share
            continue
        if config.shift == "rotate":
            vectors = {v for col in columns for v in (col // width, -(-col // width))}
            wraps = config.tile_cols * width == shape.in_layout.row_stride
            count = min(len(vectors), config.tile_cols) if wraps else len(vectors)
            loads += count
            lines += count * width / line
            shuffles += sum(1 for col in columns if col % width)
            continue
        columns = _load_columns(config, columns)
        deinterleaved = _column_step(shape, config) > 1 and pixels > 1
        loads += len(columns) * (2 if deinterleaved else 1)
        deinterleaves += len(columns) if deinterleaved else 0
        crossing = 1.0 if pixels >= line else pixels / line
        splits += sum(crossing for col in columns if pixels > 1 and col % pixels)
        span = max(columns) + pixels * _column_step(shape, config) - min(columns)
        lines += (span - 1) / line + 1
    return _Inputs(loads, splits, shuffles, lines, deinterleaves)


def _step_cost(
    shape: ConvShape,
    config: ConvConfig,
    family: Family,
    taps: Sequence[tuple[int, int]],
    found: _Inputs,
    missing: float,
) -> float:
    """Cost of one kernel's step in FMA slots; ``missing`` as of :func:`_miss_share`."""
    line, width = family.cache_line_floats, config.vector_width
    weights = weight_loads(config, len(taps))
    loads, shuffles, lines = weights + found.loads, found.shuffles, found.lines
    splits, deinterleaves = found.splits, found.deinterleaves
    if 1 < config.filter_lanes < width:
        shuffles += weights
    lines *= missing
    weight_lines = len(taps) * config.group / line
    busy = config.outputs * len(taps) + shuffles * family.shuffle_cost
    busy += deinterleaves * family.deinterleave_cost
    waits = loads * family.load_cost + splits * family.split_cost + lines * family.line_cost
    waits += weight_lines * family.weight_line_cost
    port_bound = (loads + splits) / family.load_ports * family.fma_ports
    share = _row_line_share(shape, family) if config.shift == "lanes" else 1.0
    return max(busy + waits, port_bound, lines / share * family.line_bound)


def estimate_cost(shape: ConvShape, config: ConvConfig, family: Family) -> float:
    """Estimated cost of the whole layer in FMA slots of one core; only its order matters.

    The slots are those of whole vectors, whatever vectors ``config`` has.
    """
    own, slots = family.slots_of(config.vector_width)
    return _cost_in_slots(shape, config, own) / slots


def least_cost(shape: ConvShape, config: ConvConfig, family: Family) -> float:
    """What :func:`estimate_cost` is not below: loads, shuffles and splits of inputs left out.

    It takes a fraction of the time, and most configurations are worse than the best by this alone.
    """
    if config.is_gemm or config.has_lists:
        return 0.0
    own, slots = family.slots_of(config.vector_width)
    return LEAST_SHARE * _cost_in_slots(shape, config, own, counted=False) / slots


def _cost_in_slots(
    shape: ConvShape, config: ConvConfig, family: Family, *, counted: bool = True
) -> float:
    if config.is_gemm:
        return gemm_cost(shape, config, family)
    tiles = -(-shape.out_channels // config.group) * tiles_across(shape, config)
    work = sum(
        number * _group_cost(shape, _with_rows(config, rows), family, counted=counted)
        for rows, number in config.row_tiles(shape.out_layout.band_height)
    )
    return tiles * work + _separation_cost(shape, config, family)


def _with_rows(config: ConvConfig, rows: int) -> ConvConfig:
    """The body of a tile of so many rows; the configuration itself where its tiles are alike."""
    alike = rows == config.tile_rows and not config.even_rows
    return config if alike else config.with_rows(rows)


def _steps_cost(shape: ConvShape, config: ConvConfig, family: Family) -> float:
    """Slots of one kernel of each pattern."""
    total, missing = 0.0, _miss_share(shape, config, family)
    inputs = _inputs_of_tile(shape, config, family)
    for pattern in shape.patterns:
        taps = pattern.taps
        for first in range(0, len(taps), config.taps_per_step):
            step = taps[first : first + config.taps_per_step]
            total += _step_cost(shape, config, family, step, inputs(step), missing)
    return total


def _multiply_adds(shape: ConvShape, config: ConvConfig, family: Family) -> float:
    """The part of :func:`_steps_cost` that needs no inputs counted."""
    taps = sum(len(p) for p in shape.patterns)
    weight_lines = taps * config.group / family.cache_line_floats
    return taps * config.outputs + weight_lines * family.weight_line_cost


def _group_cost(
    shape: ConvShape, config: ConvConfig, family: Family, *, counted: bool = True
) -> float:
    """Estimated slots of one filter_group at one tile; without ``counted``, no more than these."""
    if config.has_lists:
        one_tap = shape.geometry.kernel_size == (1, 1)
        work = (pointwise_cost if one_tap else taps_cost)(shape, config, family)
        return work + _tile_cost(shape, config, family)
    sums = config.accumulators
    steps = (_steps_cost if counted else _multiply_adds)(shape, config, family)
    per_kernel = steps / len(shape.patterns) + family.loop_cost
    per_kernel += _page_cost(shape, config, family)
    # Few FMAs in flight can't hide their latency; twice as many also smooth over late loads.
    in_flight = family.fma_ports * family.fma_latency
    if sums < in_flight:
        per_kernel *= in_flight / sums
    halves = (family.half_fma_ports or family.fma_ports) * family.fma_latency
    per_kernel *= 1 + MISSING_CHAIN_COST * max(0.0, 2 * halves - sums)
    per_kernel *= single_filter_factor(shape, config)
    tile = _tile_cost(shape, config, family) + _block_cost(shape, config, family)
    return shape.kernels_per_group * per_kernel + tile


def _tile_cost(shape: ConvShape, config: ConvConfig, family: Family) -> float:
    """Starting the accumulators of a tile and storing it."""
    layout = shape.out_layout
    pieces = float(config.outputs * config.filter_lanes)
    if config.pixel_lanes == 1 and config.tile_cols >= 4:
        pieces /= 4
    if layout.is_interleaved:  # rows at the edges of bands are stored twice, and so are borders
        pieces *= 1 + 2 * layout.pad / layout.band_height + 2 * layout.border / layout.columns
    return config.accumulators * family.tile_cost + pieces * family.store_cost
