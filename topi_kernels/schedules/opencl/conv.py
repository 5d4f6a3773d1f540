"""Schedule of the pattern-sparse convolution for OpenCL devices.

A work_item computes one register_tile: ``filters x tile_rows x tile_cols`` vectors of neighbouring
pixels, all in private variables. The work_items of a work_group compute neighbouring tiles of the
same filter_groups, so they walk the same lists of kernels: no divergence, and filter kernel reorder
makes groups that share a work_group equally long.

1. the sums start as the bias;
2. one loop per pattern runs over the kernels filed under it. Its body is straight code for that
   pattern's taps: input rows are loaded in whole aligned vectors, each once, and every shifted
   vector is picked from them (kernel-level load redundancy elimination, PatDNN section 5.4); it
   serves all filters of the group (filter-level);
3. residual and activation are applied, and the tile is stored once, with the zeros of the halo that
   border on it.

Input planes have a halo of zeros, so nothing is compared with the image's borders on the way in.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Any

from tvm import tirx
from tvm.tirx.script import builder as T

from ...pattern import Pattern
from ...primfunc import primfunc_builder
from ...row_writer import when
from ...workload import ConvWorkload
from ..tile import Buffers, declare_parameters
from .config import LOCAL, TEXTURE, GpuConfig
from .halo import Stored, TilePlace, both, store_rows
from .inputs import BufferInputs, Inputs, LocalInputs, TextureInputs
from .local_tile import local_tile
from .reuse import Taps, chunks_of, steps_of, tile_uses, weight_pieces
from .rows import RowLoader
from .vectors import (
    converted,
    launch,
    load_aligned,
    load_any,
    pick,
    spread,
    vector_type,
    widest_load,
    zeros,
)


@dataclass
class GpuTile:
    """One register_tile of one work_item."""

    place: TilePlace
    group: Any
    slots: list[Any]
    sums: dict[tuple[int, int, int], Any] = field(default_factory=dict)


def sum_type(workload: ConvWorkload, config: GpuConfig) -> str:
    """Type of the accumulators."""
    return config.accumulator if workload.dtype == "float16" else "float32"


def vector_columns(workload: ConvWorkload, config: GpuConfig) -> int:
    """Vectors of an output row."""
    return -(-workload.out_layout.width // config.vector_width)


def tile_grid(workload: ConvWorkload, config: GpuConfig) -> tuple[int, int]:
    """Register_tiles of an image, down and along."""
    return (
        -(-workload.out_layout.height // config.tile_rows),
        -(-vector_columns(workload, config) // config.tile_cols),
    )


def work_groups(workload: ConvWorkload, config: GpuConfig) -> tuple[int, int, int]:
    """Work_groups of a launch: of tiles, of filter_groups, images."""
    rows, cols = tile_grid(workload, config)
    return (
        -(-rows * cols // config.tiles_per_group),
        -(-workload.num_groups // config.filter_groups_per_group),
        workload.batch,
    )


class _Conv:
    def __init__(
        self,
        workload: ConvWorkload,
        config: GpuConfig,
        buffers: Buffers,
        first_tile: Any = None,
        item: Any = None,
    ) -> None:
        self.w, self.c, self.b = workload, config, buffers
        self.sum_type = sum_type(workload, config)
        geometry, layouts = workload.geometry, (workload.in_layout, workload.out_layout)
        chunks = chunks_of(config, geometry, *layouts, widest_load(workload.dtype))
        kind = TextureInputs if config.reads == TEXTURE else BufferInputs
        source = kind(buffers.x, workload.in_layout, chunks)
        self.inputs: Inputs = source
        if first_tile is not None:
            self.inputs = self.local_inputs(source, first_tile, item)
        self.rows = RowLoader(
            self.inputs, workload.dtype, config.vector_width, geometry.stride[1], self.sum_type
        )
        self.delta = workload.index_encoding == "delta8"

    def local_inputs(self, source: Any, first_tile: Any, item: Any) -> LocalInputs:
        """Inputs by way of local memory; the work_group's tiles begin with ``first_tile``."""
        w, c = self.w, self.c
        layouts = (w.in_layout, w.out_layout)
        tile = local_tile(w.geometry, c, w.patterns, *layouts, source.chunks)
        row = first_tile // tile_grid(w, c)[1] * c.tile_rows
        row = T.min(row, w.out_layout.height - c.tile_rows)
        return LocalInputs(source, tile, row, item, c.tiles_per_group)

    def tile(self, number: Any, group: Any, batch: Any, is_there: Any) -> None:
        """All of one register_tile, which is stored if it is there."""
        place = TilePlace.of(self.w.out_layout, self.c, batch, number)
        slots = [
            T.Bind(T.Cast("int32", self.b.filter_order[group * self.c.filters + j]))
            for j in range(self.c.filters)
        ]
        tile = GpuTile(place, group, slots)
        self.start(tile)
        self.all_kernels(tile)
        for f, slot in enumerate(slots):
            padded = self.w.num_slots != self.w.out_channels
            real = slot < self.w.out_channels if padded else True
            when(both(is_there, real), partial(self.store, tile, f, slot))

    def start(self, tile: GpuTile) -> None:
        """Sums begin as the bias."""
        width, last = self.c.vector_width, self.w.out_channels - 1
        for f, slot in enumerate(tile.slots):
            value = zeros(self.sum_type, width)
            if self.b.bias is not None:
                scalar = self.b.bias[T.min(slot, last)]
                value = spread(converted(scalar, self.w.dtype, self.sum_type, 1), width)
                value = T.Bind(value)
            for r in range(self.c.tile_rows):
                for c in range(self.c.tile_cols):
                    dtype = vector_type(self.sum_type, width)
                    tile.sums[f, r, c] = T.alloc_buffer((1,), dtype, scope="local")
                    T.buffer_store(tile.sums[f, r, c], value, [0])

    def all_kernels(self, tile: GpuTile) -> None:
        """One loop per pattern over the kernels of the filter_group."""
        (sh, sw), layout = self.w.geometry.stride, self.w.in_layout
        place = tile.place
        origin = self.inputs.origin(
            place.batch * (self.w.in_channels * layout.size),
            place.y0 * (sh * layout.row_stride) + place.x0 * sw + layout.origin,
        )
        channel: Any = T.alloc_buffer((1,), "int32", scope="local") if self.delta else None
        begin = T.Bind(self.b.group_start[tile.group])
        weight = None if self.b.weight_start is None else T.Bind(self.b.weight_start[tile.group])
        for p, pattern in enumerate(self.w.patterns):
            number = tile.group * len(self.w.patterns) + p
            count = T.Bind(T.Cast("int32", self.b.pattern_count[number]))
            per_kernel = len(pattern) * self.c.filters
            if self.delta:
                T.buffer_store(channel, tirx.const(0, "int32"), [0])
            with T.serial(0, count) as k:
                code = T.Bind(T.Cast("int32", self.b.in_channel[begin + k]))
                if self.delta:
                    T.buffer_store(channel, channel[0] + code, [0])
                    code = T.Bind(channel[0])
                first = (begin + k) if weight is None else k
                at = T.Bind(first * per_kernel + (0 if weight is None else weight))
                self.kernel(tile, pattern, self.inputs.at(code, origin), at)
            if weight is not None:
                weight = T.Bind(weight + count * per_kernel)
            begin = T.Bind(begin + count)

    def kernel(self, tile: GpuTile, pattern: Pattern, x: Any, weights: Any) -> None:
        """Straight code for one kernel; ``x`` and ``weights`` are where its elements begin."""
        per_kernel, start = len(pattern) * self.c.filters, 0
        for taps in steps_of(self.c, pattern.taps):
            values = self.weights(weights, start, len(taps) * self.c.filters, per_kernel)
            self.taps(tile, taps, x, values)
            start += len(taps) * self.c.filters

    def weights(self, base: Any, start: int, count: int, per_kernel: int) -> list[Any]:
        """Scalars of a step, read in the widest vectors."""
        result: list[Any] = []
        for width in weight_pieces(count):
            at = start + len(result)
            aligned = per_kernel % width == 0 and at % width == 0 and self.b.weight_start is None
            load = load_aligned if aligned else load_any
            vector = T.Bind(load(self.b.weights, base, width, at))
            if self.w.dtype != self.sum_type:
                vector = T.Bind(converted(vector, self.w.dtype, self.sum_type, width))
            result += [pick(vector, lane, width) for lane in range(width)]
        return result

    def taps(self, tile: GpuTile, taps: Taps, x: Any, weights: list[Any]) -> None:
        """Multiply-adds of some taps, input row by input row."""
        width, filters = self.c.vector_width, self.c.filters
        for row, columns in tile_uses(self.w.geometry, self.c, taps).items():
            offset = row * self.w.in_layout.row_stride
            for column, vector in self.rows.vectors(x, offset, sorted(columns)):
                for tap, r, c in columns[column]:
                    for f in range(filters):
                        total = tile.sums[f, r, c]
                        weight = spread(weights[tap * filters + f], width)
                        T.buffer_store(total, total[0] + weight * vector, [0])

    def store(self, tile: GpuTile, f: int, slot: Any) -> None:
        """Epilogue and stores of one filter."""
        w = self.w
        plane = T.Bind(tile.place.batch * w.out_channels + slot)
        values = {
            (r, c): tile.sums[f, r, c][0]
            for r in range(self.c.tile_rows)
            for c in range(self.c.tile_cols)
        }
        residual = None
        if w.residual_layout is not None and self.b.residual is not None:
            residual = (self.b.residual, w.residual_layout)
        what = Stored(w.out_layout, w.dtype, w.epilogue.activation)
        store_rows(what, self.c, self.b.out, plane, tile.place, values, residual, self.sum_type)


