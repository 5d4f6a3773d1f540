"""Where a register_tile lies in an output, its stores, and the zeros around the image.

Tiles that would leave the image are moved back into it; what their neighbour stores, they compute
and do not store, so that every element is written by one work_item.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

from tvm import tirx
from tvm.tirx.script import builder as T

from ...layout import PlaneLayout
from ...row_writer import when
from ...vector import lanes
from ...vector_math import activate
from .config import GpuConfig
from .vectors import converted, gather, load_any, zeros

_FILL = 4  # Zeros of one store.


@dataclass
class TilePlace:
    """Place of a register_tile; all members are index expressions, or bools known now.

    ``row`` and ``column`` are what the tile is there for, ``y0`` and ``x0`` where it starts.
    """

    batch: Any
    row: Any
    column: Any
    y0: Any
    x0: Any
    first_row: Any
    last_row: Any
    last_column: Any

    @classmethod
    def of(cls, layout: PlaneLayout, config: GpuConfig, batch: Any, number: Any) -> TilePlace:
        """The place of tile ``number`` of an image."""
        width, rows, cols = config.vector_width, config.tile_rows, config.tile_cols
        vectors = -(-layout.width // width)
        down, along = -(-layout.height // rows), -(-vectors // cols)
        block, part = (number, 0) if along == 1 else (number // along, number % along)
        block, part = T.Bind(block), part if along == 1 else T.Bind(part)
        row, column = T.Bind(block * rows), part if along == 1 else T.Bind(part * (cols * width))
        last = layout.height - rows
        y0 = row if layout.height % rows == 0 else T.Bind(T.min(row, last))
        x0 = column
        if vectors % cols:
            x0 = T.Bind(T.min(column, (vectors - cols) * width))
        return cls(
            batch,
            row,
            column,
            y0,
            x0,
            True if down == 1 else block == 0,
            True if down == 1 else block == down - 1,
            True if along == 1 else part == along - 1,
        )


@dataclass(frozen=True)
class Stored:
    """What a kernel writes: planes of a layout and type, after an activation."""

    layout: PlaneLayout
    dtype: str
    activation: str = "none"


def both(*conditions: Any) -> Any:
    """Whether all conditions hold, those known now left out."""
    open_ones = [c for c in conditions if not isinstance(c, bool)]
    if False in [c for c in conditions if isinstance(c, bool)]:
        return False
    return tirx.all(*open_ones) if open_ones else True


def fill_zero(out: Any, start: Any, count: int) -> None:
    """``count`` zeros from ``start`` on."""
    vectors = count // _FILL
    if vectors > 2:
        with T.serial(0, vectors) as i:
            T.buffer_store(out, zeros(out.dtype, _FILL), [lanes(start + i * _FILL, _FILL)])
    else:
        for i in range(vectors):
            T.buffer_store(out, zeros(out.dtype, _FILL), [lanes(start + i * _FILL, _FILL)])
    for i in range(vectors * _FILL, count):
        T.buffer_store(out, zeros(out.dtype, 1), [start + i])


def activated(
    value: Any,
    activation: str,
    dtype: str,
    width: int,
    bounds: tuple[float, float] = (0.0, 6.0),
) -> Any:
    """Activation of a vector, in float32; ``bounds`` are those of ``clip``."""
    if activation == "none":
        return value
    wide = T.Bind(converted(value, dtype, "float32", width))
    # The device's own exponential; that of the CPUs needs bits of floats as integers.
    if activation == "tanh":
        result = tirx.tanh(wide)
    else:
        result = activate(wide, activation, width, bounds, exponential=tirx.exp, scope="local")
    return converted(result, "float32", dtype, width)


def store_rows(
    what: Stored,
    config: GpuConfig,
    out: Any,
    plane: Any,
    place: TilePlace,
    values: dict[tuple[int, int], Any],
    residual: tuple[Any, PlaneLayout] | None,
    dtype: str,
) -> None:
    """Epilogue and stores of the vectors ``(tile row, tile column)`` of one plane.

    Parameters
    ----------
    plane : expression
        Number of the plane in ``out`` and the residual.
    residual : tuple of (buffer, PlaneLayout), optional
    dtype : str
        Type of ``values``.
    """
    layout, width = what.layout, config.vector_width
    base = T.Bind(plane * layout.size)

    def emit(r: int, c: int) -> None:
        value = values[r, c]
        if residual is not None:
            buffer, other = residual
            start = plane * other.size + other.offset(0, 0) + place.x0 + c * width
            start = start + (place.y0 + r) * other.row_stride
            addend = load_any(buffer, start, width)
            value = T.Bind(value + converted(addend, what.dtype, dtype, width))
        value = activated(value, what.activation, dtype, width)
        value = T.Bind(converted(value, dtype, what.dtype, width))
        start = base + layout.origin + (place.y0 + r) * layout.row_stride + place.x0 + c * width
        is_last = c == config.tile_cols - 1
        store_vector(
            what, out, T.Bind(start), value, width, place.last_column if is_last else False
        )

    for r in range(config.tile_rows):
        mine_down = layout.height % config.tile_rows == 0 or place.y0 + r >= place.row
        for c in range(config.tile_cols):
            divided = -(-layout.width // width) % config.tile_cols == 0
            mine_along = divided or place.x0 + c * width >= place.column
            when(both(mine_down, mine_along), partial(emit, r, c))
        when(
            both(mine_down, place.last_column),
            partial(_clear_gap, layout, width, out, base, place, r),
        )
    _clear_around(layout, out, base, place)


def store_vector(what: Stored, out: Any, start: Any, value: Any, width: int, is_last: Any) -> None:
    """One vector; what the last of a row holds beyond the image is zero."""
    inside = what.layout.width % width
    if inside == 0 or is_last is False:
        T.buffer_store(out, value, [lanes(start, width)])
        return
    places = [(0, lane) if lane < inside else (1, 0) for lane in range(width)]
    cut = gather([value, zeros(what.dtype, width)], places, width)
    if is_last is True:
        T.buffer_store(out, cut, [lanes(start, width)])
        return
    with T.If(is_last):
        with T.Then():
            T.buffer_store(out, cut, [lanes(start, width)])
        with T.Else():
            T.buffer_store(out, value, [lanes(start, width)])


def _clear_gap(
    layout: PlaneLayout, width: int, out: Any, base: Any, place: TilePlace, row: int
) -> None:
    """Between the last vector of a row and the next row."""
    end = -(-layout.width // width) * width
    gap = min(layout.row_stride, layout.size - layout.offset(layout.height - 1, 0)) - end
    start = base + layout.origin + (place.y0 + row) * layout.row_stride + end
    fill_zero(out, start, gap)


def _clear_around(layout: PlaneLayout, out: Any, base: Any, place: TilePlace) -> None:
    """Above the first row and below the last."""
    when(both(place.first_row, place.last_column), lambda: fill_zero(out, base, layout.origin))
    below = layout.offset(layout.height, 0)
    when(
        both(place.last_row, place.last_column),
        lambda: fill_zero(out, base + below, layout.size - below),
    )
