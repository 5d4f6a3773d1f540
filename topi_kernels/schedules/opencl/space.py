"""Search space, legality and level-0 default of the convolution on OpenCL devices."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from itertools import product

from ...geometry import ConvGeometry
from ...layout import PlaneLayout
from ...reorder import GROUP_SIZES
from ..choices import CHOICES
from ..search_space import ConvShape
from .config import (
    ACCUMULATORS,
    ALIGNED,
    ANYWHERE,
    BUFFER,
    GLOBAL,
    INPUT_TILES,
    LOADS,
    MAX_FILTERS,
    ORDERS,
    READS,
    TEXTURE,
    VECTOR_WIDTHS,
    GpuConfig,
    GpuFacts,
)
from .cost import (
    estimate_cost,
    loads_of,
    local_tile_of,
    register_need,
    sum_registers,
    tile_grid,
    waste,
)
from .reuse import chunks_of, tile_uses

MAX_TILE_ROWS = 8
TILE_COLS = (1, 2, 4, 7)
MAX_WASTE = 1.1
"""Computed outputs to wanted ones that level 0 accepts."""
LEAST_GAIN = 0.97
"""Vectors narrower than four must promise this much; the model is no better than that."""
WIDE_VECTOR = 4
TILES_PER_GROUP = (16, 32, 64, 128)
FILTER_GROUPS = (1, 2, 4, 8)
MAX_COPIES = 16
"""Vectors that a work_item copies to local memory for each in_channel; its code is straight."""
TRIED_MEMORIES = 8
"""Cheapest configurations for which level 0 compares textures and local copies."""


def illegal_for(shape: ConvShape, config: GpuConfig, facts: GpuFacts) -> str | None:
    """Why ``config`` can't be used for a convolution, or None when it can."""
    c, layout = config, shape.out_layout
    if layout.is_interleaved or shape.in_layout.is_interleaved:
        return "OpenCL schedules read planes of plain rows, got interleaved lanes"
    if c.vector_width not in VECTOR_WIDTHS:
        return f"vector_width {c.vector_width} is not one of {VECTOR_WIDTHS}"
    if not 1 <= c.filters <= MAX_FILTERS:
        return f"filters {c.filters} is not in 1..{MAX_FILTERS}"
    if min(c.tile_rows, c.tile_cols, c.taps_per_step) < 1:
        return "tile_rows, tile_cols and taps_per_step must be >= 1"
    if min(c.tiles_per_group, c.filter_groups_per_group) < 1:
        return "tiles_per_group and filter_groups_per_group must be >= 1"
    if c.work_items > facts.max_work_items:
        return f"{c.work_items} work_items exceed the device's {facts.max_work_items}"
    if c.order not in ORDERS:
        return f"order {c.order!r} is not one of {ORDERS}"
    if c.accumulator not in ACCUMULATORS:
        return f"accumulator {c.accumulator!r} is not one of {ACCUMULATORS}"
    if c.loads not in LOADS:
        return f"loads {c.loads!r} is not one of {LOADS}"
    if c.reads not in READS:
        return f"reads {c.reads!r} is not one of {READS}"
    if c.input_tile not in INPUT_TILES:
        return f"input_tile {c.input_tile!r} is not one of {INPUT_TILES}"
    if c.accumulator == "float16" and facts.dtype != "float16":
        return "float16 sums are for float16 layers"
    vectors = -(-layout.width // c.vector_width)
    if c.tile_rows > layout.height or c.tile_cols > vectors:
        return f"a tile of {c.tile_rows} x {c.tile_cols} vectors exceeds the output"
    if vectors * c.vector_width > layout.row_stride:
        return f"vectors of {c.vector_width} pixels run over the row stride {layout.row_stride}"
    return (
        _out_of_plane(shape, c, facts)
        or _too_many_registers(shape, c, facts)
        or _no_such_memory(shape, c, facts)
    )


def _out_of_plane(shape: ConvShape, c: GpuConfig, facts: GpuFacts) -> str | None:
    """Why some load would leave the input's plane, or None."""
    taps = tuple(dict.fromkeys(tap for pattern in shape.patterns for tap in pattern.taps))
    layouts = (shape.in_layout, shape.out_layout)
    if reads_inside(*layouts, shape.geometry, c, taps, facts.vector_width):
        return None
    return "its vectors would read outside the input's planes"


def reads_inside(
    layout: PlaneLayout,
    out_layout: PlaneLayout,
    geometry: ConvGeometry,
    c: GpuConfig,
    taps: tuple[tuple[int, int], ...],
    widest: int,
) -> bool:
    """Whether all tiles of an output read elements of the input's planes only.

    ``widest`` is that of :func:`~topi_kernels.schedules.opencl.reuse.chunks_of`.
    """
    sh, sw = geometry.stride
    chunks = chunks_of(c, geometry, layout, out_layout, widest)
    vectors = -(-out_layout.width // c.vector_width)
    last_x = (vectors - c.tile_cols) * c.vector_width * sw
    last_y = (out_layout.height - c.tile_rows) * sh
    for row, columns in tile_uses(geometry, c, taps).items():
        lowest, _ = chunks.place(min(columns))
        highest, _ = chunks.place(max(columns) + (c.vector_width - 1) * sw)
        first = layout.offset(row, 0) + chunks.start(lowest)
        end = layout.offset(last_y + row, last_x) + chunks.start(highest + 1)
        if first < 0 or end > layout.size:
            return False
    return True


def _too_many_registers(shape: ConvShape, c: GpuConfig, facts: GpuFacts) -> str | None:
    need = register_need(shape, c, facts)
    if need <= facts.max_registers:
        return None
    return f"{need} registers are wanted, a work_item has {facts.max_registers}"


def _no_such_memory(shape: ConvShape, c: GpuConfig, facts: GpuFacts) -> str | None:
    """Why textures or a copy in local memory cannot be had, or None."""
    if c.reads == BUFFER and c.input_tile == GLOBAL:
        return None
    chunks = loads_of(shape, c, facts)
    if not chunks.is_aligned:
        return "textures and local copies are read by aligned loads, got loads 'anywhere'"
    if c.reads == TEXTURE:
        if not facts.texture_bytes:
            return f"reads 'texture': schedules for {facts.name} read buffers only"
        if chunks.width != facts.vector_width:
            return (
                f"a texel holds {facts.vector_width} elements, tiles begin at multiples of"
                f" {chunks.width}"
            )
    if c.input_tile == GLOBAL:
        return None
    if not facts.local_bytes:
        return f"input_tile 'local': local memory of {facts.name} is main memory"
    if c.filter_groups_per_group > 1:
        return "filter_groups that share a local copy would have to walk the same in_channels"
    tile = local_tile_of(shape, c, facts)
    size = tile.chunks * chunks.width * facts.itemsize
    if size > facts.local_memory:
        return f"a local copy of {size} bytes exceeds the device's {facts.local_memory}"
    if tile.copies > MAX_COPIES:
        return f"each work_item would copy {tile.copies} vectors, more than {MAX_COPIES}"
    return None


def search_space(shape: ConvShape, facts: GpuFacts) -> Iterator[GpuConfig]:
    """All legal configurations of a convolution, in a fixed order."""
    for config in _by_buffers(shape, facts):
        yield config
        yield from with_memories(shape, config, facts)


def _by_buffers(
    shape: ConvShape, facts: GpuFacts, most_waste: float = math.inf
) -> Iterator[GpuConfig]:
    most_taps = shape.most_taps
    steps = {min(most_taps, 4), min(most_taps, 2), min(most_taps, shape.geometry.kernel_size[1])}
    sums = ACCUMULATORS if facts.dtype == "float16" else ("float32",)
    groups = [g for g in GROUP_SIZES if g <= min(shape.max_group, shape.out_channels, MAX_FILTERS)]
    widths = [v for v in VECTOR_WIDTHS if v <= 16 // facts.itemsize]
    tiles = product(
        groups, widths, range(1, MAX_TILE_ROWS + 1), TILE_COLS, sorted(steps, reverse=True), sums
    )
    for filters, width, rows, cols, step, accumulator in tiles:
        aligned = GpuConfig(width, filters, rows, cols, step, 1, accumulator=accumulator)
        # What costs little to find out goes first: most tiles have more sums than registers.
        if sum_registers(aligned, facts) > facts.max_registers:
            continue
        if waste(shape, aligned) > most_waste:
            continue
        for tile in (aligned, replace(aligned, loads=ANYWHERE)):
            if _is_needless(shape, tile, facts) or illegal_for(shape, tile, facts) is not None:
                continue
            for per_group, filter_groups in _work_groups(shape, tile, facts):
                for order in ORDERS:
                    yield replace(
                        tile,
                        tiles_per_group=per_group,
                        filter_groups_per_group=filter_groups,
                        order=order,
                    )


def with_memories(shape: ConvShape, config: GpuConfig, facts: GpuFacts) -> Iterator[GpuConfig]:
    """The same by the memories that a device has beside buffers, where that is legal."""
    for reads, input_tile in product(READS, INPUT_TILES):
        other = replace(config, reads=reads, input_tile=input_tile)
        if other != config and _no_such_memory(shape, other, facts) is None:
            yield other


def _is_needless(shape: ConvShape, tile: GpuConfig, facts: GpuFacts) -> bool:
    """Whether aligned loads are as wide as those that begin anywhere, or arithmetic is scalar."""
    if tile.loads != ANYWHERE:
        return False
    if tile.vector_width == 1:
        return True
    layouts = (shape.in_layout, shape.out_layout)
    aligned = chunks_of(replace(tile, loads=ALIGNED), shape.geometry, *layouts, facts.vector_width)
    return aligned.width == facts.vector_width


def _work_groups(shape: ConvShape, tile: GpuConfig, facts: GpuFacts) -> Iterator[tuple[int, int]]:
    """``(tiles, filter_groups)`` of a work_group; several of both only where tiles are few."""
    rows, cols = tile_grid(shape, tile)
    count = rows * cols
    if count <= max(TILES_PER_GROUP):
        for filter_groups in FILTER_GROUPS:
            fits = count * filter_groups <= facts.max_work_items
            if fits and (filter_groups == 1 or count < facts.wave):
                yield count, filter_groups
    for size in TILES_PER_GROUP:
        if size < count and size <= facts.max_work_items:
            yield size, 1


@CHOICES.remembered(GpuConfig)
def default_config(shape: ConvShape, facts: GpuFacts) -> GpuConfig:
    """The level-0 configuration: the cheapest of the search_space by the model.

    Of those that compute hardly more outputs than there are, if any; of nearly equal ones that of
    wide vectors. Sums are float32 at level 0; float16 ones are a choice of the tuner's or the
    user's.

    Raises
    ------
    ValueError
        If no configuration is legal.
    """
    for most_waste in (MAX_WASTE, math.inf):
        configs = _by_buffers(shape, facts, most_waste)
        costs = {c: estimate_cost(shape, c, facts) for c in configs if c.accumulator == "float32"}
        if costs:
            break
    if not costs:
        raise ValueError(
            f"no legal configuration for {shape.out_layout.height}x{shape.out_layout.width} output"
            f" on {facts.name}; its row stride {shape.out_layout.row_stride} may be too small"
        )
    enough = min(costs.values()) / LEAST_GAIN
    good = [c for c in costs if costs[c] <= enough]
    widest = max(min(c.vector_width, WIDE_VECTOR) for c in good)
    best = min((c for c in good if c.vector_width >= widest), key=lambda c: costs[c])
    # What no memory makes cheaper stays with buffers, which every device has.
    aligned = sorted((c for c in costs if c.loads == ALIGNED), key=lambda c: costs[c])
    tried = [o for c in aligned[:TRIED_MEMORIES] for o in with_memories(shape, c, facts)]
    return min([best, *tried], key=lambda c: estimate_cost(shape, c, facts))