def schedule_opencl_conv(
    workload: ConvWorkload, config: GpuConfig, _num_threads: int = 1
) -> tirx.PrimFunc:
    """Scheduled PrimFunc of a pattern-sparse convolution: one launch.

    Parameters
    ----------
    workload : ConvWorkload
    config : GpuConfig
        A legal config whose group is the workload's.

    Returns
    -------
    tvm.tirx.PrimFunc
        Parameters as in :func:`~topi_kernels.schedules.tile.declare_parameters`.

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
    rows, cols = tile_grid(workload, config)
    tiles, groups = rows * cols, workload.num_groups
    of_tiles, of_filters, batch = work_groups(workload, config)
    tiles_first = config.order == "tiles"
    extents = (of_tiles, of_filters) if tiles_first else (of_filters, of_tiles)
    with primfunc_builder("pattern_conv2d") as builder:
        buffers = declare_parameters(workload)
        items = (config.tiles_per_group, config.filter_groups_per_group)
        with launch((*extents, batch), items) as (block, item):
            at_tile, at_filter = (block[0], block[1]) if tiles_first else (block[1], block[0])
            number = T.Bind(at_tile * config.tiles_per_group + item[0])
            group = T.Bind(at_filter * config.filter_groups_per_group + item[1])
            bounds = []
            if of_tiles * config.tiles_per_group != tiles:
                bounds.append(number < tiles)
            if of_filters * config.filter_groups_per_group != groups:
                bounds.append(group < groups)
            inside = tirx.all(*bounds) if bounds else True
            if config.input_tile == LOCAL:
                # All work_items copy: those without a tile compute the last one, and store nothing.
                first = T.Bind(at_tile * config.tiles_per_group)
                conv = _Conv(workload, config, buffers, first, item[0])
                conv.tile(T.Bind(T.min(number, tiles - 1)), group, block[2], inside)
            else:
                conv = _Conv(workload, config, buffers)
                when(inside, lambda: conv.tile(number, group, block[2], both()))
    return builder.get()
