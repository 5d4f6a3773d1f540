"""Every operator on planes written naively: the specification that schedules are held against.

The pattern-sparse convolution is ``out[n, o, p] = act(bias[o] + sum over kernels (o, i) and taps t
of W[o, i, t] * x[n, i, p + t] + residual[n, o, p])``, reading weights in FKW order. The others have
the names and parameters of :mod:`topi_kernels.plane_operators`: a pixel outside the image is zero
because the condition says so, whatever lies in the padding. No blocking, no vectors, any layout.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any

from tvm import tirx
from tvm.ir import Expr
from tvm.tirx.script import builder as T

from .channelwise import ChannelTerms, parameters
from .geometry import ConvGeometry
from .layout import PlaneLayout
from .pixel_shuffle import Phases
from .plane_ops import PlaneTarget, plane_arg
from .primfunc import primfunc_builder
from .schedules.tile import Buffers, declare_parameters
from .vector_math import activate, maximum_of
from .workload import NO_EPILOGUE, ConvWorkload, Epilogue

#: ``(n, c, y, x)`` -> a float32 pixel.
Pixel = Callable[[Any, Any, Any, Any], Expr]


def _output_element(w: ConvWorkload, b: Buffers, where: tuple[Any, Any, Any, Any, Any]) -> None:
    n, g, j, y, x = where
    place = g * w.group + j
    slot = T.Bind(place if b.filter_order is None else T.Cast("int32", b.filter_order[place]))
    with T.If(slot < w.out_channels), T.Then():
        total = T.alloc_buffer((1,), w.dtype, scope="global")
        start = tirx.const(0.0, w.dtype) if b.bias is None else b.bias[slot]
        T.buffer_store(total, start, [0])
        add_all = _add_kernels if w.tap_code is None else _add_taps
        add_all = add_all if w.gemm_code is None else _add_matrices
        add_all(w, b, where, total)
        value = total[0]
        if w.residual_layout is not None and b.residual is not None:
            r = w.residual_layout
            value = value + b.residual[(n * w.out_channels + slot) * r.size + r.element(y, x)]
        o = w.out_layout
        # Activations are written for float32, also where the sum is of a narrower type.
        result = activate(value.astype("float32"), w.epilogue.activation, 1).astype(w.dtype)
        T.buffer_store(b.out, result, [(n * w.out_channels + slot) * o.size + o.element(y, x)])


def _add_matrices(
    w: ConvWorkload, b: Buffers, where: tuple[Any, Any, Any, Any, Any], total: Any
) -> None:
    """All kernels of a filter, given back from the matrices that they are stored as."""
    n, block, j, y, x = where
    code = w.gemm_code
    if code is None:
        return
    # The last block is moved back to end with the filters.
    start = T.min(block * code.block, max(0, w.out_channels - code.block))
    column = T.Bind(block * code.block + j - start)
    rows = code.recovery
    terms = [[(p, float(f)) for p, f in enumerate(row) if f] for row in rows]
    with T.serial(0, w.in_channels) as channel:
        plane = T.Bind((n * w.in_channels + channel) * w.in_layout.size)
        for kh, kw in itertools.product(range(len(rows)), repeat=2):
            weight = tirx.const(0.0, w.dtype)
            for (p, first), (q, second) in itertools.product(terms[kh], terms[kw]):
                product = (block * code.products + p * rows.shape[1] + q) * w.in_channels
                stored = b.weights[(product + channel) * code.block + column]
                weight = weight + stored * tirx.const(first * second, w.dtype)
            value = _tap_input(w, b, plane, (kh, kw), (y, x))
            T.buffer_store(total, total[0] + T.Bind(weight) * value, [0])


def _add_kernels(
    w: ConvWorkload, b: Buffers, where: tuple[Any, Any, Any, Any, Any], total: Any
) -> None:
    """The kernels of a filter as FKW stores them."""
    n, g, j, y, x = where
    delta = w.index_encoding == "delta8"
    channel = T.alloc_buffer((1,), "int32", scope="global")
    begin = T.Bind(b.group_start[g])
    uniform = b.weight_start is None
    weight = None if uniform else T.Bind(b.weight_start[g])
    for p, pattern in enumerate(w.patterns):
        count = T.Cast("int32", b.pattern_count[g * len(w.patterns) + p])
        end = T.Bind(begin + count)
        T.buffer_store(channel, tirx.const(0, "int32"), [0])
        with T.serial(begin, end) as k:
            code = T.Cast("int32", b.in_channel[k])
            T.buffer_store(channel, channel[0] + code if delta else code, [0])
            plane = (n * w.in_channels + channel[0]) * w.in_layout.size
            first = k if uniform else k - begin
            base = first * (len(pattern) * w.group) + (0 if uniform else weight)
            for t, tap in enumerate(pattern.taps):
                value = _tap_input(w, b, plane, tap, (y, x))
                product = b.weights[base + t * w.group + j] * value
                T.buffer_store(total, total[0] + product, [0])
        if not uniform:
            weight = T.Bind(weight + (end - begin) * (len(pattern) * w.group))
        begin = end


def _add_taps(
    w: ConvWorkload, b: Buffers, where: tuple[Any, Any, Any, Any, Any], total: Any
) -> None:
    """The taps of a filter as its tap lists hold them, each told from its offset."""
    n, g, j, y, x = where
    code = w.tap_code
    if code is None:
        return
    (_, kw) = code.kernel_size
    with T.serial(0, code.blocks) as block:
        number = T.Bind(block * w.num_groups + g)
        with T.serial(b.list_start[number], b.list_start[number + 1]) as k:
            offset = T.Bind(T.Cast("int32", b.offset[k]) * code.unit)
            channel = T.Bind(block * code.channel_block + offset // code.plane_size)
            plane = T.Bind((n * w.in_channels + channel) * w.in_layout.size)
            for tap, start in enumerate(code.starts):
                with T.If(offset % code.plane_size == start), T.Then():
                    value = _tap_input(w, b, plane, divmod(tap, kw), (y, x))
                    product = b.weights[k * w.group + j] * value
                    T.buffer_store(total, total[0] + product, [0])


def _tap_input(
    w: ConvWorkload, b: Buffers, plane: Any, tap: tuple[int, int], pixel: tuple[Any, Any]
) -> Any:
    """What a tap of the output's ``pixel`` reads."""
    (sh, sw), (dh, dw), (pt, pl) = w.geometry.stride, w.geometry.dilation, w.geometry.padding
    (kh, kw), (y, x) = tap, pixel
    return _input(w, b, plane, y * sh + kh * dh - pt, x * sw + kw * dw - pl)


