"""Schedule of a dense convolution as products of matrices.

For every block of positions (pixels, or Winograd's tiles) whose inputs stay near:

1. the inputs are brought in order, all in_channels of a position side by side, transformed if they
   are tiles;
2. for every block of filters and every product, register_tiles of ``tile_cols`` positions times
   ``filter_vectors`` vectors of filters add up all in_channels, one after the other, so that sums
   have one order whatever the blocks and threads;
3. the results of a block of filters, which are near too, are transformed back, get their epilogue
   and are stored in the planes.
"""

from __future__ import annotations

from typing import Any

from tvm import tirx
from tvm.tirx.script import builder as T

from ...gemm_weights import GemmCode
from ...primfunc import primfunc_builder
from ...vector import constant, lanes, splat
from ...workload import ConvWorkload
from ..config import GEMM, ConvConfig
from ..tile import Buffers, declare_parameters
from ..tile_outputs import zero_range
from .operands import Operands
from .pixels import Pixels
from .tiles import Tiles


def _register_tile(
    operands: Operands, held: Any, results: Any, product: Any, first: Any, weights: Any
) -> None:
    """Results of ``tile_cols`` positions from ``first`` on; ``weights`` is where theirs begin."""
    config, width = operands.config, operands.width
    places = [(p, v) for p in range(config.tile_cols) for v in range(config.filter_vectors)]
    acc = {
        place: T.alloc_buffer((width,), operands.workload.dtype, scope="global") for place in places
    }
    vec = lanes(0, width)
    for place in places:
        T.buffer_store(acc[place], constant(0.0, width, operands.workload.dtype), [vec])
    rows = [
        T.Bind(product * operands.product_step + (first + p) * operands.depth)
        for p in range(config.tile_cols)
    ]
    with T.serial(0, operands.workload.in_channels) as channel:
        column = T.Bind(weights + channel * config.group)
        values = [
            T.Bind(operands.buffers.weights[lanes(column + v * width, width)])
            for v in range(config.filter_vectors)
        ]
        for p, row in enumerate(rows):
            value = T.Bind(splat(held[row + channel], width))
            for v, filters in enumerate(values):
                T.buffer_store(acc[p, v], acc[p, v][vec] + value * filters, [vec])
    for p, v in places:
        start = (product * operands.positions + first + p) * config.group + v * width
        T.buffer_store(results, acc[p, v][vec], [lanes(start, width)])


def _products(operands: Operands, code: GemmCode, held: Any, results: Any, filters: Any) -> None:
    """All products of a block of positions with the block ``filters`` of filters."""
    config, channels = operands.config, operands.workload.in_channels
    tiles = -(-operands.positions // config.tile_cols)
    last = operands.positions - config.tile_cols
    with T.serial(0, code.products) as product:
        weights = T.Bind((filters * code.products + product) * (channels * config.group))
        with T.serial(0, tiles) as tile:
            first = T.Bind(T.min(tile * config.tile_cols, last))
            _register_tile(operands, held, results, product, first, weights)


def _clear_outside(operands: Operands, batch: Any, first: Any) -> None:
    """Zeros above and below the image, for a vector of filters."""
    w, buffers = operands.workload, operands.buffers
    layout = w.out_layout
    below = layout.offset(layout.height, 0)
    with T.serial(0, min(operands.width, w.out_channels)) as i:
        plane = T.Bind((batch * w.out_channels + first + i) * layout.size)
        zero_range(buffers.out, plane, layout.origin, operands.width)
        zero_range(buffers.out, plane + below, layout.size - below, operands.width)


def _filter_block(
    operands: Operands, code: GemmCode, held: Any, batch: Any, block: Any, filters: Any
) -> None:
    """Products and outputs of one block of filters at one block of positions."""
    w, config, width = operands.workload, operands.config, operands.width
    size = code.products * operands.positions * config.group
    results = T.alloc_buffer((size,), w.dtype, scope="global")
    _products(operands, code, held, results, filters)
    start = T.Bind(T.min(filters * config.group, max(0, w.out_channels - config.group)))
    with T.serial(0, config.filter_vectors) as v:
        offset = v * width
        if config.group > w.out_channels:  # the last vector is moved back to end with the filters
            offset = T.Bind(T.min(offset, max(0, w.out_channels - width)))
        first = T.Bind(start + offset)
        with T.serial(0, operands.steps) as step:
            operands.scatter(results, batch, block, step, (offset, first))
        with T.If(block == 0), T.Then():
            _clear_outside(operands, batch, first)


def _loop_nest(operands: Operands, code: GemmCode, num_threads: int) -> None:
    """Blocks of positions over threads, or, if there are too few, what is in one over threads."""
    w, blocks = operands.workload, operands.blocks
    filter_blocks = len(code.starts(w.out_channels))
    outer = num_threads != 1 and w.batch * blocks >= 2 * num_threads
    serial, parallel = T.serial, T.serial if num_threads == 1 else T.parallel
    inner = serial if outer else parallel
    with (parallel if outer else serial)(0, w.batch * blocks) as task:
        batch, block = T.Bind(task // blocks), T.Bind(task % blocks)
        held = T.alloc_buffer((code.products * operands.product_step,), w.dtype, scope="global")
        with inner(0, operands.steps) as step:
            operands.gather(held, batch, block, step)
        with inner(0, filter_blocks) as filters:
            _filter_block(operands, code, held, batch, block, filters)


def schedule_gemm_conv(
    workload: ConvWorkload, config: ConvConfig, num_threads: int = 1
) -> tirx.PrimFunc:
    """Scheduled PrimFunc of a dense convolution as products of matrices.

    Parameters
    ----------
    workload : ConvWorkload
        Packed by :func:`topi_kernels.gemm_weights.pack_gemm`.
    config : ConvConfig
        Of body ``gemm``, ``winograd2`` or ``winograd4``.
    num_threads : int
        1 builds serial loops.

    Raises
    ------
    ValueError
        If the weights are packed for another body or block of filters.
    """
    code = workload.gemm_code
    if code is None or (code.outputs, code.block) != (config.tile_outputs, config.group):
        raise ValueError(
            f"the config computes blocks of {config.group} filters by body {config.body}, the"
            f" weights are packed as {code}; pack again or pick another config"
        )
    kind = Pixels if config.body == GEMM else Tiles
    with primfunc_builder("pattern_conv2d") as builder:
        buffers: Buffers = declare_parameters(workload)
        _loop_nest(kind(workload, config, buffers), code, num_threads)
    return builder.get()
