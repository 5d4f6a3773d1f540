"""Which inputs a register_tile reads: for the schedule, the model and the figures of a report."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from ...geometry import ConvGeometry
from ...layout import PlaneLayout
from .config import ANYWHERE, GpuConfig

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


@dataclass(frozen=True)
class Chunks:
    """Loads of ``width`` elements; aligned ones begin at multiples of ``width`` of a buffer.

    Parameters
    ----------
    width : int
        Elements of a load.
    phase : int
        Where a tile's first pixel lies in its chunk; the same for all tiles of a plane.
    is_aligned : bool
    """

    width: int
    phase: int
    is_aligned: bool = True

    def numbers(self, column: int, lanes: int, step: int) -> list[int]:
        """The chunks that hold a vector from ``column`` on; number 0 has the first pixel."""
        elements = (column + lane * step + self.phase for lane in range(lanes))
        return sorted({element // self.width for element in elements})

    def place(self, column: int) -> tuple[int, int]:
        """Chunk of a column, and the lane in it."""
        return divmod(column + self.phase, self.width)

    def start(self, number: int) -> int:
        """First column of a chunk."""
        return number * self.width - self.phase

    def number_at(self, column: int) -> int:
        """The chunk that begins at a column; inverse of :meth:`start`."""
        return (column + self.phase) // self.width


def chunks_of(
    config: GpuConfig,
    geometry: ConvGeometry,
    in_layout: PlaneLayout,
    out_layout: PlaneLayout,
    widest: int,
) -> Chunks:
    """The widest loads of at most ``widest`` elements that suit all tiles of an output.

    Where they may begin anywhere, the first begins with the first pixel that any tap wants.

    They may be wider than the vectors that are computed: a row that one tile covers is read in
    whole loads, however narrow its vectors.
    """
    if config.loads == ANYWHERE:
        return Chunks(widest, geometry.padding[1] % widest, is_aligned=False)
    vectors = -(-out_layout.width // config.vector_width)
    steps = [in_layout.row_stride, in_layout.size]
    if config.tile_cols < vectors:  # The last tile of a row is moved back into the image.
        step = config.vector_width * geometry.stride[1]
        steps += [config.tile_cols * step, (vectors - config.tile_cols) * step]
    width = next(w for w in (16, 8, 4, 2, 1) if w <= widest and not any(s % w for s in steps))
    return Chunks(width, in_layout.origin % width)


def streamed(
    columns: Sequence[int], lanes: int, step: int, chunks: Chunks
) -> list[tuple[int, list[int], int]]:
    """``(column, chunks that it is the first to want, elements held then)`` along a row.

    Chunks are loaded just before the first vector that wants one, and of a loaded one only those
    elements are held that this vector or a later one reads: registers hold elements, not vectors.
    """
    wanted = [{column + lane * step for lane in range(lanes)} for column in columns]
    last = {element: i for i, elements in enumerate(wanted) for element in sorted(elements)}
    loaded: set[int] = set()
    held: set[int] = set()
    result = []
    for i, column in enumerate(columns):
        fresh = [n for n in chunks.numbers(column, lanes, step) if n not in loaded]
        most = len(held)
        for number in fresh:
            most = max(most, len(held) + chunks.width)
            start = chunks.start(number)
            held |= {e for e in range(start, start + chunks.width) if last.get(e, -1) >= i}
        loaded.update(fresh)
        result.append((column, fresh, most))
        held = {element for element in held if last[element] > i}
    return result


def _rows_read(geometry: ConvGeometry, config: GpuConfig, taps: Taps) -> Counter[tuple[int, ...]]:
    """First columns of the vectors that taps read along an input row -> how many rows are so."""
    (sh, sw), (dh, dw), (_, left) = geometry.stride, geometry.dilation, geometry.padding
    across: dict[int, set[int]] = defaultdict(set)
    for kh, kw in taps:
        for r in range(config.tile_rows):
            across[r * sh + kh * dh].add(kw)
    tile = [c * config.vector_width * sw - left for c in range(config.tile_cols)]
    rows = (sorted({column + kw * dw for column in tile for kw in kws}) for kws in across.values())
    return Counter(map(tuple, rows))


@lru_cache(maxsize=65536)
def _row_counts(columns: tuple[int, ...], lanes: int, step: int, chunks: Chunks) -> tuple[int, int]:
    """Loads along a row, and the most elements that are held at once."""
    steps = streamed(columns, lanes, step, chunks)
    return sum(len(fresh) for _, fresh, _ in steps), max(held for _, _, held in steps)


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
    geometry: ConvGeometry, config: GpuConfig, taps: Taps, chunks: Chunks
) -> KernelCounts:
    """Counts for a kernel with these taps, exactly as the schedule emits it."""
    width, step = config.vector_width, geometry.stride[1]
    loads = live = weights = 0
    for part in steps_of(config, taps):
        count = len(part) * config.filters
        weights += len(weight_pieces(count))
        widest = 0
        for columns, rows in _rows_read(geometry, config, part).items():
            row_loads, held = _row_counts(columns, width, step, chunks)
            loads += rows * row_loads
            widest = max(widest, held)
        live = max(live, widest + count)
    return KernelCounts(
        multiply_adds=len(taps) * config.accumulators,
        input_loads=loads,
        weight_loads=weights + 1,
        input_elements=loads * chunks.width,
        live_elements=live,
    )
