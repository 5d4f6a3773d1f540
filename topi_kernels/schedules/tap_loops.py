"""The loop over a tap list: one body for all patterns, one entry after the other.

No entry shares an input with another, so a register_tile of R x C vectors loads that many per
entry, from the nearest cache if a block of in_channels stays there. In return there is one loop per
filter_group and block instead of one per pattern, no shuffle at all, and the sums have one order
whatever the block.
"""

from __future__ import annotations

from typing import Any

from tvm.tirx.script import builder as T

from ..vector import lanes, splat
from ..workload import ConvWorkload
from .config import ConvConfig
from .tile import Buffers, Tile
from .tile_copy import TileCopy


class TapLoops:
    """Adds the entries of a tile's filter_group to its accumulators."""

    def __init__(
        self,
        workload: ConvWorkload,
        config: ConvConfig,
        buffers: Buffers,
        tile: Tile,
        copy: TileCopy | None = None,
    ) -> None:
        self.copy = copy
        self.workload, self.config, self.buffers, self.tile = workload, config, buffers, tile
        if workload.tap_code is None:
            raise ValueError("the body 'taps' needs a layer stored as tap lists, got FKW")
        self.code = workload.tap_code
        geometry = buffers.geometry
        self.base = T.Bind(
            tile.batch * (workload.in_channels * geometry.size)
            + tile.y0 * geometry.row_step
            + tile.x0 * geometry.col_step
        )

    def all_blocks(self) -> None:
        """Every entry of the filter_group, block by block."""
        if self.code.blocks == 1:
            self.block(0)
            return
        with T.serial(0, self.code.blocks) as block:
            self.block(block)

    def block(self, block: Any) -> None:
        """The entries of one block of in_channels."""
        code, groups = self.code, self.workload.num_groups
        number = T.Bind(block * groups + self.tile.group)
        base = T.Bind(self.base + block * (code.channel_block * code.plane_size))
        begin, end = (T.Bind(self.buffers.list_start[number + i]) for i in (0, 1))
        with T.serial(begin, end) as k:
            offset = self.buffers.offset[k]
            if self.copy is not None:
                start = self.copy.start(offset)
            else:
                start = base + T.Cast("int32", offset) * code.unit
            self._entry(T.Bind(start), k)

    def _entry(self, start: Any, k: Any) -> None:
        config, geometry = self.config, self.buffers.geometry
        width, filters = config.vector_width, range(config.filter_vectors)
        places = [(r, c) for r in range(config.tile_rows) for c in range(config.tile_cols)]

        def value(place: tuple[int, int]) -> Any:
            if self.copy is not None:
                return T.Bind(self.copy.vector(start, *place))
            row, col = place[0] * geometry.row_step, place[1] * width * geometry.col_step
            return T.Bind(self.buffers.x[lanes(start + row + col, width)])

        def weight(f: int) -> Any:
            element = self.buffers.weights[k * config.filter_vectors + f]
            return T.Bind(splat(element, width))

        if len(places) < config.filter_vectors:  # what is fewer is held in registers
            values = {place: value(place) for place in places}
            for f in filters:
                held = weight(f)
                for place in places:
                    self._add(f, place, held, values[place])
            return
        weights = [weight(f) for f in filters]
        for place in places:
            loaded = value(place)
            for f in filters:
                self._add(f, place, weights[f], loaded)

    def _add(self, f: int, place: tuple[int, int], weight: Any, value: Any) -> None:
        acc, vec = self.tile.acc[f, place[0], place[1]], lanes(0, self.config.vector_width)
        T.buffer_store(acc, acc[vec] + weight * value, [vec])
