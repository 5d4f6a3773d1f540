"""Schedule of a depthwise convolution of bytes.

Every byte is used by one filter alone, so nothing is gathered: the taps of a row of the kernel are
one word, and the bytes under them one shuffle of what lies in the plane.
"""

from __future__ import annotations

from typing import Any

from tvm import tirx
from tvm.tirx.script import builder as T

from ...primfunc import primfunc_builder
from .borders import fill_plane_borders
from .conv import start_sums
from .isa import isa_named
from .requantise import to_bytes
from .tiles import Source
from .tiling import tiling_of
from .workload import Int8Config, Int8Workload

Index = Any


def schedule_int8_depthwise(
    workload: Int8Workload, config: Int8Config, num_threads: int = 1
) -> tirx.PrimFunc:
    """Scheduled PrimFunc of a depthwise convolution of bytes.

    Parameters
    ----------
    workload : Int8Workload
        Filed by rows; ``in_channels`` divides ``out_channels``.
    config : Int8Config
    num_threads : int
        1 builds serial loops; anything else distributes planes over TVM's thread pool.

    Returns
    -------
    tvm.tirx.PrimFunc
        Parameters ``(x, words, bias, scale, limits, zero_points, picks, out)``; words are int32
        ``[out_channels * chunks]``.
    """
    isa, w = isa_named(workload.isa), workload
    tiling = tiling_of(workload, config, isa)
    loop = T.parallel if num_threads > 1 else T.serial
    chunks, multiplier = len(w.chunks), w.out_channels // w.in_channels

    def argument(name: str, shape: tuple[int, ...], dtype: str) -> Any:
        return T.arg(name, T.Buffer(shape, dtype))

    with primfunc_builder("int8_depthwise") as builder:
        x = argument("x", (w.batch, w.in_channels, w.in_layout.size), "uint8")
        words = argument("words", (w.out_channels * chunks,), "int32")
        bias = argument("bias", (w.out_channels,), "int32")
        scale = argument("scale", (w.out_channels,), "float32")
        limits = argument("limits", (3,), "float32")
        zero_points = argument("zero_points", (2,), "int32")
        picks = argument("picks", tiling.picks_shape, "uint8")
        out = argument("out", (w.batch, w.out_channels, w.out_layout.size), "uint8")

        def tile(batch: Index, channel: Index, positions: list[Any], col: Index) -> None:
            place = tiling.place(batch, 0, col)
            acc = start_sums(isa, tiling, bias[channel])
            lanes = T.ramp(0, 1, isa.pixels)
            for chunk in range(chunks):
                word = T.Bind(isa.word(words[channel * chunks + chunk]))
                source = Source(x, None, place, chunk)
                for vector, values in tiling.tuples(source, channel // multiplier, positions):
                    cell = acc[vector]
                    T.buffer_store(cell, isa.dot(cell[lanes], values, word), [lanes])
            results = to_bytes(isa, acc, scale[channel], (limits, zero_points), far=w.far)
            tiling.store(out, place, channel, results)

        with T.sblock("root"), loop(0, w.batch * w.out_channels) as plane:
            batch = 0 if w.batch == 1 else T.Bind(plane // w.out_channels)
            channel = plane if w.batch == 1 else T.Bind(plane % w.out_channels)
            positions = tiling.load_picks(picks, 0)
            with T.serial(0, tiling.tiles[1]) as col:
                tile(batch, channel, positions, col)
            value = T.Bind(T.Cast("uint8", zero_points[0]))
            fill_plane_borders(out, (batch, channel), w.out_layout, value)
    return builder.get()
