"""What else runs on planes of bytes: in and out of them, sums, maxima, the mean of an image."""

from __future__ import annotations

from typing import Any

import numpy as np
from tvm import tirx
from tvm.tirx.script import builder as T

from ...geometry import ConvGeometry
from ...layout import PlaneLayout, round_up
from ...plane_ops import PlaneTarget, for_each_plane, for_each_vector
from ...primfunc import primfunc_builder
from ...vector import shuffle
from .borders import LARGEST, fill_plane_borders, fill_run
from .quantisation import LEVELS, Quantisation
from .requantise import ROUNDING, fma, rounded_bytes

LANES = 16
"""Numbers that are converted at once; LLVM cuts them to what the processor has."""
POOL_LANES = 16

Index = Any
Expression = Any


def _argument(name: str, dims: tuple[int, int], layout: PlaneLayout) -> Any:
    return T.arg(name, T.Buffer((*dims, layout.size), "uint8"))


def _ramp(start: Index, lanes: int) -> Index:
    return start if lanes == 1 else T.ramp(start, 1, lanes)


def _splat(value: Any, lanes: int) -> Expression:
    return value if lanes == 1 else T.broadcast(value, lanes)


def _typed(dtype: str, lanes: int) -> str:
    return dtype if lanes == 1 else f"{dtype}x{lanes}"


def _byte(value: int, lanes: int = 1) -> Expression:
    return _splat(T.uint8(value), lanes)


def _rounding(lanes: int) -> Expression:
    return _splat(T.float32(ROUNDING), lanes)


def _to_bytes(rounded: Expression, limits: tuple[int, int], zero_point: int, lanes: int) -> Any:
    """float32 vector in units of the scale, rounded by adding the constant -> bytes."""
    low, high = (T.float32(limit - zero_point + ROUNDING) for limit in limits)
    if lanes > 1:
        return rounded_bytes(rounded, (low, high), lanes) + _byte(zero_point, lanes)
    limited = T.min(T.max(rounded, low), high)
    return T.Cast("uint8", T.reinterpret("int32", limited)) + _byte(zero_point)


def _shifted(value: Expression, zero_point: int, lanes: int) -> Expression:
    """Bytes -> float32 without their zero point."""
    wide = T.Cast(_typed("int32", lanes), value)
    return T.Cast(_typed("float32", lanes), wide - _splat(T.int32(zero_point), lanes))


def quantised_vector(value: Expression, result: Quantisation, lanes: int) -> Expression:
    """``round(value / scale) + zero_point``, limited, of float32."""
    ratio = value / _splat(T.float32(result.scale), lanes)
    rounded = T.Bind(ratio + _rounding(lanes))
    return _to_bytes(rounded, (0, LEVELS), result.zero_point, lanes)


def quantise(
    batch: int, channels: int, layout: PlaneLayout, target: PlaneTarget, result: Quantisation
) -> tirx.PrimFunc:
    """``(image float32 [n, c, h, w], out planes)``: ``round(x / scale) + zero_point``, limited."""
    dims, size = (batch, channels), (layout.height, layout.width)
    with primfunc_builder("int8_quantize") as builder:
        x = T.arg("x", T.Buffer((*dims, *size), "float32"))
        out = _argument("out", dims, layout)

        def plane(n: Index, c: Index) -> None:
            def convert(y: Index, column: Index, lanes: int) -> None:
                value = quantised_vector(x[n, c, y, _ramp(column, lanes)], result, lanes)
                T.buffer_store(out, value, [n, c, _ramp(layout.offset(y, column), lanes)])

            with T.serial(0, layout.height) as y:
                for_each_vector(layout.width, LANES, lambda at, lanes: convert(y, at, lanes))
            fill_plane_borders(out, (n, c), layout, T.uint8(result.zero_point))

        for_each_plane(batch, channels, target, plane)
    return builder.get()


def dequantise(
    batch: int, channels: int, layout: PlaneLayout, target: PlaneTarget, source: Quantisation
) -> tirx.PrimFunc:
    """``(planes, image float32 [n, c, h, w])``: ``(byte - zero_point) * scale``."""
    dims, size = (batch, channels), (layout.height, layout.width)
    with primfunc_builder("int8_dequantize") as builder:
        x = _argument("x", dims, layout)
        out = T.arg("out", T.Buffer((*dims, *size), "float32"))

        def plane(n: Index, c: Index) -> None:
            def convert(y: Index, column: Index, lanes: int) -> None:
                value = x[n, c, _ramp(layout.offset(y, column), lanes)]
                real = _shifted(value, source.zero_point, lanes)
                real = real * _splat(T.float32(source.scale), lanes)
                T.buffer_store(out, real, [n, c, y, _ramp(column, lanes)])

            with T.serial(0, layout.height) as y:
                for_each_vector(layout.width, LANES, lambda at, lanes: convert(y, at, lanes))

        for_each_plane(batch, channels, target, plane)
    return builder.get()


def _scaled_sum(values: list[Expression], factors: list[float], lanes: int) -> Expression:
    """Sum of products, rounded to whole numbers; the order of roundings is written out."""
    scales = [_splat(T.float32(factor), lanes) for factor in factors]
    if len(values) == 1:
        return fma(values[0], scales[0], _rounding(lanes), lanes)
    total = T.Bind(values[0] * scales[0])
    for value, scale in zip(values[1:], scales[1:], strict=True):
        total = T.Bind(fma(value, scale, total, lanes))
    return total + _rounding(lanes)