def _input(w: ConvWorkload, b: Buffers, plane: Any, row: Any, column: Any) -> Any:
    """One input; the padding of plain rows is there to be read, that of others is a zero."""
    layout = w.in_layout
    if not layout.is_interleaved:
        return b.x[plane + layout.element(row, column)]
    inside = tirx.all(row >= 0, row < layout.height, column >= 0, column < layout.width)
    # The condition keeps the address in the plane, whatever is evaluated first.
    safe = layout.element(T.Select(inside, row, 0), T.Select(inside, column, 0))
    return T.Select(inside, b.x[plane + safe], tirx.const(0.0, w.dtype))


def _copy_edges(o: PlaneLayout, out: tirx.Buffer, at: Callable[[Any], list[Any]]) -> None:
    """Interleaved lanes of one plane: the copies above and below bands, and beside rows."""
    rows, columns = o.band_height + 2 * o.pad, o.columns + 2 * o.border
    with T.serial(0, rows) as i, T.serial(0, columns) as j, T.serial(0, o.lanes) as lane:
        row, column = i - o.pad, j - o.border
        y = lane // o.band_lanes * o.band_height + row
        x = lane % o.band_lanes * o.columns + column
        inside = tirx.all(y >= 0, y < o.height, x >= 0, x < o.width)
        at_home = tirx.all(row >= 0, row < o.band_height, column >= 0, column < o.columns)
        with T.If(tirx.all(inside, tirx.Not(at_home))), T.Then():
            value = out[tuple(at(o.element(y, x)))]
            T.buffer_store(out, value, at(o.vector_offset(row, column) + lane))


