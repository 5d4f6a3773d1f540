"""Schedule of the pattern-sparse convolution for CPUs with vector registers.

One register_tile of ``filter_vectors x tile_rows x tile_cols`` accumulators is computed at a time:

1. the accumulators start as the bias;
2. one loop per pattern runs over the kernels filed under it. Its body is straight code for that
   pattern's taps: every distinct input vector is loaded once and feeds all taps and filters that
   need it (kernel-level and filter-level load redundancy elimination, PatDNN section 5.4); or one
   loop runs over a tap list, see :mod:`.tap_loops`;
3. residual and activation are applied in registers, and the tile is stored once.

Accumulators are one-vector buffers of scope "global": below 1 KiB TVM keeps these on the stack and
LLVM promotes them to registers, whereas scope "local" becomes a heap workspace per call.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from typing import Any

from tvm import tirx
from tvm.tirx.script import builder as T

from ..primfunc import primfunc_builder
from ..vector import constant, lanes, shuffle, splat
from ..workload import ConvWorkload
from .channel_blocks import ChannelBlocks, TapBlocks
from .config import ConvConfig
from .fetch_ahead import fetch_next_input, fetch_outputs
from .input_geometry import SplitGeometry, input_geometry, separate_input
from .kernel_loops import KernelLoops
from .tap_loops import TapLoops
from .tile import Buffers, Place, Tile, declare_parameters, place_of, tiles_per_image
from .tile_outputs import store_tile


def _start_accumulators(
    workload: ConvWorkload, config: ConvConfig, buffers: Buffers, tile: Tile
) -> None:
    width, pixels = config.vector_width, config.pixel_lanes
    last = workload.out_channels - 1
    for f in range(config.filter_vectors):
        if buffers.bias is None:
            start = constant(0.0, width, workload.dtype)
        elif config.filter_lanes == 1:
            start = splat(buffers.bias[T.min(tile.slots[f], last)], width)
        else:
            first = f * config.filter_lanes
            scalars = [
                T.Bind(buffers.bias[T.min(tile.slots[first + j], last)])
                for j in range(config.filter_lanes)
                for _ in range(pixels)
            ]
            start = shuffle(scalars, range(width))
        start = T.Bind(start)
        for r in range(config.tile_rows):
            for c in range(config.tile_cols):
                T.buffer_store(tile.acc[f, r, c], start, [lanes(0, width)])
    for chain in tile.chains:
        for acc in chain.values():
            T.buffer_store(acc, constant(0.0, width, workload.dtype), [lanes(0, width)])


def _join_chains(config: ConvConfig, tile: Tile) -> None:
    """Add the further sums of every output to its first."""
    vec = lanes(0, config.vector_width)
    for chain in tile.chains:
        for where, acc in chain.items():
            total = tile.acc[where]
            T.buffer_store(total, total[vec] + acc[vec], [vec])


def _register_tile(
    workload: ConvWorkload, config: ConvConfig, buffers: Buffers, place: Place, group: Any
) -> Tile:
    """Open the register_tile of filter_group ``group`` at ``place``."""
    tile = Tile(**vars(place), group=group)
    tile.slots = [
        T.Bind(T.Cast("int32", buffers.filter_order[group * config.group + j]))
        for j in range(config.group)
    ]
    extents = (config.filter_vectors, config.tile_rows, config.tile_cols)
    places = list(product(*map(range, extents)))
    size = (config.vector_width,)

    def sums() -> dict[tuple[int, ...], Any]:
        return {at: T.alloc_buffer(size, workload.dtype, scope="global") for at in places}

    tile.acc = sums()
    tile.chains = [sums() for _ in range(1, config.chains)]
    return tile


def _group_blocks(workload: ConvWorkload, tiles: int, num_threads: int) -> int:
    """Into how many blocks the filter_groups are cut so that every thread has work."""
    if num_threads == 1:
        return 1
    wanted = -(-4 * num_threads // max(1, tiles))
    return max(1, min(wanted, workload.num_groups))


def for_each_height(
    workload: ConvWorkload, config: ConvConfig, place: Place, emit: Callable[[ConvConfig], None]
) -> None:
    """Emit the body of the tile at ``place``, one for every height that tiles have."""
    tall, *low = config.row_tiles(workload.out_layout.band_height)
    if not low:
        emit(config.with_rows(tall[0]))
        return
    with T.If(place.row_block < tall[1]):
        with T.Then():
            emit(config.with_rows(tall[0]))
        with T.Else():
            emit(config.with_rows(low[0][0]))


def compute_tile(
    workload: ConvWorkload,
    config: ConvConfig,
    buffers: Buffers,
    place: Place,
    group: Any,
    store: Callable[[ConvWorkload, ConvConfig, Buffers, Tile], None] = store_tile,
) -> None:
    """One register_tile from its start to its store."""
    tile = _register_tile(workload, config, buffers, place, group)
    if config.fetch_ahead and buffers.out is not None:
        fetch_outputs(workload, config, buffers, tile)
    _start_accumulators(workload, config, buffers, tile)
    if config.has_lists:
        TapLoops(workload, config, buffers, tile).all_blocks()
    else:
        KernelLoops(workload, config, buffers, tile).all_kernels()
    _join_chains(config, tile)
    store(workload, config, buffers, tile)


@dataclass(frozen=True)
class _Share:
    """The filter_groups that one task goes over at a tile: ``size`` from ``first`` on."""

    first: Any
    size: int


def _blockwise(
    workload: ConvWorkload,
    config: ConvConfig,
    buffers: Buffers,
    places: tuple[Place, Place | None],
    share: _Share,
) -> None:
    """All groups of a share take turns over one block of in_channels after the other."""
    place, following = places
    kind = TapBlocks if config.has_lists else ChannelBlocks
    channels = kind(workload, config, share.size)

    def compute(block: Any, turn: Any) -> None:
        tile = _register_tile(workload, config, buffers, place, share.first + turn)
        with T.If(block == 0):
            with T.Then():
                _start_accumulators(workload, config, buffers, tile)
            with T.Else():
                channels.resume(tile, turn)
        if config.fetch_ahead:
            with T.If(channels.is_last(block)), T.Then():
                fetch_outputs(workload, config, buffers, tile)
        channels.accumulate(buffers, tile, block, turn)
        with T.If(channels.is_last(block)):
            with T.Then():
                store_tile(workload, config, buffers, tile)
            with T.Else():
                channels.suspend(tile, turn)

    turns = T.Bind(T.min(share.size, workload.num_groups - share.first))
    with T.serial(0, channels.count) as block:
        channels.begin(buffers, place, block)
        with T.serial(0, turns) as turn:
            if following is not None and config.has_lists:
                fetch = (block * share.size + turn, channels.count * share.size)
                fetch_next_input(workload, config, buffers, following, fetch)
            compute(block, turn)


def _at_place(
    workload: ConvWorkload,
    config: ConvConfig,
    buffers: Buffers,
    places: tuple[Place, Place | None],
    share: _Share,
) -> None:
    """All groups of a share at one tile; the input of the one that follows is fetched."""
    if config.channel_block:
        _blockwise(workload, config, buffers, places, share)
        return
    place, following = places
    first, size = share.first, share.size
    with T.serial(first, T.min(first + size, workload.num_groups)) as g:
        if following is not None:
            fetch_next_input(workload, config, buffers, following, (g - first, size))
        compute_tile(workload, config, buffers, place, g)


def _loop_nest(
    workload: ConvWorkload,
    config: ConvConfig,
    buffers: Buffers,
    num_threads: int,
) -> None:
    """Distribute register_tiles over loops and threads."""
    tiles = workload.batch * tiles_per_image(workload, config)
    parallel = T.parallel if num_threads != 1 else T.serial
    groups = workload.num_groups
    if config.loop_order == "filter_outer":
        with parallel(0, groups) as g, T.serial(0, tiles) as t:
            place = place_of(workload, config, t)
            for_each_height(
                workload,
                config,
                place,
                lambda body: compute_tile(workload, body, buffers, place, g),
            )
        return
    blocks = _group_blocks(workload, tiles, num_threads)
    share = -(-groups // blocks)
    with parallel(0, tiles * blocks) as task:
        place = place_of(workload, config, T.Bind(task // blocks))
        first = T.Bind(task % blocks * share)
        following = None
        if config.fetch_ahead and tiles > 1 and config.shift != "split":  # just written, so near
            following = place_of(workload, config, T.Bind(T.min(task // blocks + 1, tiles - 1)))
        places, groups_of = (place, following), _Share(first, share)
        for_each_height(
            workload,
            config,
            place,
            lambda body: _at_place(workload, body, buffers, places, groups_of),
        )


def schedule_pattern_conv(
    workload: ConvWorkload, config: ConvConfig, num_threads: int = 1
) -> tirx.PrimFunc:
    """Scheduled PrimFunc of a pattern-sparse convolution.

    Parameters
    ----------
    workload : ConvWorkload
    config : ConvConfig
        A legal config whose group is the workload's.
    num_threads : int
        1 builds serial loops; anything else distributes register_tiles over TVM's thread pool.

    Returns
    -------
    tvm.tirx.PrimFunc
        Parameters as in :func:`declare_parameters`.

    Raises
    ------
    ValueError
        If the config's group differs from the workload's.
    """
    if config.group != workload.group:
        raise ValueError(
            f"the config computes groups of {config.group} filters, the weights are packed for"
            f" {workload.group}; pack again or pick another config"
        )
    with primfunc_builder("pattern_conv2d") as builder:
        buffers = declare_parameters(workload)
        geometry = input_geometry(workload, config)
        buffers.geometry = geometry
        if isinstance(geometry, SplitGeometry):
            buffers.x = separate_input(workload, config, geometry, buffers.x, num_threads)
        _loop_nest(workload, config, buffers, num_threads)
    return builder.get()
