"""The outputs of one tile: where they lie, their lines, and how bytes come and go."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from tvm.tirx.script import builder as T

from ...layout import PlaneLayout
from ...vector import shuffle
from .isa import DotIsa
from .lines import LANE, ROW_LOAD, LaneShape
from .requantise import Bytes
from .workload import (
    RUNS,
    Int8Config,
    Int8Workload,
    pieces,
    rows_of_vector,
    shape_of_form,
    tiles_of,
)

Index = Any
Expression = Any


@dataclass(frozen=True)
class Place:
    """A tile: its plane's batch, and the outputs at which its parts begin."""

    batch: Index
    starts: tuple[Any, ...]


@dataclass(frozen=True)
class Source:
    """Where the bytes of a tile come from."""

    x: Any
    lines: Any
    place: Place
    chunk: Index


class Tiling(Protocol):
    """What the operator asks of the form of its tiles."""

    vectors: int
    tiles: tuple[int, int]
    scratch: int
    picks_shape: tuple[int, ...]

    def picks(self) -> np.ndarray:
        """Positions for the shuffles, of :attr:`picks_shape`."""

    def load_picks(self, buffer: Any, chunk: Index) -> list[Expression]:
        """The positions of one chunk, in registers."""

    def place(self, batch: Index, row: Index, col: Index) -> Place:
        """The tile of that number."""

    def gather(self, x: Any, lines: Any, place: Place) -> None:
        """Copy what the tile reads, of all units, into lines."""

    def tuples(
        self, source: Source, unit: Index, picks: list[Expression]
    ) -> Iterator[tuple[int, Expression]]:
        """Every vector of the tile with its bytes of one unit."""

    def load_rows(self, planes: Any, place: Place, channel: Index) -> list[Expression]:
        """Bytes of the tile's outputs in other planes, vector by vector."""

    def store(self, out: Any, place: Place, channel: Index, values: Bytes) -> None:
        """Write the bytes of every vector."""


def _ramp(start: Index, width: int) -> Index:
    return start if width == 1 else T.ramp(start, 1, width)


def _limited(value: Index, limit: int) -> Index:
    """``min(value, limit)``, static where both are."""
    limit = max(limit, 0)
    return min(value, limit) if isinstance(value, int) else T.Bind(T.min(value, limit))