def naive_pattern_conv(workload: ConvWorkload) -> tirx.PrimFunc:
    """The operator as plain loops.

    Returns
    -------
    tvm.tirx.PrimFunc
        Same parameters as :func:`~topi_kernels.schedules.pattern_conv.schedule_pattern_conv`.
    """
    w = workload
    with primfunc_builder("pattern_conv2d_naive") as builder:
        b = declare_parameters(w)
        with T.serial(0, w.batch * w.out_channels * w.out_layout.size) as i:
            T.buffer_store(b.out, tirx.const(0.0, w.dtype), [i])
        with (
            T.serial(0, w.batch) as n,
            T.serial(0, w.num_groups) as g,
            T.serial(0, w.group) as j,
            T.serial(0, w.out_layout.height) as y,
            T.serial(0, w.out_layout.width) as x,
        ):
            _output_element(w, b, (n, g, j, y, x))
        if w.out_layout.is_interleaved:
            size = w.out_layout.size
            with T.serial(0, w.batch * w.out_channels) as plane:
                _copy_edges(w.out_layout, b.out, lambda element: [plane * size + element])
    return builder.get()


def _for_each_pixel(
    batch: int, channels: int, layout: PlaneLayout, body: Callable[[Any, Any, Any, Any], None]
) -> None:
    with (
        T.serial(0, batch) as n,
        T.serial(0, channels) as c,
        T.serial(0, layout.height) as y,
        T.serial(0, layout.width) as x,
    ):
        body(n, c, y, x)


def _to_planes(
    name: str,
    batch: int,
    channels: int,
    layout: PlaneLayout,
    target: PlaneTarget,
    inputs: Callable[[], Pixel],
) -> tirx.PrimFunc:
    """Planes of the pixels that ``inputs``, which declares its parameters, gives the value of."""
    with primfunc_builder(f"{name}_naive") as builder:
        pixel = inputs()
        out = plane_arg("out", batch, channels, layout, target)

        def store(n: Any, c: Any, y: Any, x: Any) -> None:
            value = T.Cast(target.dtype, pixel(n, c, y, x))
            T.buffer_store(out, value, [n, c, layout.element(y, x)])

        with T.sblock("root"), T.serial(0, 1):
            zero = tirx.const(0.0, target.dtype)
            with (
                T.serial(0, batch) as n,
                T.serial(0, channels) as c,
                T.serial(0, layout.size) as i,
            ):
                T.buffer_store(out, zero, [n, c, i])
            _for_each_pixel(batch, channels, layout, store)
            if layout.is_interleaved:
                with T.serial(0, batch) as n, T.serial(0, channels) as c:
                    _copy_edges(layout, out, lambda element: [n, c, element])
    return builder.get()


def pack(batch: int, channels: int, layout: PlaneLayout, target: PlaneTarget) -> tirx.PrimFunc:
    """``(x[batch, channels, height, width], out planes)``."""

    def inputs() -> Pixel:
        x = T.arg("x", T.Buffer((batch, channels, layout.height, layout.width), target.dtype))
        return lambda *where: x[where]

    return _to_planes("pack", batch, channels, layout, target, inputs)


def unpack(batch: int, channels: int, layout: PlaneLayout, target: PlaneTarget) -> tirx.PrimFunc:
    """``(x planes, out[batch, channels, height, width])``."""
    with primfunc_builder("unpack_naive") as builder:
        x = plane_arg("x", batch, channels, layout, target)
        out = T.arg("out", T.Buffer((batch, channels, layout.height, layout.width), target.dtype))

        def store(n: Any, c: Any, y: Any, column: Any) -> None:
            T.buffer_store(out, x[n, c, layout.element(y, column)], [n, c, y, column])

        with T.sblock("root"), T.serial(0, 1):
            _for_each_pixel(batch, channels, layout, store)
    return builder.get()


def elementwise(
    batch: int,
    channels: int,
    in_layouts: tuple[PlaneLayout, ...],
    out_layout: PlaneLayout,
    target: PlaneTarget,
    operator: str = "add",
    activation: str = "none",
    bounds: tuple[float, float] = (0.0, 6.0),
) -> tirx.PrimFunc:
    """``(planes, ..., out planes)``: ``act(x0 + x1 + ...)``, or their product."""

    def inputs() -> Pixel:
        planes = [
            plane_arg(f"x{i}", batch, channels, layout, target)
            for i, layout in enumerate(in_layouts)
        ]

        def pixel(n: Any, c: Any, y: Any, x: Any) -> Expr:
            values = [
                T.Cast("float32", plane[n, c, layout.element(y, x)])
                for plane, layout in zip(planes, in_layouts, strict=True)
            ]
            total = reduce(lambda a, b: a + b if operator == "add" else a * b, values)
            return activate(T.Bind(total), activation, 1, bounds)

        return pixel

    return _to_planes("elementwise", batch, channels, out_layout, target, inputs)


