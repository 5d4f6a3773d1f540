"""Schedule of a convolution of bytes: lines, one shuffle per tuple, one dot product per filter.

For each tile of outputs

1. the halos of all in_channels are copied into lines that stay in L2;
2. for each filter_group the accumulators start as the bias, zero point folded in; one loop per
   chunk of taps runs over its entries: every vector is shuffled once and meets one word of each
   filter;
3. sums become bytes in registers, a residual is added before rounding, and rows are stored.

At the end the zero point is written around the images, where it is the padding of what reads them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.tirx.script import builder as T

from ...primfunc import primfunc_builder
from .borders import fill_borders
from .isa import DotIsa, isa_named
from .requantise import to_bytes
from .tiles import Source, Tiling
from .tiling import tiling_of
from .workload import Int8Config, Int8Workload

Index = Any


@dataclass
class Buffers:
    """Parameters of the operator, in order."""

    x: Any
    filter_order: Any
    group_start: Any
    counts: Any
    units: Any
    words: Any
    bias: Any
    scale: Any
    limits: Any
    zero_points: Any
    picks: Any
    residual: Any
    out: Any


def declare(workload: Int8Workload, tiling: Tiling) -> Buffers:
    """Declare the parameters.

    ``limits`` are float32 ``[low, high, residual factor]``, ``zero_points`` int32 ``[of the output,
    of the residual]``.
    """

    def argument(name: str, shape: tuple[int, ...], dtype: str) -> Any:
        return T.arg(name, T.Buffer(shape, dtype))

    w = workload
    slots = w.group * w.groups
    planes = (w.batch, w.out_channels, w.out_layout.size)
    return Buffers(
        x=argument("x", (w.batch, w.in_channels, w.in_layout.size), "uint8"),
        filter_order=argument("filter_order", (slots,), "int32"),
        group_start=argument("group_start", (w.groups,), "int32"),
        counts=argument("counts", (w.groups * len(w.chunks),), w.count_dtype),
        units=argument("units", (max(1, w.entries),), w.unit_dtype),
        words=argument("words", (max(1, w.entries) * w.group,), "int32"),
        bias=argument("bias", (slots,), "int32"),
        scale=argument("scale", (slots,), "float32"),
        limits=argument("limits", (3,), "float32"),
        zero_points=argument("zero_points", (2,), "int32"),
        picks=argument("picks", tiling.picks_shape, "uint8"),
        residual=argument("residual", planes, "uint8") if w.residual else None,
        out=argument("out", planes, "uint8"),
    )


def start_sums(isa: DotIsa, tiling: Tiling, bias: Any) -> list[Any]:
    """Accumulators of one filter, one vector each, that begin with its bias."""
    start = T.Bind(T.broadcast(bias, isa.pixels))
    cells = []
    for _ in range(tiling.vectors):
        cell = T.alloc_buffer((isa.pixels,), "int32", scope="global")
        T.buffer_store(cell, start, [T.ramp(0, 1, isa.pixels)])
        cells.append(cell)
    return cells


def _accumulate(
    workload: Int8Workload,
    isa: DotIsa,
    tiling: Tiling,
    b: Buffers,
    source: tuple[Any, Any],
    group: Index,
) -> list[list[Any]]:
    """The sums of a filter_group over all entries; ``[filter][vector]`` buffers of one vector."""
    lanes, chunks = T.ramp(0, 1, isa.pixels), len(workload.chunks)
    acc = [
        start_sums(isa, tiling, b.bias[group * workload.group + f]) for f in range(workload.group)
    ]
    entry = T.alloc_buffer((1,), "int32", scope="global")
    T.buffer_store(entry, b.group_start[group], [0])

    def add_chunk(chunk: Index) -> None:
        picks = tiling.load_picks(b.picks, chunk)
        count = T.Bind(T.Cast("int32", b.counts[group * chunks + chunk]))
        first = T.Bind(entry[0])
        T.buffer_store(entry, first + count, [0])
        with T.serial(0, count) as k:
            place = T.Bind((first + k) * workload.group)
            words = [T.Bind(isa.word(b.words[place + f])) for f in range(workload.group)]
            unit = T.Bind(T.Cast("int32", b.units[first + k]))
            for vector, values in tiling.tuples(Source(b.x, *source, chunk), unit, picks):
                for f in range(workload.group):
                    cell = acc[f][vector]
                    T.buffer_store(cell, isa.dot(cell[lanes], values, words[f]), [lanes])

    if workload.by_rows:
        _add_rows(workload, isa, tiling, b, source, acc, group)
        return acc
    with T.serial(0, chunks) as chunk:
        add_chunk(chunk)
    return acc


def _add_rows(
    workload: Int8Workload,
    isa: DotIsa,
    tiling: Tiling,
    b: Buffers,
    source: tuple[Any, Any],
    acc: list[list[Any]],
    group: Index,
) -> None:
    """Add all chunks of all in_channels, which weights filed by rows have."""
    lanes, filters = T.ramp(0, 1, isa.pixels), workload.group
    first = T.Bind(b.group_start[group])
    picks = tiling.load_picks(b.picks, 0)
    with T.serial(0, workload.units) as unit:
        for chunk in range(len(workload.chunks)):
            place = T.Bind((first + chunk * workload.units + unit) * filters)
            words = [T.Bind(isa.word(b.words[place + f])) for f in range(filters)]
            for vector, values in tiling.tuples(Source(b.x, *source, chunk), unit, picks):
                for f in range(filters):
                    cell = acc[f][vector]
                    T.buffer_store(cell, isa.dot(cell[lanes], values, words[f]), [lanes])


def _residual(tiling: Tiling, isa: DotIsa, b: Buffers, place: Any, out_channel: Index) -> list[Any]:
    """What is added to the scaled sums of each vector: ``(residual - zero point) * factor``."""
    lanes = isa.pixels
    factor = T.broadcast(b.limits[2], lanes)
    zero_point = T.broadcast(b.zero_points[1], lanes)
    values = tiling.load_rows(b.residual, place, out_channel)
    return [
        T.Bind(T.Cast(f"float32x{lanes}", T.Cast(f"int32x{lanes}", v) - zero_point) * factor)
        for v in values
    ]


def _finish(
    workload: Int8Workload,
    isa: DotIsa,
    tiling: Tiling,
    b: Buffers,
    acc: list[list[Any]],
    group: Index,
    place: Any,
) -> None:
    """Sums -> bytes -> rows of the output."""
    for f in range(workload.group):
        slot = group * workload.group + f
        out_channel = T.Bind(b.filter_order[slot])
        added = None
        if workload.residual:
            added = _residual(tiling, isa, b, place, out_channel)
        constants = (b.limits, b.zero_points)
        results = to_bytes(isa, acc[f], b.scale[slot], constants, added, far=workload.far)
        tiling.store(b.out, place, out_channel, results)


def schedule_int8_conv(
    workload: Int8Workload, config: Int8Config, num_threads: int = 1
) -> tirx.PrimFunc:
    """Scheduled PrimFunc of a convolution of bytes.

    Parameters
    ----------
    workload : Int8Workload
    config : Int8Config
    num_threads : int
        1 builds serial loops; anything else distributes tiles over TVM's thread pool.

    Returns
    -------
    tvm.tirx.PrimFunc
        Parameters as :class:`Buffers` lists them.

    Raises
    ------
    ValueError
        If the config is for weights that are packed otherwise.
    """
    if config.group != workload.group:
        raise ValueError(
            f"the config computes groups of {config.group} filters, the weights are packed for"
            f" {workload.group}; pack again or pick another config"
        )
    isa = isa_named(workload.isa)
    tiling = tiling_of(workload, config, isa)
    loop = T.parallel if num_threads > 1 else T.serial
    with primfunc_builder("int8_conv2d") as builder:
        b = declare(workload, tiling)
        with T.sblock("root"):
            down, beside = tiling.tiles
            with loop(0, workload.batch * down) as task:
                batch = 0 if workload.batch == 1 else T.Bind(task // down)
                row = task if workload.batch == 1 else T.Bind(task % down)
                lines = None
                if tiling.scratch:
                    lines = T.alloc_buffer((tiling.scratch,), "uint8", scope="global")
                with T.serial(0, beside) as col:
                    place = tiling.place(batch, row, col)
                    tiling.gather(b.x, lines, place)
                    with T.serial(0, workload.groups) as group:
                        acc = _accumulate(workload, isa, tiling, b, (lines, place), group)
                        _finish(workload, isa, tiling, b, acc, group, place)
            fill_borders(
                b.out, workload.batch, workload.out_channels, workload.out_layout,
                b.zero_points[0], num_threads,
            )  # fmt: skip
    return builder.get()
