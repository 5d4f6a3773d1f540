"""In_channels in blocks: a block's input stays in the nearest cache for all filter_groups.

A 1x1 kernel uses every input line once per filter, so without blocks each multiply-add waits for a
line from L2. With ``channel_block`` the groups take turns over one block at a time; the partial
sums of a tile and how far every kernel list has been read wait in a small workspace.
"""

from __future__ import annotations

import math
from typing import Any

from tvm import tirx
from tvm.tirx.script import builder as T

from ..vector import CACHE_LINE_FLOATS, lanes, prefetch
from ..workload import ConvWorkload
from .config import COPIED, ConvConfig
from .kernel_loops import KernelLoops
from .tap_loops import TapLoops
from .tile import Buffers, Place, Tile
from .tile_copy import TileCopy

# Groups between the prefetch of a kernel list and its use: a miss takes longer than one turn.
TURNS_AHEAD = 3


class TapBlocks:
    """Partial sums of ``groups`` filter_groups at one place; a block's list is known by number."""

    def __init__(self, workload: ConvWorkload, config: ConvConfig, groups: int) -> None:
        self.workload, self.config, self.groups = workload, config, groups
        self.count = -(-workload.in_channels // config.channel_block)
        self._sums = config.accumulators * config.vector_width
        self.partial = T.alloc_buffer((groups * self._sums,), workload.dtype, scope="global")
        self.copy = TileCopy(workload, config) if config.body == COPIED else None

    def begin(self, buffers: Buffers, place: Place, block: Any) -> None:
        """What a block needs before its first filter_group."""
        if self.copy is not None:
            self.copy.fill(buffers, place, block)

    def _slots(self, tile: Tile, turn: Any) -> list[tuple[Any, Any]]:
        """``(accumulator, index of its partial sum)`` of the ``turn``-th group."""
        width = self.config.vector_width
        start = turn * self._sums
        return [(acc, lanes(start + i * width, width)) for i, acc in enumerate(tile.acc.values())]

    def resume(self, tile: Tile, turn: Any) -> None:
        """Partial sums of the blocks before into the accumulators."""
        vec = lanes(0, self.config.vector_width)
        for acc, index in self._slots(tile, turn):
            T.buffer_store(acc, self.partial[index], [vec])

    def suspend(self, tile: Tile, turn: Any) -> None:
        """Accumulators to partial sums, for the next block."""
        vec = lanes(0, self.config.vector_width)
        for acc, index in self._slots(tile, turn):
            T.buffer_store(self.partial, acc[vec], [index])

    def _fetch_sums(self, turn: Any) -> None:
        """Bring the partial sums of the next turn near while this one is computed."""
        start = T.Bind(turn * self._sums)
        for line in range(0, self._sums, CACHE_LINE_FLOATS):
            prefetch(self.partial[start + line])

    def accumulate(self, buffers: Buffers, tile: Tile, block: Any, turn: Any) -> None:
        """Add the entries of one block of in_channels of the ``turn``-th group."""
        if self.count > 1:
            with T.If(block > 0), T.Then():
                self._fetch_sums(T.Bind(T.min(turn + 1, self.groups - 1)))
        TapLoops(self.workload, self.config, buffers, tile, self.copy).block(block)

    def is_last(self, block: Any) -> Any:
        return block == tirx.const(self.count - 1, "int32")


class ChannelBlocks(TapBlocks):
    """Partial sums and list positions of ``groups`` filter_groups at one place."""

    def __init__(self, workload: ConvWorkload, config: ConvConfig, groups: int) -> None:
        super().__init__(workload, config, groups)
        self._marks = 2 * len(workload.patterns)
        self.cursors = T.alloc_buffer((groups * self._marks,), "int32", scope="global")

    def accumulate(self, buffers: Buffers, tile: Tile, block: Any, turn: Any) -> None:
        """Add the kernels of one block of in_channels."""
        loops = KernelLoops(self.workload, self.config, buffers, tile)
        limit = T.Bind((block + 1) * self.config.channel_block)
        is_first = T.Bind(block == 0)
        later = T.Bind(T.min(turn + TURNS_AHEAD, self.groups - 1))
        group = T.Bind(T.min(tile.group + TURNS_AHEAD, self.workload.num_groups - 1))
        mark = self.cursors[later * self._marks]
        start = T.Bind(T.Select(is_first, buffers.group_start[group], mark))
        length = self.workload.num_kernels / self.workload.num_groups / self.count
        loops.fetch_list(start, math.ceil(length))
        loops.kernels_below(limit, is_first, self.cursors, T.Bind(turn * self._marks))
