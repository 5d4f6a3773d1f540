"""Which part of an in_channel's plane a work_group copies to local memory."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ...geometry import ConvGeometry
from ...layout import PlaneLayout
from ...pattern import Pattern
from .config import GpuConfig
from .reuse import Chunks, tile_uses

#: Barriers for each kernel: before the copy is overwritten, and before it is read.
BARRIERS = 2


@dataclass(frozen=True)
class LocalTile:
    """Whole rows of a plane, in chunks: those that the tiles of a work_group read.

    Parameters
    ----------
    chunks : int
        Of one copy.
    first, last : int
        Chunk of a plane where the copy for the topmost tiles starts, and of the bottommost.
    row_step : int
        Chunks between the copies for tiles that begin an output row apart.
    copies : int
        Chunks that a work_item copies.
    """

    chunks: int
    first: int
    last: int
    row_step: int
    copies: int


def local_tile(
    geometry: ConvGeometry,
    config: GpuConfig,
    patterns: Iterable[Pattern],
    in_layout: PlaneLayout,
    out_layout: PlaneLayout,
    chunks: Chunks,
) -> LocalTile:
    """The copy for all tiles of a work_group; ``chunks`` are aligned loads."""
    c, width, sh = config, chunks.width, geometry.stride[0]
    taps = tuple(dict.fromkeys(tap for pattern in patterns for tap in pattern.taps))
    uses = tile_uses(geometry, c, taps)
    rows = in_layout.row_stride // width
    vectors = -(-out_layout.width // c.vector_width)
    along, down = -(-vectors // c.tile_cols), -(-out_layout.height // c.tile_rows)
    columns = sorted({column for of_row in uses.values() for column in of_row})
    left = chunks.numbers(columns[0], c.vector_width, geometry.stride[1])[0]
    right = chunks.numbers(columns[-1], c.vector_width, geometry.stride[1])[-1]
    right += (vectors - c.tile_cols) * c.vector_width * geometry.stride[1] // width
    tiles = min(c.tiles_per_group, along * down)
    blocks = tiles // along if tiles % along == 0 else (tiles - 2) // along + 2
    out_rows = min(blocks * c.tile_rows, out_layout.height)
    in_rows = (out_rows - c.tile_rows) * sh + max(uses) - min(uses) + 1
    size = (in_rows - 1) * rows + right - left + 1
    first = (in_layout.origin - chunks.phase) // width + min(uses) * rows + left
    return LocalTile(
        chunks=size,
        first=first,
        last=in_layout.size // width - size,
        row_step=sh * rows,
        copies=-(-size // c.tiles_per_group),
    )