class LineTiling:
    """Tiles of lines: ``strips`` below each other, each of ``beside`` vectors."""

    def __init__(self, workload: Int8Workload, config: Int8Config, isa: DotIsa) -> None:
        line = shape_of_form(config.form, workload.geometry, isa)
        if line is None:
            raise ValueError(f"no lines of the form {config.form!r} for {workload.geometry}")
        self.workload, self.isa, self.line = workload, isa, line
        self.tiles = tiles_of(workload, config)
        self.strips, self.beside = config.strips, config.vectors
        #: Vectors of each line of a strip.
        self.parts = [
            min(line.across, self.beside - first) * self._down
            for first in range(0, self.beside, line.across)
        ]
        self.vectors = self.strips * sum(self.parts)
        self.step = min(line.vector[1], line.block[1])
        self.lines = self.strips * len(self.parts)
        self.scratch = workload.units * self.lines * line.line_bytes + ROW_LOAD
        self.picks_shape: tuple[int, ...] = (len(workload.chunks), line.vectors, isa.vector_bytes)

    @property
    def _down(self) -> int:
        return self.line.vectors // self.line.across

    @property
    def _rows(self) -> int:
        """Outputs of a strip that lie in the image, below each other."""
        return min(self.line.block[0], self.workload.out_layout.height)

    @property
    def _cols(self) -> int:
        return min(self.beside * self.step, self.workload.out_layout.width)

    def picks(self) -> np.ndarray:
        return np.stack([self._picks(chunk) for chunk in self.workload.chunks])

    def _picks(self, chunk: tuple[tuple[int, int], ...]) -> np.ndarray:
        taps = tuple(chunk) + (chunk[0],) * (4 - len(chunk))
        return self.line.picks(taps, self.isa.pixels)

    def load_picks(self, buffer: Any, chunk: Index) -> list[Expression]:
        width = self.isa.vector_bytes
        return [
            T.Bind(buffer[chunk, vector, T.ramp(0, 1, width)])
            for vector in range(self.line.vectors)
        ]

    def place(self, batch: Index, row: Index, col: Index) -> Place:
        out, rows = self.workload.out_layout, self.line.block[0]
        down, beside = self.tiles
        first = 0 if beside == 1 else col * (self.beside * self.step)
        x = _limited(first, out.width - self.beside * self.step)
        ys = []
        for strip in range(self.strips):
            y = strip * rows if down == 1 else (row * self.strips + strip) * rows
            ys.append(_limited(y, out.height - rows))
        return Place(batch, (*ys, x))

    def gather(self, x: Any, lines: Any, place: Place) -> None:
        layout, line = self.workload.in_layout, self.line
        (sy, sx), (top, left) = line.geometry.stride, line.geometry.padding
        *ys, x0 = place.starts
        rows = (self._rows - 1) * sy + line.geometry.reach[0] + 1
        with T.serial(0, self.workload.units) as unit:
            for number, (y, part) in enumerate((y, p) for y in ys for p in range(len(self.parts))):
                col = x0 + part * line.across * self.step
                start = T.Bind(layout.offset(y * sy - top, col * sx - left))
                target = T.Bind((unit * self.lines + number) * line.line_bytes)
                loaded = [
                    _flipped(
                        x[place.batch, unit, T.ramp(start + row * layout.row_stride, 1, ROW_LOAD)],
                        self.isa,
                    )
                    for row in range(min(rows, line.halo()[0]))
                ]
                self._store_line(lines, target, loaded)

    def _store_line(self, lines: Any, target: Index, rows: list[Expression]) -> None:
        """Write the rows of a halo; what is behind the last of them may be overwritten."""
        line, width = self.line, self.isa.vector_bytes
        if not isinstance(line, LaneShape):
            for number, row in enumerate(rows):
                at = T.ramp(target + number * line.row_bytes, 1, ROW_LOAD)
                T.buffer_store(lines, row, [at])
            return
        bound = [T.Bind(row) for row in rows]
        last = len(rows) * ROW_LOAD - 1
        for number, sources in enumerate(line.registers(width)):
            value = shuffle(bound, [min(source, last) for source in sources])
            T.buffer_store(lines, value, [T.ramp(target + number * width, 1, width)])

    def tuples(
        self, source: Source, unit: Index, picks: list[Expression]
    ) -> Iterator[tuple[int, Expression]]:
        base = T.Bind(unit * (self.lines * self.line.line_bytes))
        width, vector = self.isa.vector_bytes, 0
        for number in range(self.lines):
            tables = [
                T.Bind(source.lines[T.ramp(base + number * self.line.line_bytes + start, 1, width)])
                for start in range(0, self.line.line_bytes, width)
            ]
            for half in range(self.parts[number % len(self.parts)]):
                yield vector, T.Bind(self.isa.pick(tables, picks[half]))
                vector += 1

    def _places(self) -> Iterator[tuple[int, int, int]]:
        """``(strip, row, column)`` of the first output of each vector."""
        rows, _ = self.line.vector
        for strip in range(self.strips):
            for part, vectors in enumerate(self.parts):
                for vector in range(vectors):
                    down, right = divmod(vector, self.line.across)
                    yield strip, down * rows, (part * self.line.across + right) * self.step

    def load_rows(self, planes: Any, place: Place, channel: Index) -> list[Expression]:
        layout = self.workload.out_layout
        *ys, x0 = place.starts
        rows, cols = self.line.vector
        lanes = [self.line.pixel(0, lane) for lane in range(self.isa.pixels)]
        order = [row * cols + col for row, col in lanes]
        vectors = []
        for strip, down, right in self._places():
            parts = []
            for row in range(rows):
                inside = min(down + row, self._rows - 1)
                at = layout.offset(ys[strip] + inside, x0 + right)
                parts.append(planes[place.batch, channel, _ramp(at, cols)])
            vectors.append(parts[0] if rows == 1 else shuffle(parts, order))
        return vectors

    def store(self, out: Any, place: Place, channel: Index, values: Bytes) -> None:
        layout = self.workload.out_layout
        *ys, x0 = place.starts
        for strip, y in enumerate(ys):
            for row in range(self._rows):
                sources = self._row_sources(strip, row)
                for start, width in pieces(self._cols):
                    value = values.of(sources[start : start + width])
                    at = _ramp(layout.offset(y + row, x0 + start), width)
                    T.buffer_store(out, value, [place.batch, channel, at])

    def _row_sources(self, strip: int, row: int) -> list[tuple[int, int]]:
        """Vector and lane of each output of a row of a strip."""
        found: dict[int, tuple[int, int]] = {}
        for vector, (of, down, right) in enumerate(self._places()):
            for lane in range(self.isa.pixels):
                below, beside = self.line.pixel(0, lane)
                if of == strip and down + below == row and beside < self.step:
                    found[right + beside] = (vector, lane)
        return [found[col] for col in range(self._cols)]


