"""Fetching what the caches do not hold yet: the next tile's input and the outputs' own lines.

Kernels read channels in an order no hardware prefetcher follows, and the first store to a line
waits for it. Both misses are known a whole register_tile ahead, so they are asked for early:

- while the filter_groups go over one tile, each of them fetches its share of the next tile's
  in_channels into L2;
- before a group's kernels run, the lines that its outputs (and residuals) lie on are fetched.
"""

from __future__ import annotations

from typing import Any

from tvm.tirx.script import builder as T

from ..vector import CACHE_LINE_FLOATS, Locality, prefetch
from ..workload import ConvWorkload
from .config import ConvConfig
from .tile import Buffers, Place, Tile, row_vectors


def fetch_next_input(
    workload: ConvWorkload,
    config: ConvConfig,
    buffers: Buffers,
    place: Place,
    turn: tuple[Any, int],
) -> None:
    """Fetch a share of the in_channels of the tile at ``place``; ``turn`` is (number, turns).

    A tile as wide as the image lies below the one before it, which read its upper rows already.
    """
    layout, window = workload.in_layout, workload.geometry
    (sh, sw), (dh, dw), (pt, pl) = window.stride, window.dilation, window.padding
    kh, kw = window.kernel_size
    rows = (config.tile_rows - 1) * sh + (kh - 1) * dh + 1
    whole_row = row_vectors(workload, config) == config.tile_cols
    fresh = min(rows, config.tile_rows * sh) if whole_row else rows
    step = config.column_step
    first_col = 0 if whole_row else -pl * step
    span = config.tile_cols * config.pixel_lanes * sw + (0 if whole_row else (kw - 1) * dw * step)
    lines = -(-span // CACHE_LINE_FLOATS) + (0 if whole_row else 1)
    corner = T.Bind(
        place.batch * (workload.in_channels * layout.size)
        + layout.origin
        + (place.y0 * sh - pt + rows - fresh) * layout.row_stride
        + place.x0 * sw
        + first_col
    )
    number, turns = turn
    share = -(-workload.in_channels // turns)
    with T.serial(0, share) as i:
        channel = T.Bind(T.min(number * share + i, workload.in_channels - 1))
        for row in range(fresh):
            for line in range(lines):
                offset = row * layout.row_stride + line * CACHE_LINE_FLOATS
                prefetch(buffers.x[corner + channel * layout.size + offset], Locality.L2)


def fetch_outputs(workload: ConvWorkload, config: ConvConfig, buffers: Buffers, tile: Tile) -> None:
    """Fetch the lines that the tile's outputs and residuals lie on."""
    targets = [(buffers.out, workload.out_layout, True)]
    if workload.residual_layout is not None and buffers.residual is not None:
        targets.append((buffers.residual, workload.residual_layout, False))
    span = config.tile_cols * config.pixel_lanes
    for slot in tile.slots:
        plane = T.Bind(tile.batch * workload.out_channels + T.min(slot, workload.out_channels - 1))
        for buffer, layout, for_writing in targets:
            corner = plane * layout.size + layout.origin + tile.x0
            start = T.Bind(corner + tile.y0 * layout.row_stride)
            for row in range(config.tile_rows):
                for col in range(0, span, CACHE_LINE_FLOATS):
                    element = buffer[start + row * layout.row_stride + col]
                    prefetch(element, Locality.L1, for_writing=for_writing)
