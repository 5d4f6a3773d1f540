"""Which inputs a register_tile reads: for the schedule, the model and the figures of a report."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from ...geometry import ConvGeometry
from .config import GpuConfig

#: Input row -> first column of a vector -> ``(tap, tile row, tile column)`` that read it.
Uses = dict[int, dict[int, list[tuple[int, int, int]]]]
Taps = Sequence[tuple[int, int]]


def tile_uses(geometry: ConvGeometry, config: GpuConfig, taps: Taps) -> Uses:
    """What some taps of a kernel read, relative to the tile's first pixel."""
    (sh, sw), (dh, dw), (top, left) = geometry.stride, geometry.dilation, geometry.padding
    uses: dict[int, dict[int, list]] = defaultdict(lambda: defaultdict(list))
    for t, (kh, kw) in enumerate(taps):
        for r in range(config.tile_rows):
            for c in range(config.tile_cols):
                column = c * config.vector_width * sw + kw * dw - left
                uses[r * sh + kh * dh - top][column].append((t, r, c))
    return {row: dict(columns) for row, columns in sorted(uses.items())}


def row_chunks(columns: Sequence[int], width: int, step: int, chunk: int) -> list[int]:
    """Numbers of the aligned chunks that hold the vectors which begin at ``columns``."""
    return sorted({(c + lane * step) // chunk for c in columns for lane in range(width)})


def steps_of(config: GpuConfig, taps: Taps) -> list[Taps]:
    """The taps whose weights are held at once."""
    return [
        taps[first : first + config.taps_per_step]
        for first in range(0, len(taps), config.taps_per_step)
    ]


def weight_pieces(count: int) -> list[int]:
    """Widths of the loads of ``count`` neighbouring weights."""
    pieces = []
    while count:
        pieces.append(next(n for n in (8, 4, 2, 1) if n <= count))
        count -= pieces[-1]
    return pieces


@dataclass(frozen=True)
class KernelCounts:
    """What one kernel costs one work_item.

    Parameters
    ----------
    multiply_adds : int
        Of vectors.
    input_loads, weight_loads : int
        Of vectors; index loads are among those of weights.
    input_elements : int
        That the input loads bring.
    live_elements : int
        Elements of inputs and weights that are held at once.
    """

    multiply_adds: int
    input_loads: int
    weight_loads: int
    input_elements: int
    live_elements: int

    @property
    def loads_per_multiply_add(self) -> float:
        """Vector loads for each vector multiply-add."""
        return (self.input_loads + self.weight_loads) / self.multiply_adds


def kernel_counts(
    geometry: ConvGeometry, config: GpuConfig, taps: Taps, chunk: int
) -> KernelCounts:
    """Counts for a kernel with these taps, exactly as the schedule emits it."""
    width, step = config.vector_width, geometry.stride[1]
    loads = live = weights = 0
    for part in steps_of(config, taps):
        count = len(part) * config.filters
        weights += len(weight_pieces(count))
        widest = 0
        for columns in tile_uses(geometry, config, part).values():
            chunks = len(row_chunks(sorted(columns), width, step, chunk))
            loads += chunks
            widest = max(widest, chunks * chunk)
        live = max(live, widest + count)
    return KernelCounts(
        multiply_adds=len(taps) * config.accumulators,
        input_loads=loads,
        weight_loads=weights + 1,
        input_elements=loads * chunk,
        live_elements=live,
    )