def channel_select(
    batch: int,
    channels: int,
    in_channels: Sequence[int],
    in_layouts: Sequence[PlaneLayout],
    out_layout: PlaneLayout,
    picks: Sequence[tuple[int, int]],
    target: PlaneTarget,
) -> tirx.PrimFunc:
    """``(planes, ..., out planes)``: out_channel ``c`` is channel ``picks[c][1]`` of an image."""

    def inputs() -> Pixel:
        planes = [
            plane_arg(f"x{i}", batch, count, layout, target)
            for i, (count, layout) in enumerate(zip(in_channels, in_layouts, strict=True))
        ]

        def pixel(n: Any, c: Any, y: Any, x: Any) -> Expr:
            value: Expr = tirx.const(0.0, target.dtype)
            for number, (source, channel) in enumerate(picks):
                element = planes[source][n, channel, in_layouts[source].element(y, x)]
                value = T.Select(c == number, element, value)
            return value

        return pixel

    return _to_planes("channel_select", batch, channels, out_layout, target, inputs)


def channelwise(
    batch: int,
    channels: int,
    in_layout: PlaneLayout,
    out_layout: PlaneLayout,
    terms: ChannelTerms,
    target: PlaneTarget,
) -> tirx.PrimFunc:
    """See :mod:`topi_kernels.channelwise`."""

    def inputs() -> Pixel:
        x = plane_arg("x", batch, channels, in_layout, target)
        parts = parameters(terms, batch, channels, target)

        def part(name: str, c: Any) -> Expr:
            return T.Cast("float32", parts[name][c])

        def pixel(n: Any, c: Any, y: Any, column: Any) -> Expr:
            value = T.Cast("float32", x[n, c, in_layout.element(y, column)])
            if terms.gate is not None:
                value = value * T.Cast("float32", parts["gate"][n, c, terms.gate.element(0, 0)])
            value = value * part("scale", c) if terms.scale else value
            value = T.Bind(value + part("shift", c) if terms.shift else value)
            if terms.slope:
                value = T.if_then_else(value > T.float32(0), value, value * part("slope", c))
            return activate(T.Bind(value), terms.activation, 1, terms.bounds)

        return pixel

    return _to_planes("channelwise", batch, channels, out_layout, target, inputs)


def _for_each_tap(
    window: ConvGeometry,
    plane: Callable[[Any], Expr],
    layout: PlaneLayout,
    where: tuple[Any, Any],
    body: Callable[[Any, Any, Expr], None],
) -> None:
    """``body(kh, kw, input)`` for every tap of an output whose input lies inside the image."""
    (kh, kw), (sh, sw) = window.kernel_size, window.stride
    (dh, dw), (top, left) = window.dilation, window.padding
    with T.serial(0, kh) as i, T.serial(0, kw) as j:
        row = T.Bind(where[0] * sh + i * dh - top)
        column = T.Bind(where[1] * sw + j * dw - left)
        inside = tirx.all(row >= 0, row < layout.height, column >= 0, column < layout.width)
        with T.If(inside), T.Then():
            body(i, j, T.Cast("float32", plane(layout.element(row, column))))


def _scalar(start: Any) -> tirx.Buffer:
    """A float32 variable."""
    scalar = T.alloc_buffer((1,), "float32", scope="global")
    T.buffer_store(scalar, start, [0])
    return scalar


def max_pool(
    batch: int,
    channels: int,
    in_layout: PlaneLayout,
    out_layout: PlaneLayout,
    window: ConvGeometry,
    target: PlaneTarget,
) -> tirx.PrimFunc:
    """``(x planes, out planes)``: maximum of the window's pixels inside the image; NaN stays."""

    def inputs() -> Pixel:
        planes = plane_arg("x", batch, channels, in_layout, target)

        def pixel(n: Any, c: Any, y: Any, x: Any) -> Expr:
            largest = _scalar(T.float32(-math.inf))

            def tap(_i: Any, _j: Any, value: Expr) -> None:
                T.buffer_store(largest, maximum_of([largest[0], value], 1, nan_maximum=False), [0])

            _for_each_tap(window, lambda e: planes[n, c, e], in_layout, (y, x), tap)
            return largest[0]

        return pixel

    return _to_planes("max_pool", batch, channels, out_layout, target, inputs)


