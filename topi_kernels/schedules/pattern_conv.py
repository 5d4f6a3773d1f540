"""Schedule of the pattern-sparse convolution for CPUs with vector registers.

One register_tile of ``filter_vectors x tile_rows x tile_cols`` accumulators is computed at a time:

1. the accumulators start as the bias;
2. one loop per pattern runs over the kernels filed under it. Its body is straight code for that
   pattern's taps: every distinct input vector is loaded once and feeds all taps and filters that
   need it (kernel-level and filter-level load redundancy elimination, PatDNN section 5.4);
3. residual and activation are applied in registers, and the tile is stored once.

Accumulators are one-vector buffers of scope "global": below 1 KiB TVM keeps these on the stack and
LLVM promotes them to registers, whereas scope "local" becomes a heap workspace per call.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, field
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script import builder as T

from ..fkw import INDEX_DTYPES, LOOKAHEAD
from ..pattern import Pattern
from ..vector import (
    CACHE_LINE_FLOATS,
    constant,
    lanes,
    prefetch,
    shuffle,
    splat,
    transpose_blocks,
)
from ..vector_math import activate
from ..workload import ConvWorkload
from .config import ConvConfig


@dataclass
class Buffers:
    """The operator's parameters, activations and weights flattened to one dimension."""

    x: Any
    filter_order: Any
    group_start: Any
    weight_start: Any
    pattern_count: Any
    in_channel: Any
    weights: Any
    bias: Any
    residual: Any
    out: Any


@dataclass
class Tile:
    """Where one register_tile lies; all members are index expressions."""

    group: Any
    batch: Any
    y0: Any
    x0: Any
    row_block: Any
    col_block: Any
    acc: dict[tuple[int, int, int], Any] = field(default_factory=dict)
    slots: list[Any] = field(default_factory=list)


def _input_uses(
    workload: ConvWorkload, config: ConvConfig, taps: Sequence[tuple[int, tuple[int, int]]]
) -> dict[tuple[int, int], list[tuple[int, int, int]]]:
    """Distinct input vectors of a step and who uses them.

    Returns ``(row, column) of the vector, relative to the tile's origin in the input -> list of
    (tap number, tile row, tile column)``.
    """
    (sh, sw), (dh, dw), (pt, pl) = workload.stride, workload.dilation, workload.padding
    uses: dict[tuple[int, int], list[tuple[int, int, int]]] = {}
    for number, (kh, kw) in taps:
        for r in range(config.tile_rows):
            for c in range(config.tile_cols):
                row = r * sh + kh * dh - pt
                col = c * config.pixel_lanes * sw + kw * dw - pl
                uses.setdefault((row, col), []).append((number, r, c))
    return uses


class _Bases:
    """Where a kernel's input begins, per column of taps modulo the vector width if asked for.

    An offset that is a multiple of the vector fits into the load instruction of NEON; any other
    costs an addition. ``opaque`` is a zero that LLVM cannot see through, or it would fold the
    columns back into the offsets.
    """

    def __init__(self, config: ConvConfig, origin: Any, opaque: Any = None) -> None:
        self.config = config
        if opaque is None:
            self._columns = {0: origin}
        else:
            self._columns = {
                c: origin if c == 0 else T.Bind(origin + T.bitwise_or(opaque, c))
                for c in range(config.vector_width)
            }

    def plus(self, distance: Any) -> _Bases:
        """The bases, ``distance`` elements further."""
        moved = copy(self)
        moved._columns = {c: T.Bind(distance + base) for c, base in self._columns.items()}
        return moved

    def at(self, col: int) -> tuple[Any, int]:
        """Base to address column ``col`` from, and the columns that remain."""
        column = col % self.config.vector_width
        if column in self._columns:
            return self._columns[column], col - column
        return self._columns[0], col


