"""Rows of planes as vectors, and vectors whose lanes are picked from several others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.ir import Expr
from tvm.tirx.script import builder as T

from .layout import PlaneLayout
from .plane_ops import Index, load
from .vector_math import broadcast, largest_power_of_two

#: A place in the vectors of a row: number of the vector, lane.
Place = tuple[int, int]


@dataclass(frozen=True)
class Plane:
    """One plane of a tensor: its buffer, where it begins in it, and how its rows lie."""

    buffer: tirx.Buffer
    index: tuple[Index, Index]
    layout: PlaneLayout
    lanes: int

    @property
    def vector_lanes(self) -> int:
        """Lanes of the vectors that a row is read in."""
        layout = self.layout
        if layout.is_interleaved:
            return layout.lanes
        return min(self.lanes, largest_power_of_two(layout.width))

    @property
    def starts(self) -> list[int]:
        """First pixels of the vectors of a plain row; the last one overlaps its predecessor."""
        width, lanes = self.layout.width, self.vector_lanes
        return [min(i * lanes, width - lanes) for i in range(-(-width // lanes))]

    def row_of(self, y: int) -> tuple[int, int]:
        """Band and row in it of image row ``y``."""
        layout = self.layout
        return divmod(y, layout.band_height) if layout.is_interleaved else (0, y)

    def place_of(self, band: int, x: int) -> Place:
        """Where pixel ``x`` of a row lies in its vectors."""
        layout = self.layout
        if layout.is_interleaved:
            lane, column = divmod(x, layout.columns)
            return column, band * layout.band_lanes + lane
        vector = min(x // self.vector_lanes, len(self.starts) - 1)
        return vector, x - self.starts[vector]

    def vectors(self, row: Any) -> list[Expr]:
        """All vectors of a row of the bands, as float32."""
        layout, lanes = self.layout, self.vector_lanes
        if layout.is_interleaved:
            offsets = [layout.vector_offset(row, c) for c in range(layout.columns)]
        else:
            offsets = [layout.offset(row, x) for x in self.starts]
        return [T.Bind(load(self.buffer, [*self.index, o], lanes)) for o in offsets]


def vectors_of(plane: Plane) -> int:
    return plane.layout.columns if plane.layout.is_interleaved else len(plane.starts)


def gather(sources: dict[int, Expr], lanes: int, picks: Sequence[Place | None], width: int) -> Expr:
    """A float32 vector of ``width`` lanes, each picked from one of several vectors; None is zero.

    ``sources`` are vectors of ``lanes``. Each of them costs one shuffle, or two where the widths
    differ.
    """
    wanted = sorted({pick[0] for pick in picks if pick is not None})
    result = broadcast(0.0, width) if None in picks or not wanted else None
    for number in wanted:
        mine = [pick[1] if pick is not None and pick[0] == number else None for pick in picks]
        source = sources[number]
        if result is None:
            # Lanes of later sources hold anything until their turn comes.
            result = _shuffle([source], lanes, [place or 0 for place in mine])
            continue
        if width != lanes:
            source = _shuffle([source], lanes, [place or 0 for place in mine])
            mine = [lane if place is not None else None for lane, place in enumerate(mine)]
        both = [lane if place is None else width + place for lane, place in enumerate(mine)]
        result = _shuffle([result, source], width, both)
    return result


def _shuffle(vectors: list[Expr], lanes: int, places: list[int]) -> Expr:
    """Lanes ``places`` of vectors of ``lanes``; the first vector itself if nothing moves."""
    if places == list(range(lanes)):
        return vectors[0]
    if len(places) == 1 and lanes == 1:
        return vectors[places[0]]
    copies = -(-len(places) // (lanes * len(vectors)))  # no more lanes come out than go in
    vectors = vectors * copies
    return T.Bind(tirx.Shuffle(vectors, [tirx.IntImm("int32", place) for place in places]))
