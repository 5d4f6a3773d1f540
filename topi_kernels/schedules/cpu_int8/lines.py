"""Lines: the bytes around a block of output pixels, near enough for one shuffle.

A block of 4 x 8 outputs of a 3x3 convolution reads 6 x 10 pixels, its halo: 60 bytes, one register.
The four bytes that the taps of a kernel want, for each of 16 outputs, are then one shuffle of that
register, whatever the pattern; the positions are constants.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ...geometry import ConvGeometry
from .isa import DotIsa

ROW_LOAD = 16
"""Bytes of a row of the halo that are copied at once; no halo is wider."""

LANE = 16
"""Bytes that a shuffle within lanes reaches."""

Tap = tuple[int, int]


@dataclass(frozen=True)
class LineShape:
    """A block of outputs, its vectors, and where its halo lies in a line.

    Parameters
    ----------
    block : tuple of (int, int)
        Output pixels of a line, rows and columns.
    vector : tuple of (int, int)
        Rows and columns of the outputs of one vector; vectors follow each other along the row, or
        downwards where they are as wide as the block.
    row_bytes : int
        Distance of two rows of the halo in the line.
    line_bytes : int
    geometry : ConvGeometry
    """

    block: tuple[int, int]
    vector: tuple[int, int]
    row_bytes: int
    line_bytes: int
    geometry: ConvGeometry

    @property
    def vectors(self) -> int:
        """Vectors of one line."""
        (rows, cols), (vr, vc) = self.block, self.vector
        return -(-rows // vr) * -(-cols // vc)

    def halo(self, vectors: int | None = None) -> tuple[int, int]:
        """Rows and columns of the input that the first ``vectors`` of a line read."""
        rows, cols = self.extent(vectors)
        (sy, sx), (ry, rx) = self.geometry.stride, self.geometry.reach
        return (rows - 1) * sy + ry + 1, (cols - 1) * sx + rx + 1

    def extent(self, vectors: int | None = None) -> tuple[int, int]:
        """Outputs of the first ``vectors`` of a line."""
        vectors = self.vectors if vectors is None else vectors
        across = self.across
        return self.vector[0] * -(-vectors // across), min(
            self.block[1], self.vector[1] * min(vectors, across)
        )

    @property
    def across(self) -> int:
        """Vectors side by side."""
        return -(-self.block[1] // self.vector[1])

    def pixel(self, vector: int, lane: int) -> Tap:
        """The output in a lane of a vector, relative to the block; it may lie right of it."""
        rows, cols = self.vector
        down, right = divmod(vector, self.across)
        return down * rows + lane // cols, right * cols + lane % cols

    def picks(self, taps: tuple[Tap, ...], pixels: int) -> np.ndarray:
        """Positions of the bytes under four taps.

        Returns
        -------
        numpy.ndarray
            uint8 ``[vectors, 4 * pixels]``. Lanes right of the block pick some byte of the line.
        """
        (sy, sx), (dy, dx) = self.geometry.stride, self.geometry.dilation
        picks = np.zeros((self.vectors, pixels, 4), np.int64)
        for vector, lane in np.ndindex(self.vectors, pixels):
            row, col = self.pixel(vector, lane)
            for q, (kh, kw) in enumerate(taps):
                at = (row * sy + kh * dy) * self.row_bytes + col * sx + kw * dx
                picks[vector, lane, q] = min(at, self.line_bytes - 1)
        return picks.reshape(self.vectors, -1).astype(np.uint8)


@dataclass(frozen=True)
class LaneShape(LineShape):
    """A line of blocks of 2 x 2 outputs, each with its own halo in 16 bytes of every register.

    For shuffles that stay within lanes of 16 bytes. A line is one vector; with two registers to a
    line the second holds what of the halos does not fit into the first.
    """

    @property
    def halo_of_block(self) -> tuple[int, int]:
        """Rows and columns of the input that 2 x 2 outputs read."""
        (sy, sx), (ry, rx) = self.geometry.stride, self.geometry.reach
        return sy + ry + 1, sx + rx + 1

    def pixel(self, vector: int, lane: int) -> Tap:
        block, place = divmod(lane, 4)
        return place // 2, 2 * block + place % 2

    def picks(self, taps: tuple[Tap, ...], pixels: int) -> np.ndarray:
        (sy, sx), (dy, dx) = self.geometry.stride, self.geometry.dilation
        width = self.halo_of_block[1]
        picks = np.zeros((1, pixels, 4), np.uint8)
        for lane in range(pixels):
            row, col = lane % 4 // 2, lane % 2
            for q, (kh, kw) in enumerate(taps):
                picks[0, lane, q] = (row * sy + kh * dy) * width + col * sx + kw * dx
        return picks.reshape(1, -1)

    def registers(self, vector_bytes: int) -> Iterator[list[int]]:
        """For every register of the line, which byte of the rows of the halo each of its bytes is.

        Rows are numbered one after the other, :data:`ROW_LOAD` bytes each.
        """
        rows, width = self.halo_of_block
        step = 2 * self.geometry.stride[1]
        for register in range(self.line_bytes // vector_bytes):
            sources = []
            for block in range(vector_bytes // LANE):
                for byte in range(LANE):
                    row, col = divmod(register * LANE + byte, width)
                    inside = row < rows
                    sources.append(row * ROW_LOAD + block * step + col if inside else 0)
            yield sources


def _lanes(geometry: ConvGeometry, isa: DotIsa) -> Iterator[LineShape]:
    """Blocks of 2 x 2 outputs, as many as a vector has lanes of 16 bytes."""
    blocks = isa.pixels // 4
    for size in isa.table_bytes:
        block = (2, 2 * blocks)
        line = LaneShape(block, block, LANE, size * blocks, geometry)
        rows, cols = line.halo_of_block
        if rows * cols <= size and line.halo()[1] <= ROW_LOAD:
            yield line
            return


def line_shapes(geometry: ConvGeometry, isa: DotIsa) -> Iterator[LineShape]:
    """The lines that a convolution of this geometry can be computed from.

    None where its kernel reaches further than a shuffle.
    """
    if isa.by_lane:
        yield from _lanes(geometry, isa)
        return
    yield from _squares(geometry, isa)
    yield from _rows(geometry, isa)


def _squares(geometry: ConvGeometry, isa: DotIsa) -> Iterator[LineShape]:
    """Vectors of 4 x 4 outputs, as many side by side as one table holds the halo of."""
    rows = cols = int(isa.pixels**0.5)
    for size in isa.table_bytes:
        for vectors in (2, 1):
            line = LineShape((rows, cols * vectors), (rows, cols), 0, size, geometry)
            height, width = line.halo()
            if height * width <= size and width <= ROW_LOAD:
                yield LineShape(line.block, line.vector, width, size, geometry)
                return


def _rows(geometry: ConvGeometry, isa: DotIsa) -> Iterator[LineShape]:
    """Vectors of one row, as many below each other as one table holds; a row has 16 bytes."""
    (sy, sx), (ry, rx) = geometry.stride, geometry.reach
    valid = (ROW_LOAD - rx - 1) // sx + 1
    if valid < 1:
        return
    for size in isa.table_bytes:
        rows = (size // ROW_LOAD - ry - 1) // sy + 1
        if rows >= 1:
            yield LineShape((rows, valid), (1, isa.pixels), ROW_LOAD, size, geometry)
            return