class _InputLoader:
    """Loads input vectors of one kernel, once each, and prefetches the next kernel's."""

    def __init__(
        self, workload: ConvWorkload, config: ConvConfig, x: Any, base: _Bases, next_base: Any
    ) -> None:
        self.workload, self.config = workload, config
        self.x, self.base, self.next_base = x, base, next_base
        self._raw: dict[tuple[int, int], Any] = {}
        self._prefetched: set[tuple[int, int]] = set()
        self.first_column = 0

    def _offset(self, row: int, col: int) -> int:
        return row * self.workload.in_layout.row_stride + col

    def _start(self, row: int, col: int) -> Any:
        base, rest = self.base.at(col)
        return base + self._offset(row, rest)

    def _element(self, row: int, col: int) -> Any:
        """One input, as an element of a whole vector that its neighbours share."""
        index, lane = divmod(col - self.first_column, self.config.vector_width)
        if (row, index) not in self._raw:
            start = self.first_column + index * self.config.vector_width
            vector = self.x[lanes(self._start(row, start), self.config.vector_width)]
            self._raw[row, index] = T.Bind(vector)
        return shuffle([self._raw[row, index]], [lane])

    def _fetch_next(self, row: int, col: int) -> None:
        line = (row, col // CACHE_LINE_FLOATS)
        if self.next_base is not None and line not in self._prefetched:
            self._prefetched.add(line)
            prefetch(self.x[self.next_base + self._offset(row, col)])

    def _row_vector(self, row: int, index: int) -> Any:
        """Aligned vector ``index`` of an input row.

        A tile as wide as the row needs no neighbours: what lies beyond the row is padding, zeros.
        """
        width, columns = self.config.vector_width, self.config.tile_cols
        whole_row = columns * width == self.workload.in_layout.row_stride
        if whole_row and not 0 <= index < columns:
            return constant(0.0, width)
        if (row, index) not in self._raw:
            self._fetch_next(row, index * width)
            start = self._start(row, index * width)
            self._raw[row, index] = T.Bind(self.x[lanes(start, width)])
        return self._raw[row, index]

    def load(self, row: int, col: int) -> Any:
        """The vector of ``pixel_lanes`` inputs from ``(row, col)``, repeated for every filter lane."""
        config, stride = self.config, self.workload.stride[1]
        width, pixels = config.vector_width, config.pixel_lanes
        if config.shift == "rotate":
            index, shift = divmod(col, width)
            first = self._row_vector(row, index)
            if shift == 0:
                return first
            second = self._row_vector(row, index + 1)
            return T.Bind(shuffle([first, second], range(shift, shift + width)))
        self._fetch_next(row, col)
        if pixels == 1 and config.isa == "neon" and width > 1:
            return T.Bind(splat(self._element(row, col), width))
        start = self._start(row, col)
        if pixels == 1:
            return T.Bind(splat(self.x[start], width))
        if stride == 1:
            vector = self.x[lanes(start, pixels)]
            if pixels == width:
                return T.Bind(vector)
            return T.Bind(shuffle([vector] * (width // pixels), list(range(pixels)) * (width // pixels)))
        if stride == 2:
            parts = [self.x[lanes(start, pixels)], self.x[lanes(start + pixels, pixels)]]
            repeat = width // pixels
            picks = list(range(0, 2 * pixels, 2)) * repeat
            return T.Bind(shuffle(parts * ((repeat + 1) // 2), picks))
        scalars = [self.x[start + i * stride] for i in range(pixels)]
        return T.Bind(shuffle(scalars * (width // pixels), range(width)))


def _weight_vector(config: ConvConfig, weights: Any, start: Any, vector: int) -> Any:
    """Weights of one tap for filter vector ``vector``, every filter repeated for its pixels."""
    base = start + vector * config.filter_lanes
    if config.filter_lanes == 1:
        return splat(weights[base], config.vector_width)
    values = weights[lanes(base, config.filter_lanes)]
    if config.pixel_lanes == 1:
        return values
    picks = [lane // config.pixel_lanes for lane in range(config.vector_width)]
    return shuffle([values] * config.pixel_lanes, picks)


def _step_weights(
    config: ConvConfig, weights: Any, start: Any, taps: Sequence[int]
) -> dict[tuple[int, int], Any]:
    """Weight vectors of a step: ``(tap number, filter vector) -> vector``."""
    keys = [(n, f) for n in taps for f in range(config.filter_vectors)]
    if config.isa != "neon" or config.filter_lanes != 1:
        return {
            (n, f): T.Bind(_weight_vector(config, weights, start + n * config.group, f))
            for n, f in keys
        }
    # Neighbouring weights come in whole vectors; the multiply-adds take them by element.
    width, first = config.vector_width, start + taps[0] * config.group
    loaded: list[Any] = []
    while len(loaded) < len(keys):
        count = width
        while count > len(keys) - len(loaded):
            count //= 2
        vector = T.Bind(weights[lanes(first + len(loaded), count)])
        loaded += [vector if count == 1 else shuffle([vector], [i]) for i in range(count)]
    return {key: T.Bind(splat(value, width)) for key, value in zip(keys, loaded, strict=True)}


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
    numbered = list(enumerate(pattern.taps))
    for first in range(0, len(numbered), config.taps_per_step):
        step = numbered[first : first + config.taps_per_step]
        weights = _step_weights(config, buffers.weights, weight_base, [n for n, _ in step])
        uses = _input_uses(workload, config, step)
        loader = _InputLoader(workload, config, buffers.x, base, next_base)
        loader.first_column = min(col for _, col in uses)
        for row, col in sorted(uses):
            value = loader.load(row, col)
            for n, r, c in uses[row, col]:
                for f in range(config.filter_vectors):
                    acc = tile.acc[f, r, c]
                    T.buffer_store(acc, acc[vec] + weights[n, f] * value, [vec])


def _accumulate(
    workload: ConvWorkload, config: ConvConfig, buffers: Buffers, tile: Tile
) -> None:
    """Add all kernels of the tile's filter_group to the accumulators, one loop per pattern."""
    layout = workload.in_layout
    (sh, sw), group = workload.stride, tile.group
    plane = layout.size
    origin = T.Bind(
        tile.batch * (workload.in_channels * plane)
        + layout.origin
        + tile.y0 * (sh * layout.row_stride)
        + tile.x0 * sw
    )
    delta = workload.index_encoding == "delta8"
    channel = T.alloc_buffer((1,), "int32", scope="global") if delta else None
    opaque = None
    if config.isa == "neon":
        opaque = T.Bind(buffers.group_start[0])
    origins = _Bases(config, origin, opaque)
    begin = T.Bind(buffers.group_start[group])
    uniform = buffers.weight_start is None
    weight_begin = None if uniform else T.Bind(buffers.weight_start[group])
    num_patterns = len(workload.patterns)
    for p, pattern in enumerate(workload.patterns):
        count = T.Cast("int32", buffers.pattern_count[group * num_patterns + p])
        end = T.Bind(begin + count)
        per_kernel = len(pattern) * config.group
        if delta:
            T.buffer_store(channel, tirx.const(0, "int32"), [0])
        with T.serial(begin, end) as k:
            code = T.Bind(T.Cast("int32", buffers.in_channel[k]))
            following = None
            if config.prefetch:
                # Distances add up along a delta list, so there only the next kernel is known.
                ahead = 1 if delta else config.prefetch
                following = T.Bind(T.Cast("int32", buffers.in_channel[k + ahead]))
            if delta:
                T.buffer_store(channel, channel[0] + code, [0])
                code = T.Bind(channel[0])
                following = None if following is None else T.Bind(code + following)
            base = origins.plus(code * plane)
            next_base = None if following is None else T.Bind(following * plane + origin)
            if uniform:
                weight_base = T.Bind(k * per_kernel)
            else:
                weight_base = T.Bind(weight_begin + (k - begin) * per_kernel)
            bases = (base, next_base, weight_base)
            _kernel_body(workload, config, buffers, tile, pattern, bases)
        if not uniform:
            weight_begin = T.Bind(weight_begin + (end - begin) * per_kernel)
        begin = end


def _start_accumulators(
    workload: ConvWorkload, config: ConvConfig, buffers: Buffers, tile: Tile
) -> None:
    width, pixels = config.vector_width, config.pixel_lanes
    last = workload.out_channels - 1
    for f in range(config.filter_vectors):
        if buffers.bias is None:
            start = constant(0.0, width)
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
                acc = T.alloc_buffer((width,), "float32", scope="global")
                T.buffer_store(acc, start, [lanes(0, width)])
                tile.acc[f, r, c] = acc


def _store_pixels(
    workload: ConvWorkload,
    buffers: Buffers,
    tile: Tile,
    slot: Any,
    where: tuple[int, int, int],
    value: Any,
    activated: bool,
) -> None:
    """Store neighbouring pixels of one filter; ``where`` is (tile row, first column, pixels)."""
    row, col, count = where
    epilogue, layout = workload.epilogue, workload.out_layout

    def position(geometry: Any) -> Any:
        plane = (tile.batch * workload.out_channels + slot) * geometry.size
        inside = geometry.origin + (tile.y0 + row) * geometry.row_stride + tile.x0 + col
        return lanes(plane + inside, count)

    if epilogue.residual:
        value = value + buffers.residual[position(workload.residual_layout)]
    if not activated:
        value = activate(value, epilogue.activation, count)
    T.buffer_store(buffers.out, value, [position(layout)])


def _store_tile(workload: ConvWorkload, config: ConvConfig, buffers: Buffers, tile: Tile) -> None:
    """Epilogue and the only store of every output."""
    width, pixels = config.vector_width, config.pixel_lanes
    vec = lanes(0, width)
    # Without a residual the activation is cheapest on whole vectors, before lanes are taken apart.
    early = not workload.epilogue.residual
    padded = workload.num_slots != workload.out_channels

    def guarded(slot: Any, emit: Any) -> None:
        if not padded:
            emit()
            return
        with T.If(slot < workload.out_channels), T.Then():
            emit()

    for f in range(config.filter_vectors):
        for r in range(config.tile_rows):
            values = []
            for c in range(config.tile_cols):
                value = tile.acc[f, r, c][vec]
                if early:
                    value = activate(value, workload.epilogue.activation, width)
                values.append(T.Bind(value))
            for slot, col, count, part in _split_row(config, values):
                number = tile.slots[f * config.filter_lanes + slot]
                guarded(
                    number,
                    lambda n=number, w=(r, col, count), v=part: _store_pixels(
                        workload, buffers, tile, n, w, v, early
                    ),
                )
    for slot_expr in tile.slots:
        guarded(slot_expr, lambda n=slot_expr: _zero_halo(workload, config, buffers, tile, n))


def _split_row(config: ConvConfig, values: list[Any]) -> list[tuple[int, int, int, Any]]:
    """Take one tile row apart into ``(filter lane, first pixel, pixels, vector)`` pieces."""
    width, pixels = config.vector_width, config.pixel_lanes
    pieces = []
    if pixels > 1 or width == 1:
        for c, value in enumerate(values):
            for lane in range(config.filter_lanes):
                whole = config.filter_lanes == 1
                picks = range(lane * pixels, (lane + 1) * pixels)
                part = value if whole else shuffle([value], picks)
                pieces.append((lane, c * pixels, pixels, part))
        return pieces
    if len(values) < 4:
        for c, value in enumerate(values):
            pieces += [(lane, c, 1, shuffle([value], [lane])) for lane in range(width)]
        return pieces
    # Blocks of 4 pixels; the last one overlaps its neighbour rather than leaving a remainder.
    for start in sorted({*range(0, len(values) - 3, 4), len(values) - 4}):
        for lane, part in transpose_blocks(values[start : start + 4], width):
            pieces.append((lane, start, 4, part))
    return pieces


def _zero_range(out: Any, start: Any, count: int, width: int) -> None:
    done = 0
    while done < count:
        step = width
        while step > count - done:
            step //= 2
        if count - done >= 4 * width:
            chunks = (count - done) // width
            with T.serial(0, chunks) as i:
                T.buffer_store(out, constant(0.0, width), [lanes(start + done + i * width, width)])
            done += chunks * width
            continue
        T.buffer_store(out, constant(0.0, step), [lanes(start + done, step)])
        done += step


def _zero_halo(
    workload: ConvWorkload, config: ConvConfig, buffers: Buffers, tile: Tile, slot: Any
) -> None:
    """Zeros around the image: right of every row, and above and below it.

    Whoever stores the last vector of a row also clears what lies between it and the next row, so
    that vectors which ran over the image's edge leave nothing behind.
    """
    layout, width = workload.out_layout, config.vector_width
    plane = T.Bind((tile.batch * workload.out_channels + slot) * layout.size)
    row_blocks = -(-layout.height // config.tile_rows)
    col_blocks = -(-_row_vectors(workload, config) // config.tile_cols)

    def clear_gaps() -> None:
        for r in range(config.tile_rows):
            start = plane + layout.origin + (tile.y0 + r) * layout.row_stride + layout.width
            _zero_range(buffers.out, start, layout.row_stride - layout.width, width)

    def clear_bottom() -> None:
        below = layout.offset(layout.height, 0)
        _zero_range(buffers.out, plane + below, layout.size - below, width)

    if col_blocks == 1:
        clear_gaps()
    else:
        with T.If(tile.col_block == col_blocks - 1), T.Then():
            clear_gaps()
    with T.If(tirx.all(tile.row_block == 0, tile.col_block == col_blocks - 1)), T.Then():
        _zero_range(buffers.out, plane, layout.origin, width)
    with T.If(tirx.all(tile.row_block == row_blocks - 1, tile.col_block == col_blocks - 1)), T.Then():
        clear_bottom()


def _row_vectors(workload: ConvWorkload, config: ConvConfig) -> int:
    return -(-workload.out_layout.width // config.pixel_lanes)


def _register_tile(
    workload: ConvWorkload, config: ConvConfig, buffers: Buffers, where: tuple[Any, Any, Any]
) -> None:
    """One register_tile: filter_group ``g`` at tile ``t`` of image ``n``."""
    n, t, g = where
    layout = workload.out_layout
    columns = _row_vectors(workload, config)
    col_blocks = -(-columns // config.tile_cols)
    row_block = T.Bind(t // col_blocks)
    col_block = T.Bind(t % col_blocks)
    # The last tile of a row or column is moved back to end with the image: no masks, no remainder.
    y0 = T.Bind(T.min(row_block * config.tile_rows, layout.height - config.tile_rows))
    last_col = (columns - config.tile_cols) * config.pixel_lanes
    x0 = T.Bind(T.min(col_block * (config.tile_cols * config.pixel_lanes), last_col))
    tile = Tile(g, n, y0, x0, row_block, col_block)
    tile.slots = [
        T.Bind(T.Cast("int32", buffers.filter_order[g * config.group + j]))
        for j in range(config.group)
    ]
    _start_accumulators(workload, config, buffers, tile)
    _accumulate(workload, config, buffers, tile)
    _store_tile(workload, config, buffers, tile)


def _group_blocks(workload: ConvWorkload, tiles: int, num_threads: int) -> int:
    """Into how many blocks the filter_groups are cut so that every thread has work."""
    if num_threads == 1:
        return 1
    wanted = -(-4 * num_threads // max(1, tiles))
    return max(1, min(wanted, workload.num_groups))


def _loop_nest(
    workload: ConvWorkload, config: ConvConfig, buffers: Buffers, num_threads: int
) -> None:
    """Distribute register_tiles over loops and threads."""
    layout = workload.out_layout
    columns = _row_vectors(workload, config)
    per_image = -(-layout.height // config.tile_rows) * -(-columns // config.tile_cols)
    tiles = workload.batch * per_image
    parallel = T.parallel if num_threads != 1 else T.serial
    groups = workload.num_groups
    if config.loop_order == "filter_outer":
        with parallel(0, groups) as g, T.serial(0, tiles) as t:
            _register_tile(workload, config, buffers, (t // per_image, t % per_image, g))
        return
    blocks = _group_blocks(workload, tiles, num_threads)
    share = -(-groups // blocks)
    with parallel(0, tiles * blocks) as task:
        t = T.Bind(task // blocks)
        first = T.Bind(task % blocks * share)
        with T.serial(first, T.min(first + share, groups)) as g:
            _register_tile(workload, config, buffers, (t // per_image, t % per_image, g))


def declare_parameters(workload: ConvWorkload) -> Buffers:
    """Declare the operator's parameters in their fixed order inside an open function."""
    w = workload

    def planes(name: str, channels: int, size: int) -> Any:
        return T.arg(name, T.Buffer((w.batch, channels, size), w.dtype))

    def flat(whole: Any) -> Any:
        size = math.prod(int(extent) for extent in whole.shape)
        return T.decl_buffer((size,), w.dtype, data=whole.data)

    def vector(name: str, length: int, dtype: str) -> Any:
        return T.arg(name, T.Buffer((length,), dtype))

    x = planes("x", w.in_channels, w.in_layout.size)
    order_dtype = "uint8" if w.out_channels <= 0xFF else "uint16"
    order_dtype = order_dtype if w.out_channels <= 0xFFFF else "int32"
    filter_order = vector("filter_order", w.num_slots, order_dtype)
    group_start = vector("group_start", w.num_groups + 1, "int32")
    weight_start = None
    if len({len(p) for p in w.patterns}) > 1:
        weight_start = vector("weight_start", w.num_groups + 1, "int32")
    pattern_count = vector("pattern_count", w.num_groups * len(w.patterns), w.count_dtype)
    in_channel = vector("in_channel", w.num_kernels + LOOKAHEAD, INDEX_DTYPES[w.index_encoding])
    weights = vector("weights", max(w.num_weights, 1), w.dtype)
    bias = vector("bias", w.out_channels, w.dtype) if w.epilogue.bias else None
    residual = None
    if w.epilogue.residual and w.residual_layout is not None:
        residual = planes("residual", w.out_channels, w.residual_layout.size)
    out = planes("out", w.out_channels, w.out_layout.size)
    return Buffers(
        flat(x),
        filter_order,
        group_start,
        weight_start,
        pattern_count,
        in_channel,
        weights,
        bias,
        None if residual is None else flat(residual),
        flat(out),
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
    with IRBuilder() as builder:
        with T.prim_func(s_tir=True):
            T.func_name("pattern_conv2d")
            T.func_attr({"tirx.noalias": True})
            buffers = declare_parameters(workload)
            _loop_nest(workload, config, buffers, num_threads)
    return builder.get()
