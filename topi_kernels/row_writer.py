"""Stores into planes of interleaved lanes, copies at the edges of bands and rows included.

A vector of a row is stored once more for every reader's convenience: in the rows above and below
the neighbouring bands (copies whose lanes are moved by a band), and beside its own row (copies
whose lanes are moved by one). What lies outside the image is stored as zero.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from tvm import tirx
from tvm.tirx.script import builder as T

from .layout import PlaneLayout
from .vector import constant, lanes, pick_or_zero, shuffle


def when(condition: Any, emit: Callable[[], None]) -> None:
    """Emit under ``condition``, an expression or a bool known now."""
    if isinstance(condition, bool):
        if condition:
            emit()
        return
    with T.If(condition), T.Then():
        emit()


class RowWriter:
    """Stores vectors of one plane and all their copies.

    Parameters
    ----------
    out : Buffer
        Its last dimension holds the plane.
    plane : expression
        Offset of the plane in the last dimension.
    layout : PlaneLayout
        Interleaved.
    index : sequence of expressions
        Of the other dimensions.
    """

    def __init__(
        self, out: Any, plane: Any, layout: PlaneLayout, index: Sequence[Any] = ()
    ) -> None:
        self.out, self.plane, self.layout, self.index = out, plane, layout, tuple(index)
        self.dtype = str(out.dtype)

    def _store(self, row: Any, column: Any, value: Any) -> None:
        start = self.plane + self.layout.vector_offset(row, column)
        T.buffer_store(self.out, value, [*self.index, lanes(start, self.layout.lanes)])

    def _pick(self, value: Any, picks: list[int | None]) -> Any:
        return pick_or_zero(value, picks, self.layout.lanes, self.dtype)

    def zero_beyond_image(self, value: Any, column: Any, row: Any) -> Any:
        """The vector with zeros in the lanes that hold no pixel.

        Only the last places of a row and the last rows of the last band can lie outside.
        """
        layout = self.layout
        if isinstance(column, int):
            held = layout.pixel_lanes(column)
            value = self._pick(value, [i if kept else None for i, kept in enumerate(held)])
        elif layout.spare_columns:
            value = self._cut_row(value, column)
        is_full = row < layout.rows_of_last_band
        if layout.rows_of_last_band == layout.band_height or is_full is True:
            return value
        last = layout.lanes - layout.band_lanes
        zeros = constant(0.0, layout.lanes, self.dtype)
        inside = [i if i < last else layout.lanes + i for i in range(layout.lanes)]
        value = T.Bind(value)
        cut = shuffle([value, zeros], inside)
        if is_full is False:
            return cut
        return T.Select(T.broadcast(is_full, layout.lanes), value, cut)

    def _cut_row(self, value: Any, column: Any) -> Any:
        """Zeros in the places of the bands' rows beyond the image, for a column not known now."""
        layout, width = self.layout, self.layout.lanes
        places = [lane % layout.band_lanes * layout.columns for lane in range(width)]
        first = shuffle([tirx.const(x, "int32") for x in places], range(width))
        x = first + T.broadcast(column, width)
        inside = x < T.broadcast(tirx.const(layout.width, "int32"), width)
        return T.Select(inside, T.Bind(value), constant(0.0, width, self.dtype))

    def store(self, row: Any, column: Any, value: Any) -> None:
        """Store vector ``column`` of ``row``, both numbers or expressions.

        The lanes that hold no pixel are zero already, see :meth:`zero_beyond_image`.
        """
        layout = self.layout
        value = T.Bind(value)
        self._store_with_halo(row, column, value)
        for k in range(layout.border):
            right, left = layout.columns + k, -1 - k
            when(column == k, partial(self._store_beside, row, right, value, 1))
            when(column == layout.columns + left, partial(self._store_beside, row, left, value, -1))

    def clear_slack(self) -> None:
        """Zeros behind the last row of the plane."""
        layout = self.layout
        end = layout.origin + (layout.band_height + layout.pad) * layout.row_stride
        end -= layout.border * layout.lanes
        zeros = constant(0.0, layout.lanes, self.dtype)
        for start in range(end, layout.size, layout.lanes):
            index = lanes(self.plane + start, layout.lanes)
            T.buffer_store(self.out, zeros, [*self.index, index])

    def _store_beside(self, row: Any, column: int, value: Any, by: int) -> None:
        moved = T.Bind(self._pick(value, self.layout.moved_lanes(by)))
        self._store_with_halo(row, column, moved)

    def _store_with_halo(self, row: Any, column: Any, value: Any) -> None:
        layout = self.layout
        self._store(row, column, value)
        if not layout.pad:
            return
        height = layout.band_height

        def copy(distance: int, by: int) -> None:
            self._store(row + distance, column, self._pick(value, layout.moved_bands(by)))

        # Row r of a band is row height + r of the band above it, and row r - height of the one
        # below. Above the first and below the last band this writes the zeros of the padding.
        when(row < layout.pad, partial(copy, height, 1))
        when(row >= height - layout.pad, partial(copy, -height, -1))
