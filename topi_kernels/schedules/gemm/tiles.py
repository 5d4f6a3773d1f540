"""Winograd's tiles: a position is a tile of ``m x m`` outputs, with ``(m + 2)^2`` products.

Inputs beyond the planes' own zeros only go into outputs beyond the image, in exact arithmetic: they
are taken as zero, so that they neither add to rounding nor bring a NaN.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tvm.tirx.script import builder as T

from ...geometry import ConvGeometry
from ...layout import PlaneLayout
from ...vector import constant, lanes
from ...winograd import Winograd
from ..tile_outputs import zero_range
from .operands import PIECE, Operands


def combined(terms: Sequence[tuple[float, Any]], width: int) -> Any:
    """The sum of coefficients times vectors; terms of 0 are left out."""
    total = None
    for factor, value in sorted(terms, key=lambda term: abs(term[0]) == 1.0, reverse=True):
        if factor == 0.0:
            continue
        if total is None and factor == -1.0:
            total = constant(0.0, width) - value
        elif total is None:
            total = value if factor == 1.0 else value * constant(factor, width)
        elif factor in (1.0, -1.0):
            total = total + value if factor > 0 else total - value
        else:
            total = total + value * constant(factor, width)
    return T.Bind(total)


def input_transform(rows: Sequence[Sequence[float]], values: Sequence[Any], width: int) -> list:
    """``B^T`` times the inputs: rows of opposite points share their even and their odd terms."""
    out = [combined(list(zip(rows[0], values, strict=True)), width)]
    for plus in range(1, len(rows) - 1, 2):
        terms = list(zip(rows[plus], values, strict=True))
        even, odd = combined(terms[0::2], width), combined(terms[1::2], width)
        out += [T.Bind(even + odd), T.Bind(even - odd)]
    return [*out, combined(list(zip(rows[-1], values, strict=True)), width)]


def output_transform(rows: Sequence[Sequence[float]], values: Sequence[Any], width: int) -> list:
    """``A^T`` times the products: opposite points are added and subtracted once for all rows."""
    pairs = range(1, len(values) - 1, 2)
    sums = [T.Bind(values[j] + values[j + 1]) for j in pairs]
    differences = [T.Bind(values[j] - values[j + 1]) for j in pairs]
    out = []
    for k, row in enumerate(rows):
        terms = [(row[0], values[0]), (row[-1], values[-1])]
        found = differences if k % 2 else sums
        terms += [(row[j], found[i]) for i, j in enumerate(pairs)]
        out.append(combined(terms, width))
    return out


def tile_counts(layout: PlaneLayout, outputs: int) -> tuple[int, int]:
    """Rows and columns of tiles of an output."""
    return -(-layout.height // outputs), -(-layout.width // outputs)


class Tiles(Operands):
    """Blocks of tiles in row-major order; a step is one tile."""

    @property
    def matrices(self) -> Winograd:
        return Winograd.of(self.config.tile_outputs)

    @property
    def _counts(self) -> tuple[int, int]:
        return tile_counts(self.workload.out_layout, self.config.tile_outputs)

    @property
    def blocks(self) -> int:
        rows, columns = self._counts
        return -(-rows * columns // self.positions)

    @property
    def steps(self) -> int:
        return self.positions

    def _tile(self, block: Any, step: Any) -> tuple[Any, Any]:
        """Row and column of a tile; the last block is moved back."""
        rows, columns = self._counts
        first = T.min(block * self.positions, rows * columns - self.positions)
        number = T.Bind(first + step)
        return T.Bind(number // columns), T.Bind(number % columns)

    # ---- inputs ------------------------------------------------------------------------------

    def gather(self, held: Any, batch: Any, block: Any, step: Any) -> None:
        w, size = self.workload, self.matrices.inputs
        tile_row, tile_column = self._tile(block, step)
        count, first_of = self.channel_starts()
        base = T.Bind(batch * (w.in_channels * w.in_layout.size))
        with T.serial(0, count) as number:
            first = T.Bind(first_of(number))
            by_row = []
            for r in range(size):
                values = self._input_row(base, tile_row, tile_column, first, r)
                by_row.append(input_transform(self.matrices.input_rows, values, self.width))
            for c in range(size):
                column = [by_row[r][c] for r in range(size)]
                found = input_transform(self.matrices.input_rows, column, self.width)
                for r, value in enumerate(found):
                    start = (r * size + c) * self.product_step + step * self.depth + first
                    T.buffer_store(held, value, [lanes(start, self.width)])

    def _input_row(self, base: Any, tile_row: Any, tile_column: Any, first: Any, r: int) -> list:
        """Row ``r`` of a tile's inputs, a vector of in_channels for each pixel."""
        layout, (top, left) = self.workload.in_layout, self.workload.geometry.padding
        outputs, size = self.config.tile_outputs, self.matrices.inputs
        rows, columns = self._counts
        row = tile_row * outputs + (r - top)
        beyond = (rows - 1) * outputs + r - top > layout.height + layout.pad - 1
        if beyond:
            row = T.min(row, layout.height + layout.pad - 1)
        place = layout.origin + row * layout.row_stride + tile_column * outputs - left
        origin = T.Bind(base + place)
        values = self.channel_lanes(origin, first)
        if size > PIECE:  # the pieces overlap, so that none is read beyond the tile
            more = range(2 * PIECE - size, PIECE)
            values += self.channel_lanes(origin + (size - PIECE), first, wanted=more)
        last = (columns - 1) * outputs - left
        # In the last tile of a row some columns would be of the next row.
        return [
            value if last + c < layout.row_stride else self._zero_in_last(value, tile_column)
            for c, value in enumerate(values)
        ]

    def _zero_in_last(self, value: Any, tile_column: Any) -> Any:
        is_last = T.broadcast(tile_column == self._counts[1] - 1, self.width)
        return T.Bind(T.Select(is_last, constant(0.0, self.width), value))

    # ---- results -----------------------------------------------------------------------------

    def scatter(self, results: Any, batch: Any, block: Any, step: Any, filters: Any) -> None:
        offset, first = filters
        size, outputs, group = self.matrices.inputs, self.config.tile_outputs, self.config.group
        tile_row, tile_column = self._tile(block, step)
        by_row = []
        for r in range(size):
            starts = [((r * size + c) * self.positions + step) * group for c in range(size)]
            values = [T.Bind(results[lanes(s + offset, self.width)]) for s in starts]
            by_row.append(output_transform(self.matrices.output_rows, values, self.width))
        bias = self.bias(first)
        pixels = []
        for c in range(outputs):
            column = [by_row[r][c] for r in range(size)]
            found = output_transform(self.matrices.output_rows, column, self.width)
            pixels.append([T.Bind(value + bias) for value in found])
        row, left = T.Bind(tile_row * outputs), T.Bind(tile_column * outputs)
        for r in range(0, outputs, PIECE // outputs):
            self._store_rows(pixels, r, batch, first, row, left)
        self._clear_gap(batch, first, row, tile_column)

    def _store_rows(
        self, pixels: list[list[Any]], r: int, batch: Any, first: Any, row: Any, left: Any
    ) -> None:
        """Store the rows of a tile that fill a piece; rows below the image are left out."""
        outputs, height = self.config.tile_outputs, self.workload.out_layout.height
        rows = range(r, r + PIECE // outputs)
        if height % outputs == 0:
            values = [pixels[c][k] for k in rows for c in range(outputs)]
            self.store_pieces(values, batch, first, [(row + k, left) for k in rows])
            return
        for k in rows:
            values = [pixels[c % outputs][k] for c in range(PIECE)]
            with T.If(row + k < height), T.Then():
                self.store_pieces(values, batch, first, [(row + k, left)] * (PIECE // outputs))

    def _clear_gap(self, batch: Any, first: Any, row: Any, tile_column: Any) -> None:
        """Zeros right of the image, over which the last tile of a row may have run."""
        layout, outputs = self.workload.out_layout, self.config.tile_outputs
        gap = layout.row_stride - layout.width
        if not gap:
            return
        with T.If(tile_column == self._counts[1] - 1), T.Then():
            count = min(self.width, self.workload.out_channels)
            with (
                T.serial(0, count) as i,
                T.serial(0, outputs) as r,
                T.If(row + r < layout.height),
                T.Then(),
            ):
                plane = (batch * self.workload.out_channels + first + i) * layout.size
                start = plane + layout.origin + (row + r) * layout.row_stride + layout.width
                zero_range(self.buffers.out, T.Bind(start), gap, self.width)


def why_no_tiles(
    geometry: ConvGeometry, source: PlaneLayout, layout: PlaneLayout, outputs: int
) -> str | None:
    """Why a convolution has no such tiles on these planes, or None."""
    if geometry.kernel_size != (3, 3) or geometry.stride != (1, 1) or geometry.dilation != (1, 1):
        return "Winograd's tiles are of 3x3 kernels with stride and dilation 1"
    rows, columns = tile_counts(layout, outputs)
    if columns * outputs > layout.row_stride:
        return f"tiles of {outputs} pixels run over the row stride {layout.row_stride}"
    top, left = geometry.padding
    bottom = source.height + source.pad - 1
    row = min((rows - 1) * outputs + outputs + 1 - top, bottom)
    last = source.origin + row * source.row_stride + columns * outputs + 1 - left
    if last >= source.size or source.origin - top * source.row_stride - left < 0:
        return "the inputs of the first or the last tile reach beyond the plane"
    return None
