"""Small vector vocabulary over TVM's tirx: ramps, shuffles, transposes.

Everything here builds expressions inside an open ``IRBuilder`` function.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from typing import Any

from tvm import tirx
from tvm.tirx.script import builder as T

CACHE_LINE_FLOATS = 16


def lanes(base: Any, count: int) -> Any:
    """Index of ``count`` neighbouring elements."""
    return base if count == 1 else T.ramp(base, 1, count)


def splat(value: Any, count: int) -> Any:
    """``value`` in every lane."""
    return value if count == 1 else T.broadcast(value, count)


def constant(value: float, count: int, dtype: str = "float32") -> Any:
    return splat(tirx.const(value, dtype), count)


def shuffle(vectors: Sequence[Any], indices: Sequence[int]) -> Any:
    """Lanes ``indices`` of the concatenation of ``vectors``; one index gives a scalar."""
    return tirx.Shuffle(list(vectors), [tirx.IntImm("int32", int(i)) for i in indices])


def pick_or_zero(vector: Any, picks: Sequence[int | None], width: int, dtype: str) -> Any:
    """Lanes ``picks`` of a vector of ``width`` lanes, zero where a pick is None."""
    if all(pick == lane for lane, pick in enumerate(picks)):
        return vector
    if None not in picks:
        return shuffle([vector], [int(pick) for pick in picks if pick is not None])
    places = [width + lane if pick is None else pick for lane, pick in enumerate(picks)]
    return shuffle([vector, constant(0.0, width, dtype)], places)


class Locality(IntEnum):
    """How near a prefetched line is brought; LLVM's numbers."""

    L2 = 2
    L1 = 3


def prefetch(element: Any, locality: Locality = Locality.L1, *, for_writing: bool = False) -> None:
    """Ask for the cache line of a buffer element; a hint that never faults."""
    T.evaluate(
        tirx.call_llvm_intrin(
            "void",
            "llvm.prefetch",
            tirx.address_of(element),
            tirx.const(int(for_writing), "int32"),
            tirx.const(int(locality), "int32"),
            tirx.const(1, "int32"),
        )
    )


def transposed(vectors: Sequence[Any], width: int) -> list[Any]:
    """Four vectors with 4x4 blocks transposed: lane ``4q + k`` of ``j`` to ``4q + j`` of ``k``."""
    blocks = range(0, width, 4)
    a, b, c, d = vectors
    low = [s for k in blocks for s in (k, width + k, k + 1, width + k + 1)]
    high = [s + 2 for s in low]
    pairs = [(T.Bind(shuffle([a, b], half)), T.Bind(shuffle([c, d], half))) for half in (low, high)]
    out = []
    for row in range(4):
        ab, cd = pairs[row // 2]
        start = row % 2 * 2
        merged = [
            s
            for k in blocks
            for s in (k + start, k + start + 1, width + k + start, width + k + start + 1)
        ]
        out.append(T.Bind(shuffle([ab, cd], merged)))
    return out


def transpose_blocks(columns: Sequence[Any], width: int) -> list[tuple[int, Any]]:
    """Turn 4 vectors of ``width`` filters into vectors of 4 neighbouring pixels per filter.

    Parameters
    ----------
    columns : sequence of 4 expressions
        Vector ``j`` holds pixel ``j`` of filters ``0 .. width - 1``; ``width`` is a multiple of 4.

    Returns
    -------
    list of (int, expression)
        ``(filter, 4-lane vector)`` for every filter.
    """
    out = []
    for row, rows in enumerate(transposed(columns, width)):
        for k in range(0, width, 4):
            out.append((k + row, rows if width == 4 else shuffle([rows], range(k, k + 4))))
    return out
