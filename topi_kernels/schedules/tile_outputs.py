"""Epilogue and stores of a register_tile, and the zeros around the image."""

from __future__ import annotations

from functools import partial
from typing import Any

from tvm import tirx
from tvm.tirx.script import builder as T

from ..row_writer import RowWriter, when
from ..vector import constant, lanes, shuffle, transpose_blocks
from ..vector_math import activate
from ..workload import ConvWorkload
from .config import ConvConfig
from .tile import Buffers, Tile


def activated(value: Any, workload: ConvWorkload, config: ConvConfig, count: int) -> Any:
    """The epilogue's activation of ``count`` lanes; float16 is activated in float32."""
    activation, nan_maximum = workload.epilogue.activation, config.isa == "neon"
    if workload.dtype == "float32" or activation == "none":
        return activate(value, activation, count, nan_maximum=nan_maximum)
    vector = "" if count == 1 else f"x{count}"
    wide = T.Bind(T.Cast(f"float32{vector}", value))
    wide = activate(wide, activation, count, nan_maximum=nan_maximum)
    return T.Cast(f"{workload.dtype}{vector}", wide)


def _store_pixels(
    workload: ConvWorkload,
    config: ConvConfig,
    buffers: Buffers,
    tile: Tile,
    slot: Any,
    where: tuple[int, int, int],
    value: Any,
    *,
    is_activated: bool,
) -> None:
    """Store neighbouring pixels of one filter; ``where`` is (tile row, first column, pixels)."""
    row, col, count = where
    epilogue, layout = workload.epilogue, workload.out_layout

    def position(geometry: Any) -> Any:
        plane = (tile.batch * workload.out_channels + slot) * geometry.size
        inside = geometry.origin + (tile.y0 + row) * geometry.row_stride + tile.x0 + col
        return lanes(plane + inside, count)

    if epilogue.residual:
        value = value + buffers.residual[position(workload.residual_layout)]
    if not is_activated:
        value = activated(value, workload, config, count)
    T.buffer_store(buffers.out, value, [position(layout)])


def store_tile(workload: ConvWorkload, config: ConvConfig, buffers: Buffers, tile: Tile) -> None:
    """Epilogue and the only store of every output."""
    width = config.vector_width
    vec = lanes(0, width)
    # Without a residual the activation is cheapest on whole vectors, before lanes are taken apart.
    early = not workload.epilogue.residual
    padded = workload.num_slots != workload.out_channels

    def guarded(slot: Any, emit: Any) -> None:
        if not padded:
            emit()
            return
        with T.If(slot < workload.out_channels), T.Then():
            emit()

    if workload.out_layout.is_interleaved:
        for f, slot_expr in enumerate(tile.slots):
            guarded(slot_expr, partial(_store_interleaved, workload, config, buffers, tile, f))
        return
    for f in range(config.filter_vectors):
        for r in range(config.tile_rows):
            values = []
            for c in range(config.tile_cols):
                value = tile.acc[f, r, c][vec]
                if early:
                    value = activated(value, workload, config, width)
                values.append(T.Bind(value))
            for slot, col, count, part in _split_row(config, values):
                number = tile.slots[f * config.filter_lanes + slot]
                guarded(
                    number,
                    lambda n=number, w=(r, col, count), v=part: _store_pixels(
                        workload, config, buffers, tile, n, w, v, is_activated=early
                    ),
                )
    for slot_expr in tile.slots:
        guarded(slot_expr, lambda n=slot_expr: _zero_halo(workload, config, buffers, tile, n))


