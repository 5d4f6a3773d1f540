"""Vectors of output rows, their lanes picked from whole rows of the inputs in any layout.

A row is read into registers in the order that its layout has, and folded in that order where a
window covers several rows; only then the lanes of every output vector are picked: from the vectors
where few of them have a share in it, else from the row in the order of its pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tvm.ir import Expr
from tvm.tirx.script import builder as T

from .geometry import ConvGeometry
from .plane_ops import store
from .row_lines import PixelLine, gather_row, reach_of
from .row_planes import Place, Plane, gather, vectors_of
from .row_segments import Segment, segments
from .row_writer import RowWriter
from .vector_math import largest_power_of_two

# Vectors that the lanes of one are picked from at most; from more it is cheaper, to compile too, to
# go by :mod:`.row_lines`.
MAX_SOURCES = 2


class RowOperator:
    """Computes output rows, vector by vector, from whole rows of the inputs.

    Parameters
    ----------
    out : Plane
    window : ConvGeometry
        Which input pixels an output pixel sees; 1x1 for elementwise operators.
    clamp : bool
        Rows and columns beyond the image become the nearest ones (maximum); else they are zero.
    """

    def __init__(
        self, inputs: Sequence[Plane], out: Plane, window: ConvGeometry, *, clamp: bool
    ) -> None:
        self.inputs, self.out, self.window, self.clamp = inputs, out, window, clamp

    @property
    def bands(self) -> int:
        return self.out.layout.bands

    @property
    def _sees_one_pixel(self) -> bool:
        return (self.window.kernel_size, self.window.stride) == ((1, 1), (1, 1))

    def _source_row(self, source: Plane, y: int, tap: int) -> tuple[int, int] | None:
        """Row of ``source`` that tap row ``tap`` of output row ``y`` reads."""
        layout, window = source.layout, self.window
        row = y * window.stride[0] - window.padding[0] + tap
        if self.clamp:
            row = min(max(row, 0), layout.height - 1)
        inside = y < self.out.layout.height and 0 <= row < layout.height
        return source.row_of(row) if inside else None

    def _rows(self) -> list[list[tuple[int, int] | None]]:
        """Source rows of every output row: input by input, band by band, tap by tap."""
        height = self.out.layout.band_height
        return [
            [
                self._source_row(source, band * height + r, tap)
                for source in self.inputs
                for band in range(self.bands)
                for tap in range(self.window.kernel_size[0])
            ]
            for r in range(height)
        ]

    def _picks(
        self, source: Plane, bands: Sequence[int | None], column: int, tap: int
    ) -> list[Place | None]:
        """Where output vector ``column`` finds tap column ``tap``.

        ``bands`` are the source's band for every band of the output. Vectors are numbered band by
        band.
        """
        layout, count = source.layout, vectors_of(source)
        picks: list[Place | None] = []
        for pixel in self._pixels(column):
            if pixel is None:
                picks.append(None)
                continue
            band, x = pixel
            x = x * self.window.stride[1] - self.window.padding[1] + tap
            if self.clamp:
                x = min(max(x, 0), layout.width - 1)
            at = bands[band]
            if at is None or not 0 <= x < layout.width:
                picks.append(None)
                continue
            vector, lane = source.place_of(at, x)
            picks.append((band * count + vector, lane))
        return picks

    def _pixels(self, column: int) -> list[tuple[int, int] | None]:
        """``(band, x)`` of the lanes of output vector ``column``; None for no pixel."""
        layout = self.out.layout
        if not layout.is_interleaved:
            first = self.out.starts[column]
            return [(0, first + lane) for lane in range(self.out.vector_lanes)]
        places = [divmod(lane, layout.band_lanes) for lane in range(layout.lanes)]
        held = layout.pixel_lanes(column)
        return [
            (band, place * layout.columns + column) if kept else None
            for (band, place), kept in zip(places, held, strict=True)
        ]

    def emit(self, combine: Callable, value: Callable) -> None:
        """All rows: ``value(taps, counts, pixels)`` makes an output vector.

        ``combine(vectors, lanes)`` folds the rows of a window; ``taps[input][tap column]`` are
        vectors, ``counts`` the rows inside the image of every lane's window.
        """
        parts = list(segments(self._rows()))
        self._declare_lines(parts)
        for segment in parts:
            if segment.count == 1:
                self._emit_row(segment, 0, combine, value)
                continue
            with T.serial(0, segment.count) as i:
                self._emit_row(segment, i, combine, value)

    def _is_far(self, source: Plane) -> bool:
        """Whether an output vector has its lanes in too many vectors of a row."""
        bands = list(range(self.bands)) if source.layout.bands == self.bands else [0] * self.bands
        for column in range(vectors_of(self.out)):
            for tap in range(self.window.kernel_size[1]):
                picks = self._picks(source, bands, column, tap)
                if len({pick[0] for pick in picks if pick is not None}) > MAX_SOURCES:
                    return True
        return False

    def _declare_lines(self, parts: Sequence[Segment]) -> None:
        """Buffers for the rows of inputs that are far, and for the output of a window on them."""
        self.lines: dict[int, list[list[PixelLine]]] = {}
        self.row_of_window: list[PixelLine] = []
        (_, kw), (_, sw), (_, left) = (
            self.window.kernel_size,
            self.window.stride,
            self.window.padding,
        )
        out = self.out.layout
        reach = reach_of(out) if out.is_interleaved else out.width
        for n, source in enumerate(self.inputs):
            if not self._is_far(source):
                continue
            layout = source.layout
            extent = max(layout.width, reach_of(layout) if layout.is_interleaved else 0)
            seen = (out.width + self.out.vector_lanes) * sw + kw - left
            right = max(extent, reach, seen) - layout.width
            count = max(len(bands) for s in parts for bands in self._source_bands(s, n))
            self.lines[n] = [
                [PixelLine(layout.width, left, right) for _ in range(self.bands)]
                for _ in range(max(1, count))
            ]
        if self.lines and out.is_interleaved and not self._sees_one_pixel:
            right = reach - out.width
            self.row_of_window = [PixelLine(out.width, 0, right) for _ in range(self.bands)]

    def _by_band(self, segment: Segment, n: int) -> list[Sequence[tuple[int, int, int] | None]]:
        """Source rows of input ``n``, tap by tap for every band of the output."""
        kh = self.window.kernel_size[0]
        first = n * self.bands * kh
        return [segment.rows[first + b * kh : first + (b + 1) * kh] for b in range(self.bands)]

    def _source_bands(self, segment: Segment, n: int) -> list[set[int]]:
        return [{r[0] for r in taps if r is not None} for taps in self._by_band(segment, n)]

    def _emit_row(self, segment: Segment, i: Any, combine: Callable, value: Callable) -> None:
        kw = self.window.kernel_size[1]
        counts, groups, rows = [0] * self.bands, [], []
        for n, source in enumerate(self.inputs):
            by_band = self._by_band(segment, n)
            counts = [sum(row is not None for row in taps) for taps in by_band]
            groups.append(self._fold(source, by_band, i, combine))
            rows.append(self._as_lines(n, groups[-1]) if n in self.lines else [])
        if self.lines and not self._sees_one_pixel:
            self._emit_window(segment.first + i, rows[0], counts, combine, value)
            return
        moved = [self._moved(lines) if lines else [] for lines in rows]
        for column in range(vectors_of(self.out)):
            taps = [
                [moved[n][column]]
                if n in self.lines
                else [self._picked(source, groups[n], column, tap, combine) for tap in range(kw)]
                for n, source in enumerate(self.inputs)
            ]
            pixels = self._pixels(column)
            result = value(taps, [0 if p is None else counts[p[0]] for p in pixels], pixels)
            self._store(segment.first + i, column, result)

    def _picked(
        self, source: Plane, parts: Sequence, column: int, tap: int, combine: Callable
    ) -> Expr:
        """Output vector ``column`` of a tap, from the vectors of the source's row."""
        width = self.out.vector_lanes
        seen = [
            gather(vectors, source.vector_lanes, self._picks(source, bands, column, tap), width)
            for vectors, bands in parts
        ]
        return combine(seen, width)

    def _as_lines(self, n: int, parts: Sequence) -> list[list[PixelLine | None]]:
        """The folded rows of input ``n`` in the order of their pixels: part by part, per band."""
        source = self.inputs[n]
        count = vectors_of(source)
        result: list[list[PixelLine | None]] = []
        for (vectors, homes), lines in zip(parts, self.lines[n], strict=False):
            used: list[PixelLine | None] = []
            for band, home in enumerate(homes):
                if home is None:
                    used.append(None)
                    continue
                line = lines[band]
                row = [vectors[band * count + v] for v in range(count)]
                if source.layout.is_interleaved:
                    line.spread(source.layout, row, home)
                else:
                    for start, vector in zip(source.starts, row, strict=True):
                        line.store(start, vector, source.vector_lanes)
                used.append(line)
            result.append(used)
        return result

    def _moved(self, parts: list[list[PixelLine | None]]) -> list[Expr]:
        """All vectors of an output row whose pixels are those of the lines."""
        (lines,) = parts
        if self.out.layout.is_interleaved:
            return gather_row(self.out.layout, lines)
        (line,) = (line for line in lines if line is not None)  # plain rows end with the image
        return [T.Bind(line.load(x, self.out.vector_lanes)) for x in self.out.starts]

    def _emit_window(
        self,
        row: Any,
        parts: list[list[PixelLine | None]],
        counts: list[int],
        combine: Callable,
        value: Callable,
    ) -> None:
        """An output row whose windows see the rows in ``parts``, folded already."""
        (_, kw), (_, step), (_, left) = (
            self.window.kernel_size,
            self.window.stride,
            self.window.padding,
        )
        layout = self.out.layout
        lanes = min(self.out.lanes, largest_power_of_two(layout.width))
        done: list[PixelLine | None] = [None] * self.bands
        for band in range(self.bands):
            seen = [lines[band] for lines in parts]
            lines = [line for line in seen if line is not None]
            if not lines:
                continue
            for line in lines:
                right = (layout.width - 1) * step - left + kw - line.width
                line.fill_beyond(left, max(0, right), clamp=self.clamp)
            for index in range(-(-layout.width // lanes)):
                x = min(index * lanes, layout.width - lanes)
                first = x * step - left
                taps = [
                    combine([T.Bind(line.load(first + k, lanes, step)) for line in lines], lanes)
                    for k in range(kw)
                ]
                pixels = [(band, x + lane) for lane in range(lanes)]
                result = value([taps], [counts[band]] * lanes, pixels)
                if layout.is_interleaved:
                    self.row_of_window[band].store(x, result, lanes)
                else:
                    offset = layout.offset(row, x)
                    store(self.out.buffer, result, [*self.out.index, offset], lanes)
            done[band] = self.row_of_window[band] if layout.is_interleaved else None
        if layout.is_interleaved:
            for column, vector in enumerate(gather_row(layout, done)):
                self._store(row, column, vector)

    def _fold(
        self,
        source: Plane,
        by_band: Sequence[Sequence[tuple[int, int, int] | None]],
        i: Any,
        combine: Callable,
    ) -> list[tuple[dict[int, Expr], list[int | None]]]:
        """The rows of a window, folded vector by vector in the order that the source has.

        Rows that lie in different bands of the source have their pixels in different lanes, so each
        band is folded by itself: one ``(vectors, band of the source per band of the output)``
        each.
        """
        count = vectors_of(source)
        parts: list[list[tuple[int, list[Expr]]]] = []
        for taps in by_band:
            rows: dict[int, list[tuple[int, int]]] = {}
            for entry in taps:
                if entry is not None:
                    rows.setdefault(entry[0], []).append(entry[1:])
            parts.append([(band, self._read(source, at, i, combine)) for band, at in rows.items()])
        result = []
        for number in range(max(1, *map(len, parts))):
            vectors: dict[int, Expr] = {}
            bands: list[int | None] = []
            for band, part in enumerate(parts):
                if number >= len(part) and not (self.clamp and part):
                    bands.append(None)
                    continue
                home, folded = part[number] if number < len(part) else part[0]
                bands.append(home)
                vectors.update({band * count + n: vector for n, vector in enumerate(folded)})
            result.append((vectors, bands))
        return result

    def _read(
        self, source: Plane, rows: Sequence[tuple[int, int]], i: Any, combine: Callable
    ) -> list[Expr]:
        distinct = dict.fromkeys(rows) if self.clamp else rows
        read = [source.vectors(row + step * i) for row, step in distinct]
        if len(read) == 1:
            return read[0]
        lanes = source.vector_lanes
        return [T.Bind(combine(column, lanes)) for column in zip(*read, strict=True)]

    def _store(self, row: Any, column: int, value: Expr) -> None:
        """One output vector; lanes without a pixel become zero."""
        out = self.out
        if not out.layout.is_interleaved:
            offset = out.layout.offset(row, out.starts[column])
            store(out.buffer, value, [*out.index, offset], out.vector_lanes)
            return
        dtype = str(out.buffer.dtype)
        if dtype != "float32":
            value = T.Cast(f"{dtype}x{out.vector_lanes}", value)
        writer = RowWriter(out.buffer, 0, out.layout, out.index)
        writer.store(row, column, writer.zero_beyond_image(value, column, row))
