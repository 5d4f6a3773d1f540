"""Tiles of lines: halos in which one shuffle finds the bytes under any taps."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from tvm.tirx.script import builder as T

from ...vector import shuffle
from .isa import DotIsa
from .lines import ROW_LOAD, LaneShape
from .requantise import Bytes
from .tiles import Expression, Index, Place, Source, flipped, limited, ramp
from .workload import Int8Config, Int8Workload, pieces, shape_of_form, tiles_of


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
        x = limited(first, out.width - self.beside * self.step)
        ys = []
        for strip in range(self.strips):
            y = strip * rows if down == 1 else (row * self.strips + strip) * rows
            ys.append(limited(y, out.height - rows))
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
                    flipped(
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
                parts.append(planes[place.batch, channel, ramp(at, cols)])
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
                    at = ramp(layout.offset(y + row, x0 + start), width)
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
