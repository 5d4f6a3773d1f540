"""Which inputs a register_tile reads, and who shares them: the arithmetic of load reuse.

The one place that knows it. The schedule asks :func:`input_uses` and loads every vector once; the
cost model and the tuner's features count what :func:`input_rows` says.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..geometry import ConvGeometry
from .config import ConvConfig


def tap_inputs(
    geometry: ConvGeometry, config: ConvConfig, tap: tuple[int, int]
) -> tuple[list[int], list[int]]:
    """Inputs that one tap reads: a row per tile row, the first column per vector along a row.

    Both are counted from the input of the tile's output (0, 0), which padding makes negative.
    Columns are elements; the neighbouring pixels of interleaved lanes are a vector apart.
    """
    (sh, sw), (dh, dw), (pt, pl) = geometry.stride, geometry.dilation, geometry.padding
    kh, kw = tap
    apart = config.pixel_lanes * sw
    first = (kw * dw - pl) * config.column_step
    rows = [r * sh + kh * dh - pt for r in range(config.tile_rows)]
    return rows, [c * apart + first for c in range(config.tile_cols)]


def input_uses(
    geometry: ConvGeometry, config: ConvConfig, taps: Sequence[tuple[int, int]]
) -> dict[tuple[int, int], list[tuple[int, int, int]]]:
    """Distinct input vectors of a step and who uses them.

    Returns ``(row, column) of the vector -> list of (number in taps, tile row, tile column)``.
    """
    uses: dict[tuple[int, int], list[tuple[int, int, int]]] = {}
    for number, tap in enumerate(taps):
        rows, columns = tap_inputs(geometry, config, tap)
        for r, row in enumerate(rows):
            for c, column in enumerate(columns):
                uses.setdefault((row, column), []).append((number, r, c))
    return uses


def input_rows(
    geometry: ConvGeometry, config: ConvConfig, taps: Sequence[tuple[int, int]]
) -> dict[int, set[int]]:
    """Distinct input vectors of a step: input row -> first columns."""
    found: dict[int, set[int]] = {}
    for tap in taps:
        rows, columns = tap_inputs(geometry, config, tap)
        for row in rows:
            found.setdefault(row, set()).update(columns)
    return found
