"""The operator written naively: the specification every schedule is held against.

``out[n, o, p] = act(bias[o] + sum over kernels (o, i) and taps t of W[o, i, t] * x[n, i, p + t]
+ residual[n, o, p])``, reading weights in FKW order. No blocking, no vectors, any target.
"""

from __future__ import annotations

from typing import Any

from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script import builder as T

from .schedules.tile import Buffers, declare_parameters
from .vector_math import activate
from .workload import ConvWorkload


def _output_element(w: ConvWorkload, b: Buffers, where: tuple[Any, Any, Any, Any, Any]) -> None:
    n, g, j, y, x = where
    shape = w.geometry
    (sh, sw), (dh, dw), (pt, pl) = shape.stride, shape.dilation, shape.padding
    slot = T.Bind(T.Cast("int32", b.filter_order[g * w.group + j]))
    delta = w.index_encoding == "delta8"
    with T.If(slot < w.out_channels), T.Then():
        total = T.alloc_buffer((1,), w.dtype, scope="global")
        channel = T.alloc_buffer((1,), "int32", scope="global")
        start = tirx.const(0.0, w.dtype) if b.bias is None else b.bias[slot]
        T.buffer_store(total, start, [0])
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
                for t, (kh, kw) in enumerate(pattern.taps):
                    row, column = y * sh + kh * dh - pt, x * sw + kw * dw - pl
                    value = _input(w, b, plane, row, column)
                    product = b.weights[base + t * w.group + j] * value
                    T.buffer_store(total, total[0] + product, [0])
            if not uniform:
                weight = T.Bind(weight + (end - begin) * (len(pattern) * w.group))
            begin = end
        value = total[0]
        if w.residual_layout is not None and b.residual is not None:
            r = w.residual_layout
            value = value + b.residual[(n * w.out_channels + slot) * r.size + r.element(y, x)]
        o = w.out_layout
        # Activations are written for float32, also where the sum is of a narrower type.
        result = activate(value.astype("float32"), w.epilogue.activation, 1).astype(w.dtype)
        T.buffer_store(b.out, result, [(n * w.out_channels + slot) * o.size + o.element(y, x)])


def _input(w: ConvWorkload, b: Buffers, plane: Any, row: Any, column: Any) -> Any:
    """One input; the padding of plain rows is there to be read, that of others is a zero."""
    layout = w.in_layout
    if not layout.is_interleaved:
        return b.x[plane + layout.element(row, column)]
    inside = tirx.all(row >= 0, row < layout.height, column >= 0, column < layout.width)
    # The condition keeps the address in the plane, whatever is evaluated first.
    safe = layout.element(T.Select(inside, row, 0), T.Select(inside, column, 0))
    return T.Select(inside, b.x[plane + safe], tirx.const(0.0, w.dtype))


def _copy_edges(w: ConvWorkload, b: Buffers) -> None:
    """Interleaved lanes: the copies above and below bands, and beside rows."""
    o = w.out_layout
    rows, columns = o.band_height + 2 * o.pad, o.columns + 2 * o.border
    with (
        T.serial(0, w.batch * w.out_channels) as plane,
        T.serial(0, rows) as i,
        T.serial(0, columns) as j,
        T.serial(0, o.lanes) as lane,
    ):
        row, column = i - o.pad, j - o.border
        y = lane // o.band_lanes * o.band_height + row
        x = lane % o.band_lanes * o.columns + column
        inside = tirx.all(y >= 0, y < o.height, x >= 0, x < o.width)
        at_home = tirx.all(row >= 0, row < o.band_height, column >= 0, column < o.columns)
        with T.If(tirx.all(inside, tirx.Not(at_home))), T.Then():
            target = plane * o.size + o.vector_offset(row, column) + lane
            T.buffer_store(b.out, b.out[plane * o.size + o.element(y, x)], [target])


def naive_pattern_conv(workload: ConvWorkload) -> tirx.PrimFunc:
    """The operator as plain loops.

    Returns
    -------
    tvm.tirx.PrimFunc
        Same parameters as :func:`~topi_kernels.schedules.pattern_conv.schedule_pattern_conv`.
    """
    w = workload
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name("pattern_conv2d_naive")
        T.func_attr({"tirx.noalias": True})
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
            _copy_edges(w, b)
    return builder.get()
