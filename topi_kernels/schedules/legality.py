"""Which configurations a convolution on given planes can have at all."""

from __future__ import annotations

from ..tap_lists import why_no_tap_lists
from .config import (
    BODIES,
    COPIED,
    ISAS,
    LOOP_ORDERS,
    MAX_CHAINS,
    MAX_CHANNEL_BLOCK,
    MAX_PREFETCH,
    PATTERNS,
    SHIFTS,
    SPLIT_STRIDE,
    TAPS,
    ConvConfig,
    taps_registers,
)
from .family import Family
from .gemm.space import why_no_gemm
from .input_geometry import column_reach
from .shape import ConvShape
from .tile_copy import why_not_copied


def illegal_for(shape: ConvShape, config: ConvConfig, family: Family) -> str | None:
    """Why ``config`` can't be used for a convolution, or None when it can."""
    layout = shape.out_layout
    if config.is_gemm:
        return why_no_gemm(shape, config, family)
    if config.positions:
        return f"body {config.body} has no positions, got {config.positions}"
    if layout.is_interleaved or shape.in_layout.is_interleaved:
        reason = _interleaved_reason(shape, config)
        if reason is not None:
            return reason
    elif config.shift == "lanes":
        return "shift lanes needs planes of interleaved lanes"
    if config.body == COPIED and (reason := why_not_copied(shape.geometry)) is not None:
        return reason
    if config.body == TAPS:
        reason = why_no_tap_lists(shape.geometry, shape.in_layout)
        if reason is not None:
            return reason
    return illegal_reason(
        config,
        family,
        out_height=layout.band_height,
        out_width=layout.columns * layout.lanes if layout.is_interleaved else layout.width,
        in_row_stride=shape.in_layout.row_stride,
        out_row_stride=shape.out_layout.row_stride,
        stride_w=shape.geometry.stride[1],
    )


def _interleaved_reason(shape: ConvShape, config: ConvConfig) -> str | None:
    """Why ``config`` can't be used on interleaved lanes, or None."""
    source, layout = shape.in_layout, shape.out_layout
    if not layout.keeps_lanes_of(source, shape.geometry.stride):
        return "input and output with interleaved lanes hold the same pixels in the same lanes"
    if config.shift != "lanes" or config.filter_lanes != 1 or config.vector_width != layout.lanes:
        return f"interleaved lanes need shift lanes and vectors of {layout.lanes} pixels"
    reach = column_reach(shape.patterns, shape.geometry)
    if config.tile_cols < layout.columns and reach > 0 and source.border < reach:
        return f"a tile of part of a row needs {reach} vectors stored beside the row"
    if source.border and source.border < reach:
        return f"the input stores {source.border} vectors beside a row, {reach} are read"
    return None


def _taps_reason(config: ConvConfig, stride_w: int) -> str | None:
    """Why a body of tap lists can't be used, or None."""
    if config.filter_lanes != 1 or config.shift not in ("load", "lanes"):
        return f"body {config.body} needs lanes over pixels, and shift load or lanes"
    if config.body == COPIED:
        if not config.channel_block:
            return "body copied needs a channel_block, whose input is copied"
        if config.even_rows:
            return "body copied has tiles of one size, even_rows must be off"
    elif stride_w != 1 and config.shift != "lanes":
        return "body taps needs lanes over pixels, and stride 1 or shift lanes"
    if config.chains > 1:
        return f"body {config.body} has one sum per output"
    if config.prefetch or config.taps_per_step != 1:
        return f"body {config.body} works off one tap at a time and prefetches none"
    return None


def illegal_reason(
    config: ConvConfig,
    family: Family,
    *,
    out_height: int,
    out_width: int,
    in_row_stride: int,
    out_row_stride: int,
    stride_w: int,
) -> str | None:
    """Why ``config`` can't be used for a workload, or None when it can."""
    c = config
    if c.vector_width > family.vector_width or c.vector_width < 1:
        return f"vector_width {c.vector_width} exceeds the family's {family.vector_width}"
    if c.filter_lanes < 1 or c.vector_width % c.filter_lanes:
        return f"filter_lanes {c.filter_lanes} does not divide vector_width {c.vector_width}"
    if min(c.filter_vectors, c.tile_rows, c.tile_cols, c.taps_per_step) < 1:
        return "filter_vectors, tile_rows, tile_cols and taps_per_step must be >= 1"
    if not 0 <= c.prefetch <= MAX_PREFETCH:
        return f"prefetch {c.prefetch} is not in 0..{MAX_PREFETCH}"
    if not 1 <= c.chains <= MAX_CHAINS:
        return f"chains {c.chains} is not in 1..{MAX_CHAINS}"
    if c.channel_block and c.chains > 1:
        return "channel_block keeps one partial sum per output, chains must be 1"
    if c.shift not in SHIFTS:
        return f"shift {c.shift!r} is not one of {SHIFTS}"
    if c.isa not in ISAS:
        return f"isa {c.isa!r} is not one of {ISAS}"
    if c.loop_order not in LOOP_ORDERS:
        return f"loop_order {c.loop_order!r} is not one of {LOOP_ORDERS}"
    if c.body not in BODIES:
        return f"body {c.body!r} is not one of {BODIES}"
    if c.has_lists and (reason := _taps_reason(c, stride_w)):
        return reason
    spare = family.temporaries if c.body == PATTERNS else taps_registers(c) - c.accumulators
    budget = family.vector_registers - spare
    if c.accumulators > budget:
        return f"{c.accumulators} accumulators exceed the budget of {budget} registers"
    columns = -(-out_width // c.pixel_lanes)
    if c.tile_rows > out_height:
        return f"tile_rows {c.tile_rows} exceeds the {out_height} output rows"
    if c.tile_cols > columns:
        return f"tile_cols {c.tile_cols} exceeds the {columns} vectors of an output row"
    if columns * c.pixel_lanes > out_row_stride:
        return (
            f"vectors of {c.pixel_lanes} pixels run over the row stride {out_row_stride} of the"
            " output"
        )
    if c.shift == "rotate" and (c.filter_lanes != 1 or stride_w != 1):
        return "rotate needs lanes over pixels and stride 1"
    if not 0 <= c.channel_block <= MAX_CHANNEL_BLOCK:
        return f"channel_block {c.channel_block} is not in 0..{MAX_CHANNEL_BLOCK}"
    if c.channel_block and c.loop_order != "tile_outer":
        return f"channel_block {c.channel_block} needs loop_order tile_outer"
    if c.shift == "split" and (stride_w != SPLIT_STRIDE or c.pixel_lanes == 1):
        return "split needs lanes over pixels and stride 2"
    if c.shift == "rotate" and in_row_stride % c.vector_width:
        return f"rotate needs a row stride that is a multiple of {c.vector_width}"
    return None