def _store_interleaved(
    workload: ConvWorkload, config: ConvConfig, buffers: Buffers, tile: Tile, f: int
) -> None:
    """Epilogue and stores of filter ``f`` of a register_tile over interleaved lanes."""
    layout, width, slot = workload.out_layout, config.vector_width, tile.slots[f]
    plane = T.Bind((tile.batch * workload.out_channels + slot) * layout.size)
    writer = RowWriter(buffers.out, plane, layout)
    whole_row = config.tile_cols == layout.columns
    first = 0 if whole_row else T.Bind(tile.x0 // width)
    for r in range(config.tile_rows):
        row = T.Bind(tile.y0 + r)
        for c in range(config.tile_cols):
            value = tile.acc[f, r, c][lanes(0, width)]
            residual = workload.residual_layout
            if residual is not None and buffers.residual is not None:
                other = (tile.batch * workload.out_channels + slot) * residual.size
                start = other + residual.vector_offset(row, first + c)
                value = value + buffers.residual[lanes(start, width)]
            value = activated(value, workload, config, width)
            writer.store(row, first + c, writer.zero_beyond_image(value, first + c, row))
    when(tile.is_last, writer.clear_slack)


def _split_row(config: ConvConfig, values: list[Any]) -> list[tuple[int, int, int, Any]]:
    """Take one tile row apart into ``(filter lane, first pixel, pixels, vector)`` pieces."""
    width, pixels = config.vector_width, config.pixel_lanes
    pieces = []
    if pixels > 1 or width == 1:
        for c, value in enumerate(values):
            for lane in range(config.filter_lanes):
                whole = config.filter_lanes == 1
                picks = range(lane * pixels, (lane + 1) * pixels)
                part = value if whole else shuffle([value], picks)
                pieces.append((lane, c * pixels, pixels, part))
        return pieces
    if len(values) < 4:
        for c, value in enumerate(values):
            pieces += [(lane, c, 1, shuffle([value], [lane])) for lane in range(width)]
        return pieces
    # Blocks of 4 pixels; the last one overlaps its neighbour rather than leaving a remainder.
    for start in sorted({*range(0, len(values) - 3, 4), len(values) - 4}):
        for lane, part in transpose_blocks(values[start : start + 4], width):
            pieces.append((lane, start, 4, part))
    return pieces


def zero_range(out: Any, start: Any, count: int, width: int) -> None:
    """Zeros in ``count`` elements from ``start`` on."""
    done = 0
    while done < count:
        step = width
        while step > count - done:
            step //= 2
        if count - done >= 4 * width:
            chunks = (count - done) // width
            with T.serial(0, chunks) as i:
                T.buffer_store(
                    out, constant(0.0, width, out.dtype), [lanes(start + done + i * width, width)]
                )
            done += chunks * width
            continue
        T.buffer_store(out, constant(0.0, step, out.dtype), [lanes(start + done, step)])
        done += step


def _zero_halo(
    workload: ConvWorkload, config: ConvConfig, buffers: Buffers, tile: Tile, slot: Any
) -> None:
    """Zeros around the image: right of every row, and above and below it.

    Whoever stores the last vector of a row also clears what lies between it and the next row, so
    that vectors which ran over the image's edge leave nothing behind.
    """
    layout, width = workload.out_layout, config.vector_width
    plane = T.Bind((tile.batch * workload.out_channels + slot) * layout.size)
    row_blocks, col_blocks = tile.row_blocks, tile.col_blocks

    def clear_gaps() -> None:
        for r in range(config.tile_rows):
            start = plane + layout.origin + (tile.y0 + r) * layout.row_stride + layout.width
            zero_range(buffers.out, start, layout.row_stride - layout.width, width)

    def clear_bottom() -> None:
        below = layout.offset(layout.height, 0)
        zero_range(buffers.out, plane + below, layout.size - below, width)

    if col_blocks == 1:
        clear_gaps()
    else:
        with T.If(tile.col_block == col_blocks - 1), T.Then():
            clear_gaps()
    with T.If(tirx.all(tile.row_block == 0, tile.col_block == col_blocks - 1)), T.Then():
        zero_range(buffers.out, plane, layout.origin, width)
    with (
        T.If(tirx.all(tile.row_block == row_blocks - 1, tile.col_block == col_blocks - 1)),
        T.Then(),
    ):
        clear_bottom()