def add(
    batch: int,
    channels: int,
    layout: PlaneLayout,
    target: PlaneTarget,
    sources: tuple[Quantisation, ...],
    result: Quantisation,
    limits: tuple[int, int],
) -> tirx.PrimFunc:
    """``(planes, [planes], out planes)``, all of one layout: the sum of the reals, as bytes.

    One source is brought to another scale, or limited.
    """
    dims = (batch, channels)
    run = (layout.height - 1) * layout.row_stride + layout.width
    factors = [source.scale / result.scale for source in sources]
    with primfunc_builder("int8_add") as builder:
        inputs = [_argument(f"x{i}", dims, layout) for i in range(len(sources))]
        out = _argument("out", dims, layout)

        def plane(n: Index, c: Index) -> None:
            def vector(at: Index, lanes: int) -> None:
                index = _ramp(layout.origin + at, lanes)
                values = [
                    _shifted(x[n, c, index], source.zero_point, lanes)
                    for x, source in zip(inputs, sources, strict=True)
                ]
                rounded = T.Bind(_scaled_sum(values, factors, lanes))
                value = _to_bytes(rounded, limits, result.zero_point, lanes)
                T.buffer_store(out, value, [n, c, index])

            for_each_vector(run, LANES, vector)
            fill_plane_borders(out, (n, c), layout, T.uint8(result.zero_point))

        for_each_plane(batch, channels, target, plane)
    return builder.get()


def max_pool(
    batch: int,
    channels: int,
    layouts: tuple[PlaneLayout, PlaneLayout],
    target: PlaneTarget,
    window: ConvGeometry,
    zero_point: int,
) -> tirx.PrimFunc:
    """``(planes, out planes)``; both have the same scale and zero point.

    The rows of a window become one row of maxima, between zeros, which no byte is less than; every
    window sees at least one pixel.
    """
    source, result = layouts
    dims, (kh, kw), (sy, sx) = (batch, channels), window.kernel_size, window.stride
    left = window.padding[1]
    reach = (result.width - 1) * sx + kw
    length = round_up(max(left + source.width, reach) + LARGEST + sx * POOL_LANES, LARGEST)
    with primfunc_builder("int8_max_pool") as builder:
        x = _argument("x", dims, source)
        out = _argument("out", dims, result)

        def plane(n: Index, c: Index) -> None:
            line = T.alloc_buffer((length,), "uint8", scope="global")
            fill_run(line, (), 0, length, T.uint8(0))

            def maxima(y: Index, column: Index, lanes: int) -> None:
                rows = [
                    T.max(T.min(y * sy - window.padding[0] + row, source.height - 1), 0)
                    for row in range(kh)
                ]
                value = x[n, c, _ramp(source.offset(rows[0], column), lanes)]
                for row in rows[1:]:
                    other = x[n, c, _ramp(source.offset(row, column), lanes)]
                    value = T.max(T.Bind(value), other)
                T.buffer_store(line, value, [_ramp(left + column, lanes)])

            def widest(y: Index, column: Index, lanes: int) -> None:
                value = None
                for tap in range(kw):
                    start = column * sx + tap
                    parts = [line[_ramp(start + i * lanes, lanes)] for i in range(sx)]
                    if sx > 1 and lanes > 1:
                        part = shuffle(parts, range(0, lanes * sx, sx))
                    else:
                        part = parts[0]
                    value = part if value is None else T.max(T.Bind(value), part)
                at = _ramp(result.offset(y, column), lanes)
                T.buffer_store(out, value, [n, c, at])

            with T.serial(0, result.height) as y:
                for_each_vector(source.width, LARGEST, lambda at, lanes: maxima(y, at, lanes))
                for_each_vector(result.width, POOL_LANES, lambda at, lanes: widest(y, at, lanes))
            fill_plane_borders(out, (n, c), result, T.uint8(zero_point))

        for_each_plane(batch, channels, target, plane)
    return builder.get()


def global_avg_pool(
    batch: int,
    channels: int,
    layout: PlaneLayout,
    target: PlaneTarget,
    source: Quantisation,
    *,
    keep_dims: bool,
) -> tirx.PrimFunc:
    """``(planes, out float32 [n, c] or [n, c, 1, 1])``: the mean of the reals of an image.

    Between rows lies the zero point, which adds nothing to the sum of what is above it.
    """
    dims = (batch, channels)
    run = (layout.height - 1) * layout.row_stride + layout.width
    scale = np.float32(source.scale / (layout.height * layout.width))
    with primfunc_builder("int8_global_pool") as builder:
        x = _argument("x", dims, layout)
        out = T.arg("out", T.Buffer((*dims, 1, 1) if keep_dims else dims, "float32"))

        def plane(n: Index, c: Index) -> None:
            sums = T.alloc_buffer((LANES,), "int32", scope="global")
            lanes = T.ramp(0, 1, LANES)
            T.buffer_store(sums, _splat(T.int32(0), LANES), [lanes])
            with T.serial(0, run // LANES) as i:
                values = x[n, c, T.ramp(layout.origin + i * LANES, 1, LANES)]
                wide = T.Cast(f"int32x{LANES}", values)
                T.buffer_store(sums, sums[lanes] + wide, [lanes])
            total: Any = T.int32(-source.zero_point * run)
            for lane in range(LANES):
                total = total + sums[lane]
            for rest in range(run // LANES * LANES, run):
                total = total + T.Cast("int32", x[n, c, layout.origin + rest])
            mean = T.Cast("float32", total) * T.float32(float(scale))
            T.buffer_store(out, mean, [n, c, 0, 0] if keep_dims else [n, c])

        for_each_plane(batch, channels, target, plane)
    return builder.get()