class RunTiling:
    """Tiles of a 1x1 convolution: vectors of neighbouring bytes, four in_channels interleaved."""

    def __init__(self, workload: Int8Workload, config: Int8Config, isa: DotIsa) -> None:
        if workload.pointwise and max(workload.geometry.padding) > 0:
            raise ValueError("a 1x1 convolution of bytes has no padding")
        self.workload, self.isa = workload, isa
        self.strided = not workload.in_runs
        self.rows = rows_of_vector(workload, isa)
        self.vectors = config.vectors
        self.tiles = tiles_of(workload, config)
        self.scratch = workload.units * self.vectors * isa.vector_bytes
        self.picks_shape: tuple[int, ...] = (1, 1, isa.vector_bytes)

    def picks(self) -> np.ndarray:
        return np.zeros(self.picks_shape, np.uint8)

    def load_picks(self, buffer: Any, chunk: Index) -> list[Expression]:
        return []

    @property
    def _run(self) -> int:
        out = self.workload.out_layout
        return (out.height - 1) * out.row_stride + out.width

    def place(self, batch: Index, row: Index, col: Index) -> Place:
        pixels, out = self.isa.pixels, self.workload.out_layout
        if not self.strided:
            first = 0 if self.tiles[1] == 1 else col * (self.vectors * pixels)
            return Place(batch, (_limited(first, self._run - self.vectors * pixels),))
        per_row = -(-out.width // pixels)
        starts = []
        for vector in range(self.vectors):
            number = vector if self.tiles[1] == 1 else col * self.vectors + vector
            if self.rows > 1:
                starts.append((_limited(number * self.rows, out.height - self.rows), 0))
                continue
            number = _limited(number, out.height * per_row - 1)
            y, x = number // per_row, _limited(number % per_row * pixels, out.width - pixels)
            starts.append((y, x))
        return Place(batch, tuple(starts))

    def _at(
        self,
        place: Place,
        vector: int,
        layout: PlaneLayout,
        stride: tuple[int, int] = (1, 1),
        row: int = 0,
    ) -> Index:
        """Offset of the first pixel of a vector, or of one of the rows that share it."""
        if not self.strided:
            return layout.origin + place.starts[0] + vector * self.isa.pixels
        (y, x), (sy, sx) = place.starts[vector], stride
        return layout.offset((y + row) * sy, x * sx)

    def _channel(self, x: Any, place: Place, channel: Index, vector: int) -> Expression:
        """The bytes of one in_channel under the outputs of a vector."""
        pixels, layout = self.isa.pixels, self.workload.in_layout
        stride = self.workload.geometry.stride
        starts = [self._at(place, vector, layout, stride, row) for row in range(self.rows)]
        width = pixels // self.rows
        wide = [
            x[place.batch, channel, T.ramp(start + i * width, 1, width)]
            for start in starts
            for i in range(stride[1])
        ]
        if len(wide) == 1:
            return wide[0]
        return shuffle(wide, range(0, pixels * stride[1], stride[1]))

    def gather(self, x: Any, lines: Any, place: Place) -> None:
        pixels, last = self.isa.pixels, self.workload.in_channels - 1
        order = [q * pixels + pixel for pixel in range(pixels) for q in range(4)]
        with T.serial(0, self.workload.units) as unit:
            channels = [T.Bind(T.min(unit * 4 + q, last)) for q in range(4)]
            for vector in range(self.vectors):
                parts = [self._channel(x, place, channel, vector) for channel in channels]
                value = _flipped(shuffle(parts, order), self.isa)
                at = (unit * self.vectors + vector) * self.isa.vector_bytes
                T.buffer_store(lines, value, [T.ramp(at, 1, self.isa.vector_bytes)])

    def tuples(
        self, source: Source, unit: Index, picks: list[Expression]
    ) -> Iterator[tuple[int, Expression]]:
        width = self.isa.vector_bytes
        base = T.Bind(unit * (self.vectors * width))
        for vector in range(self.vectors):
            yield vector, T.Bind(source.lines[T.ramp(base + vector * width, 1, width)])

    def load_rows(self, planes: Any, place: Place, channel: Index) -> list[Expression]:
        layout, pixels = self.workload.out_layout, self.isa.pixels
        width, vectors = pixels // self.rows, []
        for vector in range(self.vectors):
            starts = [self._at(place, vector, layout, row=row) for row in range(self.rows)]
            parts = [planes[place.batch, channel, T.ramp(at, 1, width)] for at in starts]
            vectors.append(parts[0] if self.rows == 1 else shuffle(parts, range(pixels)))
        return vectors

    def store(self, out: Any, place: Place, channel: Index, values: Bytes) -> None:
        layout, pixels = self.workload.out_layout, self.isa.pixels
        if self.strided:
            width = min(pixels // self.rows, layout.width)
            for vector in range(self.vectors):
                for row in range(self.rows):
                    first = row * (pixels // self.rows)
                    lanes = [(vector, first + lane) for lane in range(width)]
                    at = self._at(place, vector, layout, row=row)
                    self._store(out, (place.batch, channel), at, values, lanes)
            return
        for first in range(0, self.vectors, values.together):
            vectors = range(first, min(first + values.together, self.vectors))
            lanes = [(vector, lane) for vector in vectors for lane in range(pixels)]
            at = self._at(place, first, layout)
            self._store(out, (place.batch, channel), at, values, lanes)

    def _store(
        self, out: Any, plane: tuple[Any, Any], at: Index, values: Bytes, lanes: list[Any]
    ) -> None:
        """Write neighbouring pixels."""
        for start, width in pieces(len(lanes), self.isa.vector_bytes):
            value = values.of(lanes[start : start + width])
            T.buffer_store(out, value, [*plane, _ramp(at + start, width)])


class WindowTiling(RunTiling):
    """Tiles of neighbouring bytes; taps that neighbour each other in a row are one shuffle of it.

    For kernels that reach further than a line, and for depthwise ones, whose bytes are used once.
    """

    def __init__(self, workload: Int8Workload, config: Int8Config, isa: DotIsa) -> None:
        super().__init__(workload, config, isa)
        self.scratch = 0

    def picks(self) -> np.ndarray:
        pixels = 4 if self.isa.by_lane else self.isa.pixels
        step, between = self.workload.geometry.stride[1], self.workload.geometry.dilation[1]
        pixel, tap = np.mgrid[: self.isa.pixels, :4]
        at = np.minimum(pixel % pixels * step + tap * between, self.isa.table_bytes[0] - 1)
        return at.astype(np.uint8).reshape(self.picks_shape)

    def load_picks(self, buffer: Any, chunk: Index) -> list[Expression]:
        return [T.Bind(buffer[0, 0, T.ramp(0, 1, self.isa.vector_bytes)])]

    def gather(self, x: Any, lines: Any, place: Place) -> None:
        """Nothing: bytes are read where they lie."""

    def _first(self, place: Place, vector: int, tap: tuple[int, int]) -> Index:
        """Offset of the byte under a tap for the first output of a vector."""
        geometry, layout = self.workload.geometry, self.workload.in_layout
        start = self._at(place, vector, layout, geometry.stride)
        (row, col), (top, left) = tap, geometry.padding
        down = row * geometry.dilation[0] - top
        return start + down * layout.row_stride + col * geometry.dilation[1] - left

    def tuples(
        self, source: Source, unit: Index, picks: list[Expression]
    ) -> Iterator[tuple[int, Expression]]:
        size, tap = self.isa.vector_bytes, self.workload.chunks[source.chunk][0]
        x, batch = source.x, source.place.batch
        for vector in range(self.vectors):
            start = T.Bind(self._first(source.place, vector, tap))
            if not self.isa.by_lane or size == LANE:
                value = x[batch, unit, T.ramp(start, 1, size)]
            else:
                step = 4 * self.workload.geometry.stride[1]
                parts = [
                    x[batch, unit, T.ramp(start + lane * step, 1, LANE)]
                    for lane in range(size // LANE)
                ]
                value = shuffle(parts, range(size))
            value = T.Bind(_flipped(value, self.isa))
            yield vector, T.Bind(self.isa.pick([value], picks[0]))


def _flipped(values: Expression, isa: DotIsa) -> Expression:
    """Bytes as the instruction takes them."""
    if not isa.flip:
        return values
    lanes = int(values.ty.dtype.lanes)
    return T.bitwise_xor(values, T.broadcast(T.uint8(isa.flip), lanes))


def tiling_of(workload: Int8Workload, config: Int8Config, isa: DotIsa) -> Tiling:
    """The tiles of a config.

    Raises
    ------
    ValueError
        If the config is of a form that the workload cannot have.
    """
    wanted = "run" if workload.pointwise else "window" if workload.by_rows else "a line"
    if (config.form if config.form in RUNS else "a line") != wanted:
        raise ValueError(f"the form {config.form!r} does not fit {workload.geometry}")
    if workload.pointwise:
        return RunTiling(workload, config, isa)
    if workload.by_rows:
        return WindowTiling(workload, config, isa)
    return LineTiling(workload, config, isa)
