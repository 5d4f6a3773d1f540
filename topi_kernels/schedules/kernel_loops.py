"""The loops over a filter_group's kernels, one per pattern, and their straight bodies."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tvm import tirx
from tvm.tirx.script import builder as T

from ..pattern import Pattern
from ..vector import CACHE_LINE_FLOATS, lanes, prefetch
from ..workload import ConvWorkload
from .config import ConvConfig
from .load_reuse import input_uses
from .tile import Buffers, Tile
from .tile_inputs import Bases, InputLoader, step_weights


def _kernel_body(
    workload: ConvWorkload,
    config: ConvConfig,
    buffers: Buffers,
    tile: Tile,
    pattern: Pattern,
    bases: tuple[Any, Any, Any],
) -> None:
    """Straight code for one kernel: all taps of ``pattern`` into all accumulators."""
    base, next_base, weight_base = bases
    vec = lanes(0, config.vector_width)
    for first in range(0, len(pattern), config.taps_per_step):
        step = pattern.taps[first : first + config.taps_per_step]
        numbers = range(first, first + len(step))
        weights = step_weights(config, buffers.weights, weight_base, numbers)
        uses = input_uses(workload.geometry, config, step)
        loader = InputLoader(buffers.geometry, config, buffers.x, base, next_base)
        loader.first_column = min(col for _, col in uses)
        for row, col in sorted(uses):
            value = loader.load(row, col)
            for n, r, c in uses[row, col]:
                for f in range(config.filter_vectors):
                    acc = tile.chain(first + n)[f, r, c]
                    T.buffer_store(acc, acc[vec] + weights[first + n, f] * value, [vec])


class KernelLoops:
    """Adds the kernels of a tile's filter_group to its accumulators, one loop per pattern."""

    def __init__(
        self, workload: ConvWorkload, config: ConvConfig, buffers: Buffers, tile: Tile
    ) -> None:
        self.workload, self.config, self.buffers, self.tile = workload, config, buffers, tile
        geometry = buffers.geometry
        self.delta = workload.index_encoding == "delta8"
        self.origin = T.Bind(
            tile.batch * (workload.in_channels * geometry.size)
            + geometry.origin
            + tile.y0 * geometry.row_step
            + tile.x0 * geometry.col_step
        )
        opaque = T.Bind(buffers.group_start[0]) if config.isa == "neon" else None
        self.origins = Bases(config, self.origin, opaque)

    def _lists(self) -> Iterator[tuple[Pattern, Any, Any, Any]]:
        """``(pattern, first kernel, end, first weight)`` of every list of the filter_group.

        One after the other, so that no more of them are alive than the loops need.
        """
        buffers, group = self.buffers, self.tile.group
        begin = T.Bind(buffers.group_start[group])
        uniform = buffers.weight_start is None
        weights = None if uniform else T.Bind(buffers.weight_start[group])
        for p, pattern in enumerate(self.workload.patterns):
            number = group * len(self.workload.patterns) + p
            end = T.Bind(begin + T.Cast("int32", buffers.pattern_count[number]))
            yield pattern, begin, end, weights
            if not uniform:
                weights = T.Bind(weights + (end - begin) * (len(pattern) * self.config.group))
            begin = end

    def _kernel(self, entry: tuple[Pattern, Any, Any, Any], k: Any, channel: Any) -> None:
        """Kernel ``k``; ``channel`` holds the in_channel so far of a list of differences."""
        pattern, begin, _, weights = entry
        plane, config = self.buffers.geometry.size, self.config
        code = T.Bind(T.Cast("int32", self.buffers.in_channel[k]))
        following = None
        if config.prefetch:
            # Distances add up along a delta list, so there only the next kernel is known.
            ahead = 1 if self.delta else config.prefetch
            following = T.Bind(T.Cast("int32", self.buffers.in_channel[k + ahead]))
        if self.delta:
            T.buffer_store(channel, channel[0] + code, [0])
            code = T.Bind(channel[0])
            following = None if following is None else T.Bind(code + following)
        base = self.origins.plus(self.origins.wide(code) * plane)
        next_base = None if following is None else T.Bind(following * plane + self.origin)
        per_kernel = len(pattern) * config.group
        if weights is None:
            weight_base = T.Bind(self.origins.wide(k) * per_kernel)
        else:
            weight_base = T.Bind(self.origins.wide(weights + (k - begin) * per_kernel))
        bases = (base, next_base, weight_base)
        _kernel_body(self.workload, config, self.buffers, self.tile, pattern, bases)

    def all_kernels(self) -> None:
        """Every kernel of the filter_group."""
        channel: Any = T.alloc_buffer((1,), "int32", scope="global") if self.delta else None
        for entry in self._lists():
            _, begin, end, _ = entry
            if self.delta:
                T.buffer_store(channel, tirx.const(0, "int32"), [0])
            with T.serial(begin, end) as k:
                self._kernel(entry, k, channel)

    def fetch_list(self, k: Any, kernels: int) -> None:
        """Prefetch ``kernels`` kernels from number ``k`` on: lists of a block lie far apart."""
        if self.buffers.weight_start is not None:
            return
        per_kernel = len(self.workload.patterns[0]) * self.config.group
        start = T.Bind(k * per_kernel)
        for offset in range(0, kernels * per_kernel + CACHE_LINE_FLOATS, CACHE_LINE_FLOATS):
            prefetch(self.buffers.weights[start + offset])
        prefetch(self.buffers.in_channel[k])

    def kernels_below(self, limit: Any, is_first: Any, cursors: Any, at: Any) -> None:
        """Go on with every list up to in_channel ``limit``.

        ``cursors`` holds, from ``at`` on, two numbers per list: the next kernel, and the in_channel
        before it. ``is_first`` starts them anew.
        """
        k: Any = T.alloc_buffer((1,), "int32", scope="global")
        channel: Any = T.alloc_buffer((1,), "int32", scope="global")
        zero = tirx.const(0, "int32")
        for p, entry in enumerate(self._lists()):
            _, begin, end, _ = entry
            T.buffer_store(k, T.Select(is_first, begin, cursors[at + 2 * p]), [0])
            T.buffer_store(channel, T.Select(is_first, zero, cursors[at + 2 * p + 1]), [0])

            def following() -> Any:
                code = T.Cast("int32", self.buffers.in_channel[k[0]])
                return channel[0] + code if self.delta else code

            with T.While(tirx.all(k[0] < end, following() < limit)):
                number = T.Bind(k[0])
                self._kernel(entry, number, channel)
                T.buffer_store(k, number + 1, [0])
            T.buffer_store(cursors, k[0], [at + 2 * p])
            T.buffer_store(cursors, channel[0], [at + 2 * p + 1])
