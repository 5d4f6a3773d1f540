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
                plane = (n * w.in_channels + channel[0]) * w.in_layout.size + w.in_layout.origin
                first = k if uniform else k - begin
                base = first * (len(pattern) * w.group) + (0 if uniform else weight)
                for t, (kh, kw) in enumerate(pattern.taps):
                    row = (y * sh + kh * dh - pt) * w.in_layout.row_stride
                    value = b.x[plane + row + x * sw + kw * dw - pl]
                    product = b.weights[base + t * w.group + j] * value
                    T.buffer_store(total, total[0] + product, [0])
            if not uniform:
                weight = T.Bind(weight + (end - begin) * (len(pattern) * w.group))
            begin = end
        value = total[0]
        if w.residual_layout is not None and b.residual is not None:
            r = w.residual_layout
            inside = r.origin + y * r.row_stride + x
            value = value + b.residual[(n * w.out_channels + slot) * r.size + inside]
        o = w.out_layout
        inside = o.origin + y * o.row_stride + x
        # Activations are written for float32, also where the sum is of a narrower type.
        result = activate(value.astype("float32"), w.epilogue.activation, 1).astype(w.dtype)
        T.buffer_store(b.out, result, [(n * w.out_channels + slot) * o.size + inside])


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
    return builder.get()
