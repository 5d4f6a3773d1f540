"""A row in the order of its pixels, in a small buffer: from there any other order is a few loads.

Picking the lanes of one vector from many costs a shuffle for each of them. Through a buffer, four
vectors of interleaved lanes are four loads of four neighbouring pixels per lane and one
transposition of 4x4 blocks, whatever the order of the row was.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tvm.ir import Expr
from tvm.tirx.script import builder as T

from .layout import PlaneLayout, round_up
from .vector import lanes as ramp
from .vector import shuffle, transpose_blocks, transposed

BLOCK = 4


class PixelLine:
    """Pixels of one row, left and right of it room for what a window sees beyond the image.

    Parameters
    ----------
    width, left, right : int
        Pixels of the row, and elements left and right of them that are read or written.
    """

    def __init__(self, width: int, left: int, right: int) -> None:
        self.width, self.left, self.right = width, left, right
        size = round_up(left + width + right, 16)
        # Scope "global": up to 1 KiB it lies on the stack. Volatile, or LLVM turns it into shuffles
        # of all that was stored, and takes minutes for it.
        self.buffer: Any = T.alloc_buffer(
            (size,), "float32", scope="global", annotations={"tirx.volatile": True}
        )

    def load(self, x: Any, count: int, step: int = 1) -> Expr:
        """``count`` pixels from ``x`` on, each ``step`` further than the one before."""
        if count == 1 or step == 1:
            return self.buffer[ramp(self.left + x, count)]
        if step == 2:
            halves = [self.buffer[ramp(self.left + x + half, count)] for half in (0, count)]
            return shuffle(halves, range(0, 2 * count, 2))
        return shuffle([self.buffer[self.left + x + i * step] for i in range(count)], range(count))

    def store(self, x: Any, value: Expr, count: int) -> None:
        T.buffer_store(self.buffer, value, [ramp(self.left + x, count)])

    def fill_beyond(self, left: int, right: int, *, clamp: bool) -> None:
        """The pixels ``left`` and ``right`` of the row: zero, or the nearest one of it."""
        for x in (*range(-left, 0), *range(self.width, self.width + right)):
            nearest = self.buffer[self.left + min(max(x, 0), self.width - 1)]
            T.buffer_store(self.buffer, nearest if clamp else T.float32(0), [self.left + x])

    def spread(self, layout: PlaneLayout, vectors: Sequence[Expr], band: int) -> None:
        """Store the interleaved vectors of a row of ``band``.

        Behind the last pixel up to ``BLOCK`` elements, and the places that hold none, are written
        too.
        """
        columns, size = layout.columns, layout.band_lanes
        for first in _blocks(columns):
            block = [vectors[min(first + i, columns - 1)] for i in range(BLOCK)]
            for lane, pixels in sorted(transpose_blocks(block, layout.lanes), key=_lane):
                if lane // size == band:  # upwards: what runs over is the next lane's
                    self.store(lane % size * columns + first, pixels, BLOCK)


def _lane(entry: tuple[int, Any]) -> int:
    return entry[0]


def _blocks(columns: int) -> list[int]:
    """First columns of blocks of four; the last one overlaps its neighbour where it can."""
    if columns <= BLOCK:
        return [0]
    return sorted({*range(0, columns - BLOCK + 1, BLOCK), columns - BLOCK})


def reach_of(layout: PlaneLayout) -> int:
    """Elements from the first pixel of a row that its interleaved order touches in a line."""
    return layout.band_lanes * layout.columns + BLOCK


def gather_row(layout: PlaneLayout, lines: Sequence[PixelLine | None]) -> list[Expr]:
    """The interleaved vectors of a row from the lines of its bands; without a line they are zero.

    The lanes that hold no pixel hold anything.
    """
    vectors: dict[int, Expr] = {}
    zeros = T.broadcast(T.float32(0), BLOCK)

    def pixels(lane: int, first: int) -> Expr:
        band, place = divmod(lane, layout.band_lanes)
        line = lines[band]
        return zeros if line is None else line.load(place * layout.columns + first, BLOCK)

    for first in _blocks(layout.columns):
        rows = []
        for number in range(BLOCK):
            parts = [pixels(lane, first) for lane in range(number, layout.lanes, BLOCK)]
            row = parts[0] if len(parts) == 1 else shuffle(parts, range(layout.lanes))
            rows.append(T.Bind(row))
        for number, vector in enumerate(transposed(rows, layout.lanes)):
            vectors.setdefault(first + number, vector)
    return [vectors[column] for column in range(layout.columns)]
