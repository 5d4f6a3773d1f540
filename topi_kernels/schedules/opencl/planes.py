"""Operators on planes for OpenCL devices: pack, unpack, elementwise, pooling, depthwise.

Same arguments as :mod:`topi_kernels.plane_ops` and :mod:`topi_kernels.plane_windows`. One work_item
writes one vector of an output plane, halo included: whole planes are written in one launch, and
neighbouring work_items write neighbouring vectors.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import reduce
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script import builder as T

from ...channelwise import NAME, ChannelTerms
from ...geometry import ConvGeometry
from ...layout import PlaneLayout
from ...plane_ops import PlaneTarget
from ...primfunc import primfunc_builder
from ...vector import constant, lanes
from .halo import Stored, activated, store_vector
from .vectors import converted, launch, load_any, together, zeros

WIDTH = 4
WORK_ITEMS = 64
"""Of a work_group, where the target allows as many."""

Body = Callable[[Any, Any, Any], Any]


@contextmanager
def opened(name: str, dtype: str, **shapes: Sequence[int]) -> Iterator[tuple[Any, list[Any]]]:
    """Open a PrimFunc with parameters of these names, each flattened to one dimension.

    Its body is a root block, which Relax's search for reshapes expects.
    """
    with primfunc_builder(name) as builder:
        wholes = [T.arg(key, T.Buffer(tuple(shape), dtype)) for key, shape in shapes.items()]
        with T.sblock("root"):
            flat = [
                IRBuilder.name(key, T.decl_buffer((math.prod(shape),), dtype, data=whole.data))
                for (key, shape), whole in zip(shapes.items(), wholes, strict=True)
            ]
            yield builder, flat


def work_items(count: int, target: PlaneTarget, body: Callable[[Any], None]) -> None:
    """Launch ``body(number)`` for ``count`` work_items."""
    size = min(WORK_ITEMS, target.max_work_items or WORK_ITEMS)
    with launch((-(-count // size), 1, 1), (size, 1)) as (block, item):
        number = T.Bind(block[0] * size + item[0])
        if count % size == 0:
            body(number)
        else:
            with T.If(number < count), T.Then():
                body(number)


def write_planes(
    planes: int, layout: PlaneLayout, out: Any, target: PlaneTarget, body: Body
) -> None:
    """Write whole planes: ``body(plane, row, column)`` gives the vector at a pixel, in float32."""
    vectors = layout.size // WIDTH
    above = -(-layout.origin // layout.row_stride)
    dtype = target.dtype
    what = Stored(layout, dtype)

    def vector(number: Any) -> None:
        plane, place = T.Bind(number // vectors), T.Bind(number % vectors)
        # Counted from so far above the image that no division is of a negative number.
        element = T.Bind(place * WIDTH + (above * layout.row_stride - layout.origin))
        row = T.Bind(element // layout.row_stride - above)
        column = T.Bind(element % layout.row_stride)
        start = T.Bind(number * WIDTH)
        inside = tirx.all(row >= 0, row < layout.height, column < layout.width)
        with T.If(inside):
            with T.Then():
                value = T.Bind(converted(body(plane, row, column), "float32", dtype, WIDTH))
                is_last = column + WIDTH > layout.width
                store_vector(what, out, start, value, WIDTH, is_last)
            with T.Else():
                T.buffer_store(out, zeros(dtype, WIDTH), [lanes(start, WIDTH)])

    work_items(planes * vectors, target, vector)


def scalars(buffer: Any, places: Sequence[Any]) -> Any:
    """A float32 vector of elements that are loaded one by one."""
    dtype = str(buffer.dtype)
    return together([converted(buffer[place], dtype, "float32", 1) for place in places])


def vector_at(buffer: Any, layout: PlaneLayout, plane: Any, row: Any, column: Any) -> Any:
    """The float32 vector of a plane that begins at a pixel."""
    start = plane * layout.size + layout.origin + row * layout.row_stride + column
    return converted(load_any(buffer, start, WIDTH), str(buffer.dtype), "float32", WIDTH)


def pack(batch: int, channels: int, layout: PlaneLayout, target: PlaneTarget) -> tirx.PrimFunc:
    """``(x[batch, channels, height, width], out planes)``: NCHW to planes."""
    height, width = layout.height, layout.width
    with opened(
        "pack_planes",
        target.dtype,
        x=(batch, channels, height, width),
        out=(batch, channels, layout.size),
    ) as (ib, (x, out)):

        def body(plane: Any, row: Any, column: Any) -> Any:
            start = T.Bind((plane * height + row) * width)
            return scalars(x, [start + T.min(column + i, width - 1) for i in range(WIDTH)])

        write_planes(batch * channels, layout, out, target, body)
    return ib.get()


def unpack(batch: int, channels: int, layout: PlaneLayout, target: PlaneTarget) -> tirx.PrimFunc:
    """``(x planes, out[batch, channels, height, width])``: planes to NCHW."""
    pixels = layout.height * layout.width
    with opened(
        "unpack_planes",
        target.dtype,
        x=(batch, channels, layout.size),
        out=(batch, channels, layout.height, layout.width),
    ) as (ib, (x, out)):

        def element(number: Any) -> None:
            plane, pixel = T.Bind(number // pixels), T.Bind(number % pixels)
            row, column = pixel // layout.width, pixel % layout.width
            source = plane * layout.size + layout.origin + row * layout.row_stride + column
            T.buffer_store(out, x[source], [number])

        work_items(batch * channels * pixels, target, element)
    return ib.get()


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
    """``(planes, ..., out planes)``: see :func:`topi_kernels.plane_ops.elementwise`."""
    operators = {"add": lambda a, b: a + b, "multiply": lambda a, b: a * b}
    if operator not in operators:
        raise ValueError(
            f"elementwise operator {operator!r} is unknown; expected one of {sorted(operators)}"
        )
    name = f"plane_{operator}" if len(in_layouts) > 1 else f"plane_{activation}"
    shapes = {f"x{i}": (batch, channels, y.size) for i, y in enumerate(in_layouts)}
    shapes["out"] = (batch, channels, out_layout.size)
    with opened(name, target.dtype, **shapes) as (ib, (*inputs, out)):

        def body(plane: Any, row: Any, column: Any) -> Any:
            sources = zip(inputs, in_layouts, strict=True)
            values = [vector_at(x, layout, plane, row, column) for x, layout in sources]
            value = T.Bind(reduce(operators[operator], values))
            return activated(value, activation, "float32", WIDTH, bounds)

        write_planes(batch * channels, out_layout, out, target, body)
    return ib.get()


def channelwise(
    batch: int,
    channels: int,
    in_layout: PlaneLayout,
    out_layout: PlaneLayout,
    terms: ChannelTerms,
    target: PlaneTarget,
) -> tirx.PrimFunc:
    """As :func:`topi_kernels.channelwise.channelwise`."""
    shapes = {
        "x": (batch, channels, in_layout.size),
        **terms.sizes(batch, channels),
        "out": (batch, channels, out_layout.size),
    }
    with opened(NAME, target.dtype, **shapes) as (ib, (x, *buffers, out)):
        named = dict(zip(terms.sizes(batch, channels), buffers, strict=True))

        def factor(name: str, plane: Any) -> Any:
            place = plane if batch == 1 else plane % channels
            if name == "gate" and terms.gate is not None:
                place = plane * terms.gate.size + terms.gate.element(0, 0)
            scalar = converted(named[name][place], target.dtype, "float32", 1)
            return T.broadcast(T.Bind(scalar), WIDTH)

        def body(plane: Any, row: Any, column: Any) -> Any:
            value = vector_at(x, in_layout, plane, row, column)
            factors = {name: factor(name, plane) for name in named}
            return terms.apply(
                value,
                factors,
                lambda v: activated(v, terms.activation, "float32", WIDTH, terms.bounds),
                WIDTH,
                scope="local",
            )

        write_planes(batch * channels, out_layout, out, target, body)
    return ib.get()


def _larger(first: Any, second: Any) -> Any:
    """Maximum of vectors; NaN where one of them is."""
    is_number = second <= constant(math.inf, WIDTH)
    return T.Select(is_number, T.Select(first < second, second, first), second)


def max_pool(
    batch: int,
    channels: int,
    in_layout: PlaneLayout,
    out_layout: PlaneLayout,
    window: ConvGeometry,
    target: PlaneTarget,
) -> tirx.PrimFunc:
    """``(x planes, out planes)``: see :func:`topi_kernels.plane_windows.max_pool`.

    Taps outside the image read the nearest pixel inside, which is one of the window's own.
    """
    if window.dilation != (1, 1):
        raise ValueError(f"max_pool takes no dilation, got {window.dilation}")
    (kh, kw), (sh, sw), (top, left) = window.kernel_size, window.stride, window.padding
    height, width = in_layout.height, in_layout.width
    with opened(
        "plane_max_pool",
        target.dtype,
        x=(batch, channels, in_layout.size),
        out=(batch, channels, out_layout.size),
    ) as (ib, (x, out)):

        def body(plane: Any, row: Any, column: Any) -> Any:
            # A variable: TVM copies what is bound into its uses, 2^9 times in a nested maximum.
            largest = T.alloc_buffer((1,), f"float32x{WIDTH}", scope="local")
            for ky in range(kh):
                y = T.max(T.min(row * sh + (ky - top), height - 1), 0)
                first = plane * in_layout.size + in_layout.origin + y * in_layout.row_stride
                start = T.Bind(first)
                for kx in range(kw):
                    at = [column * sw + (i * sw + kx - left) for i in range(WIDTH)]
                    places = [start + T.max(T.min(a, width - 1), 0) for a in at]
                    value = T.Bind(scalars(x, places))
                    if ky or kx:
                        value = _larger(largest[0], value)
                    T.buffer_store(largest, value, [0])
            return largest[0]

        write_planes(batch * channels, out_layout, out, target, body)
    return ib.get()


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
    """``(x planes, out planes)``: see :func:`topi_kernels.plane_windows.avg_pool`."""
    (kh, kw), (sh, sw), (top, left) = window.kernel_size, window.stride, window.padding
    bottom = (out_layout.height - 1) * sh - top + window.reach[0]
    right = (out_layout.width - 1) * sw - left + window.reach[1]
    below, beside = bottom - in_layout.height + 1, right - in_layout.width + 1
    if reason := in_layout.lacks(max(top, below), max(left, beside)):
        raise ValueError(reason)

    def inside(first: Any, taps: int, size: int) -> Any:
        """Taps of a window that lie in the image."""
        if count_include_pad:
            return T.float32(taps)
        return T.Cast("float32", T.min(first + taps, size) - T.max(first, 0))

    with opened(
        "plane_avg_pool",
        target.dtype,
        x=(batch, channels, in_layout.size),
        out=(batch, channels, out_layout.size),
    ) as (ib, (x, out)):

        def body(plane: Any, row: Any, column: Any) -> Any:
            y = T.Bind(row * sh - top)
            # Lanes beyond the image are cut off; they must not read beyond the plane.
            x0 = [T.Bind(T.min(column + i, out_layout.width - 1) * sw - left) for i in range(WIDTH)]
            total = zeros("float32", WIDTH)
            for ky in range(kh):
                start = plane * in_layout.size + in_layout.origin + (y + ky) * in_layout.row_stride
                for kx in range(kw):
                    total = T.Bind(total + scalars(x, [start + at + kx for at in x0]))
            rows = inside(y, kh, in_layout.height)
            counts = [T.Bind(rows * inside(x0[i], kw, in_layout.width)) for i in range(WIDTH)]
            return total / together(counts)

        write_planes(batch * channels, out_layout, out, target, body)
    return ib.get()


def global_avg_pool(
    batch: int, channels: int, layout: PlaneLayout, target: PlaneTarget, *, keep_dims: bool = True
) -> tirx.PrimFunc:
    """``(x planes, out[batch, channels(, 1, 1)])``: mean over the image, one work_item a plane."""
    vectors = -(-layout.width // WIDTH)
    name, shape = (
        "plane_global_avg_pool",
        (batch, channels, 1, 1) if keep_dims else (batch, channels),
    )
    with opened(name, target.dtype, x=(batch, channels, layout.size), out=shape) as (ib, (x, out)):

        def plane(number: Any) -> None:
            total = T.alloc_buffer((1,), f"float32x{WIDTH}", scope="local")
            T.buffer_store(total, zeros("float32", WIDTH), [0])
            with T.serial(0, layout.height) as row, T.serial(0, vectors) as v:
                value = vector_at(x, layout, number, row, v * WIDTH)
                T.buffer_store(total, total[0] + value, [0])
            parts = [tirx.Shuffle([total[0]], [tirx.IntImm("int32", i)]) for i in range(WIDTH)]
            mean = reduce(lambda a, b: a + b, parts) * T.float32(
                1.0 / (layout.height * layout.width)
            )
            T.buffer_store(out, converted(mean, "float32", target.dtype, 1), [number])

        work_items(batch * channels, target, plane)
    return ib.get()
