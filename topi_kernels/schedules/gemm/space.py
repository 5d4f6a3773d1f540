"""Which dense layers are computed as products of matrices, by which tiles, and at what cost.

The estimate counts what the machine does, in FMA slots like that of the other bodies: multiply-adds
or loads of a register_tile, whichever take longer; lines of weights, which come from beyond L2 once
for every block of positions; inputs of a block that do not stay in L2; and the shuffles, sums,
loads and stores that bring a position's inputs in order and its results back.
"""

from __future__ import annotations

from collections.abc import Iterator

from ...gemm_weights import GemmCode
from ...layout import PlaneLayout
from ..config import GEMM, MAX_POSITIONS, TILE_OUTPUTS, ConvConfig
from ..family import Family
from ..shape import ConvShape
from .pixels import why_no_pixels
from .tiles import tile_counts, why_no_tiles

MAX_FILTER_VECTORS = 4
# Register_tiles with fewer accumulators than this share of the most are not tried.
LEAST_TILE = 0.6
BLOCK_COUNTS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
# Slots of one in_channel of a register_tile beyond what its ports allow.
STEP_OVERHEAD = 1.5
# Leaving the loop over in_channels and storing what was added up, per register_tile.
TILE_OVERHEAD = 60.0
# Lines from L2, as shares of their cost alone: of weights that L1 does not keep between tiles;
# those from beyond L2: of weights, which stream in order, of inputs, which do so position by
# position, and of inputs and results while they are put in order, to and from many places.
NEAR_WEIGHTS, FAR_WEIGHTS, FAR_INPUTS, FAR_MOVES = 0.5, 2.5, 4.0, 10.0
# Share of L2 that inputs, and results, may fill; elements of planes that stay in caches at all.
NEAR_SHARE, NEAR_PLANES = 0.61, 1_000_000
# Slots of a vector of a position: its input brought in order, its result brought back.
GATHER = {1: 14.0, 2: 130.0, 4: 420.0}
SCATTER = {1: 24.0, 2: 160.0, 4: 440.0}


def why_no_gemm(shape: ConvShape, config: ConvConfig, family: Family) -> str | None:
    """Why ``config``, of a body for dense layers, cannot be used, or None."""
    if not shape.is_dense:
        return f"body {config.body} is for dense layers"
    if config.body != GEMM and not shape.winograd:
        return "Winograd's filtering is switched off, or the layer is not of float32"
    if shape.in_layout.is_interleaved or shape.out_layout.is_interleaved:
        return f"body {config.body} needs plain rows"
    if config.body == GEMM:
        reason = why_no_pixels(shape.geometry, shape.in_layout, shape.out_layout)
    else:
        args = (shape.geometry, shape.in_layout, shape.out_layout)
        reason = why_no_tiles(*args, config.tile_outputs)
    if reason is not None:
        return reason
    return _knobs_reason(shape, config, family)


def _knobs_reason(shape: ConvShape, config: ConvConfig, family: Family) -> str | None:
    width, positions = config.vector_width, config.positions
    if width != family.vector_width or config.filter_lanes != width:
        return f"body {config.body} needs whole vectors of {family.vector_width} filters"
    if min(config.filter_vectors, config.tile_cols) < 1 or config.tile_rows != 1:
        return f"body {config.body} has register_tiles of one row"
    if _registers(config.tile_cols, config.filter_vectors) > family.vector_registers:
        return f"{config.accumulators} accumulators exceed {family.vector_registers} registers"
    if config.channel_block or config.prefetch or config.loop_order != "tile_outer":
        return f"body {config.body} has no channel_block, prefetch or loop_order"
    if config.even_rows or config.chains != 1:
        return f"body {config.body} has no even_rows and one chain"
    if config.shift != "load":
        return f"body {config.body} needs shift load"
    if config.group >= shape.out_channels + width:
        return f"blocks of {config.group} filters exceed the {shape.out_channels} there are"
    total = positions_of(shape.out_layout, config.tile_outputs)
    if not config.tile_cols <= positions <= min(total, MAX_POSITIONS):
        return f"{positions} positions are not in {config.tile_cols}..{total}"
    if config.body == GEMM and positions % shape.out_layout.width:
        return f"{positions} positions are no whole rows of {shape.out_layout.width} pixels"
    return None


def _registers(positions: int, vectors: int) -> int:
    return positions * vectors + vectors + 1


