"""PrimFuncs on planes whose layouts differ: pack, unpack, elementwise and pooling.

Where :mod:`topi_kernels.plane_ops` walks along plain rows, the functions here read whole rows into
registers, in whatever order the layout has, and pick the lanes of every output vector from them.
That is slower by a few shuffles per vector and free of assumptions: any layout in, any layout out.
A convolution thus gets its input in the lanes it wants from an operator that is cheap anyway.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from functools import partial, reduce
from typing import Any

from tvm import tirx
from tvm.ir import Expr
from tvm.tirx.script import builder as T

from .channelwise import NAME, ChannelTerms, factors_of, parameters, value_of
from .geometry import ConvGeometry
from .layout import PlaneLayout
from .plane_ops import (
    Index,
    PlaneTarget,
    fill_above,
    fill_below,
    fill_right,
    for_each_plane,
    load,
    plane_arg,
    store,
    sum_of_lanes,
)
from .primfunc import primfunc_builder
from .row_gather import RowOperator
from .row_planes import Plane
from .row_writer import RowWriter
from .vector_math import activate, broadcast, maximum_of

PLANES, IMAGE = "planes", "image"
ONE_PIXEL = ConvGeometry((1, 1))


def _sum(vectors: Sequence[Expr], _lanes: int) -> Expr:
    return reduce(operator.add, vectors)


def _emit(
    name: str,
    batch: int,
    channels: int,
    inputs: Sequence[tuple[str, PlaneLayout]],
    out: tuple[str, PlaneLayout],
    target: PlaneTarget,
    window: ConvGeometry,
    combine: Callable,
    value: Callable | None,
    *,
    clamp: bool = False,
    declare: Callable[[], Callable[[Index, Index], Callable]] | None = None,
) -> tirx.PrimFunc:
    """An operator on rows; tensors of kind ``image`` are NCHW, ``planes`` have a layout.

    ``declare`` declares further parameters before the output, and gives what makes the ``value`` of
    a plane.
    """
    with primfunc_builder(name) as ib:
        names = [f"x{i}" if len(inputs) > 1 else "x" for i in range(len(inputs))]
        whole = [
            _argument(n, batch, channels, *tensor, target)
            for n, tensor in zip(names, inputs, strict=True)
        ]
        value_of_plane = None if declare is None else declare()
        whole.append(_argument("out", batch, channels, *out, target))
        *sources, result = [
            buffer if kind == PLANES else _flattened(buffer, batch, channels, layout)
            for buffer, (kind, layout) in zip(whole, [*inputs, out], strict=True)
        ]

        def plane(n: Index, c: Index) -> None:
            index = (n, c)
            planes = [
                Plane(buffer, index, layout, target.lanes)
                for buffer, (_, layout) in zip(sources, inputs, strict=True)
            ]
            target_plane = Plane(result, index, out[1], target.lanes)
            made = value if value_of_plane is None else value_of_plane(n, c)
            rows = RowOperator(planes, target_plane, window, clamp=clamp)
            _emit_plane(rows, combine, made, halo=out[0] == PLANES)

        for_each_plane(batch, channels, target, plane)
    return ib.get()


def _emit_plane(rows: RowOperator, combine: Callable, value: Any, *, halo: bool = True) -> None:
    """All rows of an output plane, and what lies around the image."""
    out = rows.out
    (n, c), layout, lanes = out.index, out.layout, out.lanes
    plain = halo and not layout.is_interleaved
    if plain:
        fill_above(out.buffer, [n, c], layout, lanes)
    rows.emit(combine, value)
    if layout.is_interleaved:
        RowWriter(out.buffer, 0, layout, out.index).clear_slack()
    if plain:
        with T.serial(0, layout.height) as y:
            fill_right(out.buffer, [n, c], layout, y, lanes)
        fill_below(out.buffer, [n, c], layout, lanes)


def copy_plane(
    x: tirx.Buffer,
    out: tirx.Buffer,
    layouts: tuple[PlaneLayout, PlaneLayout],
    target: PlaneTarget,
    source: tuple[Index, Index],
    result: tuple[Index, Index],
) -> None:
    """One plane in another order of pixels; ``source`` and ``result`` are batch and channel."""
    before, after = layouts
    planes = Plane(x, source, before, target.lanes), Plane(out, result, after, target.lanes)
    rows = RowOperator([planes[0]], planes[1], ONE_PIXEL, clamp=False)
    _emit_plane(rows, _sum, lambda taps, _counts, _pixels: taps[0][0])


def _argument(
    name: str, batch: int, channels: int, kind: str, layout: PlaneLayout, target: PlaneTarget
) -> tirx.Buffer:
    """A tensor argument: planes, or an NCHW image."""
    if kind == PLANES:
        return plane_arg(name, batch, channels, layout, target)
    shape = (batch, channels, layout.height, layout.width)
    return T.arg(name, T.Buffer(shape, target.dtype))


def _flattened(buffer: tirx.Buffer, batch: int, channels: int, layout: PlaneLayout) -> tirx.Buffer:
    """An NCHW image indexed ``[batch, channel, element]``, as planes are."""
    return T.decl_buffer((batch, channels, layout.size), str(buffer.dtype), data=buffer.data)


def image_layout(layout: PlaneLayout) -> PlaneLayout:
    """An NCHW image as plain rows without padding."""
    height, width = layout.height, layout.width
    return PlaneLayout(height, width, 0, width, 0, height * width)


def pack(batch: int, channels: int, layout: PlaneLayout, target: PlaneTarget) -> tirx.PrimFunc:
    """``(x[batch, channels, height, width], out planes)``."""
    tensors = (IMAGE, image_layout(layout)), (PLANES, layout)
    return _copy("pack_planes", batch, channels, tensors, target)


def unpack(batch: int, channels: int, layout: PlaneLayout, target: PlaneTarget) -> tirx.PrimFunc:
    """``(x planes, out[batch, channels, height, width])``."""
    tensors = (PLANES, layout), (IMAGE, image_layout(layout))
    return _copy("unpack_planes", batch, channels, tensors, target)


def _copy(
    name: str,
    batch: int,
    channels: int,
    tensors: tuple[tuple[str, PlaneLayout], tuple[str, PlaneLayout]],
    target: PlaneTarget,
) -> tirx.PrimFunc:
    """The same pixels in another order."""
    source, result = tensors
    return _emit(
        name,
        batch,
        channels,
        [source],
        result,
        target,
        ONE_PIXEL,
        _sum,
        lambda taps, _counts, _pixels: taps[0][0],
    )


def elementwise(
    batch: int,
    channels: int,
    in_layouts: tuple[PlaneLayout, ...],
    out_layout: PlaneLayout,
    target: PlaneTarget,
    operator_name: str = "add",
    activation: str = "none",
    bounds: tuple[float, float] = (0.0, 6.0),
) -> tirx.PrimFunc:
    """``(planes, ..., out planes)`` as :func:`topi_kernels.plane_ops.elementwise`, any layouts."""
    operators = {"add": operator.add, "multiply": operator.mul}

    def value(taps: list[list[Expr]], counts: list[int], _pixels: Any) -> Expr:
        folded = reduce(operators[operator_name], [tap[0] for tap in taps])
        return activate(
            T.Bind(folded), activation, len(counts), bounds, nan_maximum=target.nan_maximum
        )

    name = f"plane_{operator_name}" if len(in_layouts) > 1 else f"plane_{activation}"
    return _emit(
        name if (activation, len(in_layouts)) != ("none", 1) else "plane_change_layout",
        batch,
        channels,
        [(PLANES, layout) for layout in in_layouts],
        (PLANES, out_layout),
        target,
        ONE_PIXEL,
        _sum,
        value,
    )


def channelwise(
    batch: int,
    channels: int,
    in_layout: PlaneLayout,
    out_layout: PlaneLayout,
    terms: ChannelTerms,
    target: PlaneTarget,
) -> tirx.PrimFunc:
    """As :func:`topi_kernels.channelwise.channelwise`, any layouts."""

    def declare() -> Callable[[Index, Index], Callable]:
        buffers = parameters(terms, batch, channels, target)

        def value_of_plane(n: Index, c: Index) -> Callable:
            scalars = factors_of(terms, buffers, n, c)
            return lambda taps, counts, _pixels: value_of(
                terms, taps[0][0], scalars, len(counts), target
            )

        return value_of_plane

    return _emit(
        NAME,
        batch,
        channels,
        [(PLANES, in_layout)],
        (PLANES, out_layout),
        target,
        ONE_PIXEL,
        _sum,
        None,
        declare=declare,
    )


def max_pool(
    batch: int,
    channels: int,
    in_layout: PlaneLayout,
    out_layout: PlaneLayout,
    window: ConvGeometry,
    target: PlaneTarget,
) -> tirx.PrimFunc:
    """``(x planes, out planes)``: maximum of the window's pixels that lie inside the image.

    A row or column beyond the image is replaced by the nearest one inside, which the window
    covers too, so that it changes no maximum.
    """
    largest = partial(maximum_of, nan_maximum=target.nan_maximum)
    return _emit(
        "plane_max_pool",
        batch,
        channels,
        [(PLANES, in_layout)],
        (PLANES, out_layout),
        target,
        window,
        largest,
        lambda taps, counts, _pixels: largest(taps[0], len(counts)),
        clamp=True,
    )


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
    """``(x planes, out planes)``: mean of the window, see :func:`plane_windows.avg_pool`."""
    (kh, kw), sw, left = window.kernel_size, window.stride[1], window.padding[1]

    def size(rows: int, pixel: tuple[int, int] | None) -> int:
        if pixel is None or count_include_pad:
            return kh * kw
        first = pixel[1] * sw - left
        return max(1, rows * sum(0 <= first + k < in_layout.width for k in range(kw)))

    def value(taps: list[list[Expr]], counts: list[int], pixels: list) -> Expr:
        scales = [1.0 / size(rows, pixel) for rows, pixel in zip(counts, pixels, strict=True)]
        return T.Bind(reduce(operator.add, taps[0])) * _constants(scales)

    return _emit(
        "plane_avg_pool",
        batch,
        channels,
        [(PLANES, in_layout)],
        (PLANES, out_layout),
        target,
        window,
        _sum,
        value,
    )


def _constants(values: list[float]) -> Expr:
    if len(set(values)) == 1:
        return broadcast(values[0], len(values))
    scalars = [T.float32(value) for value in values]
    return tirx.Shuffle(scalars, [tirx.IntImm("int32", i) for i in range(len(values))])


def global_avg_pool(
    batch: int, channels: int, layout: PlaneLayout, target: PlaneTarget, *, keep_dims: bool = True
) -> tirx.PrimFunc:
    """``(x planes, out[batch, channels(, 1, 1)])``: mean over the image of interleaved lanes.

    Lanes without a pixel are zero, so all vectors of all rows are added.
    """
    lanes = layout.lanes
    with primfunc_builder("plane_global_avg_pool") as ib:
        x = plane_arg("x", batch, channels, layout, target)
        shape = (batch, channels, 1, 1) if keep_dims else (batch, channels)
        out = T.arg("out", T.Buffer(shape, target.dtype))

        def plane(n: Index, c: Index) -> None:
            total = T.alloc_buffer((lanes,), "float32", scope="global")
            store(total, broadcast(0.0, lanes), [0], lanes)
            with T.serial(0, layout.band_height) as row:
                vectors = [
                    load(x, [n, c, layout.vector_offset(row, column)], lanes)
                    for column in range(layout.columns)
                ]
                store(total, load(total, [0], lanes) + reduce(operator.add, vectors), [0], lanes)
            added = sum_of_lanes(T.Bind(load(total, [0], lanes)), lanes)
            mean = added * T.float32(1.0 / (layout.height * layout.width))
            store(out, mean, [n, c, 0, 0] if keep_dims else [n, c], 1)

        for_each_plane(batch, channels, target, plane)
    return ib.get()
