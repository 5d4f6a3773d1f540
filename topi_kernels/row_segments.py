"""Runs of output rows whose source rows move evenly, so that a loop computes them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Segment:
    """Rows ``first .. first + count - 1`` of the output's bands whose sources move evenly.

    ``rows[n]`` is ``(band, first row, rows per output row)`` of the n-th source row, or None for
    one outside the image.
    """

    first: int
    count: int
    rows: tuple[tuple[int, int, int] | None, ...]


def segments(rows: Sequence[Sequence[tuple[int, int] | None]]) -> Iterator[Segment]:
    """Cut output rows into runs; ``rows[r]`` names the source rows of row ``r``."""
    first = 0
    while first < len(rows):
        end = first + 1
        steps: list[int] | None = None
        while end < len(rows):
            moved = _steps(rows[end - 1], rows[end])
            if moved is None or (steps is not None and moved != steps):
                break
            steps = moved
            end += 1
        entries = zip(rows[first], steps or [0] * len(rows[first]), strict=True)
        yield Segment(
            first,
            end - first,
            tuple(None if row is None else (*row, step) for row, step in entries),
        )
        first = end


def _steps(
    before: Sequence[tuple[int, int] | None], after: Sequence[tuple[int, int] | None]
) -> list[int] | None:
    """By how much every source row moves, or None where one changes its band."""
    steps = []
    for a, b in zip(before, after, strict=True):
        if (a is None) != (b is None) or (a is not None and b is not None and a[0] != b[0]):
            return None
        steps.append(0 if a is None or b is None else b[1] - a[1])
    return steps
