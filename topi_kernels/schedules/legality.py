"""Which configurations a convolution on given planes can have at all."""

from __future__ import annotations

from ..tap_lists import why_no_tap_lists
from .config import COPIED, TAPS, ConvConfig, Family, illegal_reason
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
