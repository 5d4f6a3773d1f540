"""Inputs and weights of one kernel: every distinct vector is loaded once.

This is where load redundancy is eliminated: :mod:`.load_reuse` says which taps, rows and columns
of a register_tile share an input vector, :class:`InputLoader` loads each of them once.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from typing import Any

from tvm.tirx.script import builder as T

from ..vector import constant, lanes, pick_or_zero, prefetch, shuffle, splat
from .config import ConvConfig
from .input_geometry import InputGeometry


class Bases:
    """Where a kernel's input begins, per column of taps modulo the vector width if asked for.

    An offset that is a multiple of the vector fits into the load instruction of NEON; any other
    costs an addition. ``opaque`` is a zero that LLVM cannot see through, or it would fold the
    columns back into the offsets. Such bases have 64 bits: a sum of 32-bit indices is extended in
    every iteration, whereas these become pointers that loads advance by themselves.
    """

    def __init__(self, config: ConvConfig, origin: Any, opaque: Any = None) -> None:
        self.config = config
        self._is_wide = opaque is not None
        first = T.Bind(self.wide(origin)) if self._is_wide else origin
        self._columns = {0: first}
        if opaque is not None:
            for c in range(1, config.vector_width):
                self._columns[c] = T.Bind(first + self.wide(T.bitwise_or(opaque, c)))

    def wide(self, index: Any) -> Any:
        """``index`` in the width of the bases."""
        return T.Cast("int64", index) if self._is_wide else index

    def plus(self, distance: Any) -> Bases:
        """The bases, ``distance`` elements further."""
        moved = copy(self)
        moved._columns = {c: T.Bind(distance + base) for c, base in self._columns.items()}
        return moved

    def at(self, offset: int) -> Any:
        """The address ``offset`` elements away."""
        column = offset % self.config.vector_width
        if column in self._columns:
            return self._columns[column] + (offset - column)
        return self._columns[0] + offset


class InputLoader:
    """Loads input vectors of one kernel, once each, and prefetches the next kernel's."""

    def __init__(
        self, geometry: InputGeometry, config: ConvConfig, x: Any, base: Bases, next_base: Any
    ) -> None:
        self.geometry, self.config = geometry, config
        self.x, self.base, self.next_base = x, base, next_base
        self._raw: dict[tuple[int, int], Any] = {}
        self._prefetched: set[tuple[int, int, int]] = set()
        self.first_column = 0

    def _start(self, row: int, col: int) -> Any:
        return self.base.at(self.geometry.offset(row, col))

    def _element(self, row: int, col: int) -> Any:
        """One input, as an element of a whole vector that its neighbours share."""
        index, lane = divmod(col - self.first_column, self.config.vector_width)
        if (row, index) not in self._raw:
            start = self.first_column + index * self.config.vector_width
            vector = self.x[lanes(self._start(row, start), self.config.vector_width)]
            self._raw[row, index] = T.Bind(vector)
        return shuffle([self._raw[row, index]], [lane])

    def _fetch_next(self, row: int, col: int) -> None:
        offset = self.geometry.offset(row, col)
        line = (row, *self.geometry.line(col))
        if self.next_base is not None and line not in self._prefetched:
            self._prefetched.add(line)
            prefetch(self.x[self.next_base + offset])

    def _row_vector(self, row: int, index: int) -> Any:
        """Aligned vector ``index`` of an input row.

        A tile as wide as the row needs no neighbours: what lies beyond it are zeros. A row of one
        vector ends with them, so that turning it serves as well, in one shuffle of one vector.
        """
        width, columns = self.config.vector_width, self.config.tile_cols
        layout = self.geometry.layout
        if columns * width == self.geometry.row_stride and not layout.is_interleaved:
            if columns == 1:
                index = 0
            elif not 0 <= index < columns:
                return constant(0.0, width, str(self.x.dtype))
        if (row, index) not in self._raw:
            self._fetch_next(row, index * width)
            start = self._start(row, index * width)
            self._raw[row, index] = T.Bind(self.x[lanes(start, width)])
        return self._raw[row, index]

    def _neighbour(self, row: int, index: int) -> Any:
        """Vector ``index`` of a row of interleaved lanes; beyond the row its lanes move on."""
        layout, width = self.geometry.layout, self.config.vector_width
        if layout.border or 0 <= index < layout.columns:
            return self._row_vector(row, index)
        source, picks = layout.turned(index, self.geometry.reach)
        return T.Bind(pick_or_zero(self._row_vector(row, source), picks, width, str(self.x.dtype)))

    def load(self, row: int, col: int) -> Any:
        """``pixel_lanes`` inputs from ``(row, col)`` on, repeated for every filter lane."""
        config, stride = self.config, self.geometry.col_step
        width, pixels = config.vector_width, config.pixel_lanes
        if config.shift == "rotate":
            index, shift = divmod(col, width)
            first = self._row_vector(row, index)
            if shift == 0:
                return first
            second = self._row_vector(row, index + 1)
            return T.Bind(shuffle([first, second], range(shift, shift + width)))
        if config.shift == "lanes":
            return self._neighbour(row, col // width)
        self._fetch_next(row, col)
        if pixels == 1 and config.isa == "neon" and width > 1:
            return T.Bind(splat(self._element(row, col), width))
        start = self._start(row, col)
        if pixels == 1:
            return T.Bind(splat(self.x[start], width))
        if stride == 1:
            vector = self.x[lanes(start, pixels)]
            if pixels == width:
                return T.Bind(vector)
            return T.Bind(
                shuffle([vector] * (width // pixels), list(range(pixels)) * (width // pixels))
            )
        if stride == 2:
            parts = [self.x[lanes(start, pixels)], self.x[lanes(start + pixels, pixels)]]
            repeat = width // pixels
            picks = list(range(0, 2 * pixels, 2)) * repeat
            return T.Bind(shuffle(parts * ((repeat + 1) // 2), picks))
        scalars = [self.x[start + i * stride] for i in range(pixels)]
        return T.Bind(shuffle(scalars * (width // pixels), range(width)))


def _weight_vector(config: ConvConfig, weights: Any, start: Any, vector: int) -> Any:
    """Weights of one tap for filter vector ``vector``, every filter repeated for its pixels."""
    base = start + vector * config.filter_lanes
    if config.filter_lanes == 1:
        return splat(weights[base], config.vector_width)
    values = weights[lanes(base, config.filter_lanes)]
    if config.pixel_lanes == 1:
        return values
    picks = [lane // config.pixel_lanes for lane in range(config.vector_width)]
    return shuffle([values] * config.pixel_lanes, picks)


def step_weights(
    config: ConvConfig, weights: Any, start: Any, taps: Sequence[int]
) -> dict[tuple[int, int], Any]:
    """Weight vectors of a step: ``(tap number, filter vector) -> vector``."""
    keys = [(n, f) for n in taps for f in range(config.filter_vectors)]
    if config.isa != "neon" or config.filter_lanes != 1:
        return {
            (n, f): T.Bind(_weight_vector(config, weights, start + n * config.group, f))
            for n, f in keys
        }
    # Neighbouring weights come in whole vectors; the multiply-adds take them by element.
    width, first = config.vector_width, start + taps[0] * config.group
    loaded: list[Any] = []
    while len(loaded) < len(keys):
        count = width
        while count > len(keys) - len(loaded):
            count //= 2
        vector = T.Bind(weights[lanes(first + len(loaded), count)])
        loaded += [vector if count == 1 else shuffle([vector], [i]) for i in range(count)]
    return {key: T.Bind(splat(value, width)) for key, value in zip(keys, loaded, strict=True)}
