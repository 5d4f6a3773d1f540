"""Tiles of neighbouring bytes of a plane: 1x1 convolutions, far reaching kernels, depthwise."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from tvm.tirx.script import builder as T

from ...layout import PlaneLayout
from ...vector import shuffle
from .isa import DotIsa
from .lines import LANE
from .requantise import Bytes
from .tiles import Expression, Index, Place, Source, flipped, limited, ramp
from .workload import Int8Config, Int8Workload, pieces, rows_of_vector, tiles_of


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
            return Place(batch, (limited(first, self._run - self.vectors * pixels),))
        per_row = -(-out.width // pixels)
        starts = []
        for vector in range(self.vectors):
            number = vector if self.tiles[1] == 1 else col * self.vectors + vector
            if self.rows > 1:
                starts.append((limited(number * self.rows, out.height - self.rows), 0))
                continue
            number = limited(number, out.height * per_row - 1)
            y, x = number // per_row, limited(number % per_row * pixels, out.width - pixels)
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
                value = flipped(shuffle(parts, order), self.isa)
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
            T.buffer_store(out, value, [*plane, ramp(at + start, width)])


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
            value = T.Bind(flipped(value, self.isa))
            yield vector, T.Bind(self.isa.pick([value], picks[0]))
