"""What the operator asks of a tile of outputs: where it lies, how its bytes come and go."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from tvm.tirx.script import builder as T

from .isa import DotIsa
from .requantise import Bytes

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


def ramp(start: Index, width: int) -> Index:
    return start if width == 1 else T.ramp(start, 1, width)


def limited(value: Index, limit: int) -> Index:
    """``min(value, limit)``, static where both are."""
    limit = max(limit, 0)
    return min(value, limit) if isinstance(value, int) else T.Bind(T.min(value, limit))


def flipped(values: Expression, isa: DotIsa) -> Expression:
    """Bytes as the instruction takes them."""
    if not isa.flip:
        return values
    lanes = int(values.ty.dtype.lanes)
    return T.bitwise_xor(values, T.broadcast(T.uint8(isa.flip), lanes))