def positions_of(layout: PlaneLayout, outputs: int) -> int:
    """Positions of an image: pixels, or tiles."""
    rows, columns = tile_counts(layout, outputs)
    return rows * columns


def _block_sizes(shape: ConvShape, outputs: int, tile: int) -> Iterator[int]:
    """Positions of a block: even shares of the image, of whole register_tiles or rows."""
    total, unit = positions_of(shape.out_layout, outputs), tile
    if outputs == 1:
        unit = shape.out_layout.width
    units, last = -(-total // unit), 0
    for count in BLOCK_COUNTS:
        size = min(-(-units // count) * unit, total)
        if size != last and tile <= size <= MAX_POSITIONS:
            yield size
        last = size


def _tile_sizes(total: int, most: int) -> list[int]:
    """Positions of a register_tile: as many as there is room for, or as many as fit evenly."""
    sizes = range(most, max(1, int(LEAST_TILE * most)) - 1, -1)
    fitting = min(sizes, key=lambda size: -(-total // size) * size)
    return list(dict.fromkeys(size for size in (most, fitting) if size <= total))


def gemm_configs(shape: ConvShape, family: Family) -> Iterator[ConvConfig]:
    """Configurations of the bodies for dense layers, in a fixed order."""
    width = family.vector_width
    if not family.gemm or not shape.is_dense:
        return
    for body, outputs in TILE_OUTPUTS.items():
        if GemmCode(outputs, width).kernel_size != shape.geometry.kernel_size:
            continue
        total = positions_of(shape.out_layout, outputs)
        for vectors in range(1, MAX_FILTER_VECTORS + 1):
            most = (family.vector_registers - 1 - vectors) // vectors
            for tile in _tile_sizes(total, most):
                for positions in _block_sizes(shape, outputs, tile):
                    yield ConvConfig(
                        width,
                        width,
                        vectors,
                        1,
                        tile,
                        taps_per_step=1,
                        prefetch=0,
                        body=body,
                        positions=positions,
                    )


def _line(family: Family) -> float:
    """Slots of a cache line that is streamed."""
    return family.far_line_cost or family.line_cost


def gemm_cost(shape: ConvShape, config: ConvConfig, family: Family) -> float:
    """Estimated slots of the whole layer."""
    code = GemmCode(config.tile_outputs, config.group)
    total = positions_of(shape.out_layout, config.tile_outputs)
    blocks = -(-total // config.positions)
    filters = len(code.starts(shape.out_channels))
    lines = config.vector_width / family.cache_line_floats
    loads = config.tile_cols + config.filter_vectors
    step = max(
        config.accumulators,
        loads / family.load_ports * family.fma_ports,
        family.fma_ports * family.fma_latency,
    )
    block_floats = shape.in_channels * config.group
    beyond_l1 = max(0.0, 1.0 - family.block_floats / block_floats)
    step += beyond_l1 * config.filter_vectors * lines * _line(family) * NEAR_WEIGHTS
    tiles = blocks * filters * code.products * -(-config.positions // config.tile_cols)
    work = tiles * (shape.in_channels * (step + STEP_OVERHEAD) + TILE_OVERHEAD)
    weights = blocks * filters * code.products * shape.in_channels * config.filter_vectors * lines
    work += weights * _line(family) * FAR_WEIGHTS
    return work + blocks * _moves_cost(shape, config, family, filters)


def _moves_cost(shape: ConvShape, config: ConvConfig, family: Family, filters: int) -> float:
    """Slots of bringing a block's inputs in order and its results back, and of reading both."""
    outputs, width = config.tile_outputs, config.vector_width
    products = GemmCode(outputs, config.group).products
    depth = -(-shape.in_channels // width)
    held = products * config.positions * depth * width
    results = products * config.positions * config.group
    line, near = _line(family) / family.cache_line_floats, NEAR_SHARE * family.l2_floats
    beyond, results_beyond = (max(0.0, floats - near) for floats in (held, results))
    waits = beyond * (filters * FAR_INPUTS + FAR_MOVES) + results_beyond * filters * FAR_MOVES
    far = 2.0 if shape.out_channels * shape.out_layout.size > NEAR_PLANES else 1.0
    moved = depth * GATHER[outputs] + filters * config.filter_vectors * SCATTER[outputs] * far
    return waits * line + config.positions * moved