def avg_pool(
    batch: int,
    channels: int,
    in_layout: PlaneLayout,
    out_layout: PlaneLayout,
    window: ConvGeometry,
    target: PlaneTarget,
    *,
    count_include_pad: bool,
) -> tirx.PrimFunc:
    """``(x planes, out planes)``: sum of the window by its size, or by its pixels in the image."""

    def inputs() -> Pixel:
        planes = plane_arg("x", batch, channels, in_layout, target)

        def pixel(n: Any, c: Any, y: Any, x: Any) -> Expr:
            kh, kw = window.kernel_size
            total, count = _scalar(T.float32(0)), _scalar(T.float32(0))

            def tap(_i: Any, _j: Any, value: Expr) -> None:
                T.buffer_store(total, total[0] + value, [0])
                T.buffer_store(count, count[0] + T.float32(1), [0])

            _for_each_tap(window, lambda e: planes[n, c, e], in_layout, (y, x), tap)
            return total[0] / (T.float32(kh * kw) if count_include_pad else count[0])

        return pixel

    return _to_planes("avg_pool", batch, channels, out_layout, target, inputs)


def global_avg_pool(
    batch: int, channels: int, layout: PlaneLayout, target: PlaneTarget, *, keep_dims: bool = True
) -> tirx.PrimFunc:
    """``(x planes, out[batch, channels(, 1, 1)])``: mean over the image."""
    with primfunc_builder("global_avg_pool_naive") as builder:
        x = plane_arg("x", batch, channels, layout, target)
        shape = (batch, channels, 1, 1) if keep_dims else (batch, channels)
        out = T.arg("out", T.Buffer(shape, target.dtype))
        with T.sblock("root"), T.serial(0, batch) as n, T.serial(0, channels) as c:
            total = _scalar(T.float32(0))
            with T.serial(0, layout.height) as y, T.serial(0, layout.width) as column:
                value = T.Cast("float32", x[n, c, layout.element(y, column)])
                T.buffer_store(total, total[0] + value, [0])
            mean = T.Cast(target.dtype, total[0] / T.float32(layout.height * layout.width))
            T.buffer_store(out, mean, [n, c, 0, 0] if keep_dims else [n, c])
    return builder.get()


def depthwise_conv(
    batch: int,
    channels: int,
    in_layout: PlaneLayout,
    out_layout: PlaneLayout,
    window: ConvGeometry,
    target: PlaneTarget,
    epilogue: Epilogue = NO_EPILOGUE,
    multiplier: int = 1,
) -> tirx.PrimFunc:
    """``(x planes, weight[channels, kh, kw], bias[channels] if bias, out planes)``.

    Out_channel ``c`` reads in_channel ``c // multiplier``.
    """

    def inputs() -> Pixel:
        x = plane_arg("x", batch, channels // multiplier, in_layout, target)
        weight = T.arg("weight", T.Buffer((channels, *window.kernel_size), target.dtype))
        b = T.arg("bias", T.Buffer((channels,), target.dtype)) if epilogue.bias else None

        def pixel(n: Any, c: Any, y: Any, column: Any) -> Expr:
            total = _scalar(T.float32(0) if b is None else T.Cast("float32", b[c]))

            def tap(i: Any, j: Any, value: Expr) -> None:
                product = T.Cast("float32", weight[c, i, j]) * value
                T.buffer_store(total, total[0] + product, [0])

            _for_each_tap(window, lambda e: x[n, c // multiplier, e], in_layout, (y, column), tap)
            return activate(total[0], epilogue.activation, 1)

        return pixel

    return _to_planes("depthwise_conv", batch, channels, out_layout, target, inputs)


def pixel_shuffle(
    batch: int,
    channels: int,
    in_layout: PlaneLayout,
    out_layout: PlaneLayout,
    phases: Phases,
    target: PlaneTarget,
) -> tirx.PrimFunc:
    """``(x planes, out planes)``: see :mod:`topi_kernels.pixel_shuffle`."""
    (sh, sw), (top, left) = phases.stride, phases.first

    def inputs() -> Pixel:
        x = plane_arg("x", batch, channels * sh * sw, in_layout, target)

        def pixel(n: Any, c: Any, y: Any, column: Any) -> Expr:
            row, col = y + top, column + left
            channel = (c * sh + row % sh) * sw + col % sw
            return x[n, channel, in_layout.element(row // sh, col // sw)]

        return pixel

    return _to_planes("pixel_shuffle", batch, channels, out_layout, target, inputs)
