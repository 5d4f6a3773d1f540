"""PrimFuncs on planes that slide a window: max pool, average pool, depthwise convolution.

They follow the rules of :mod:`topi_kernels.plane_ops`. Rows are vectors of neighbouring outputs; a
stride of 2 loads two vectors and splits even from odd elements instead of gathering.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial, reduce

from tvm import tirx
from tvm.ir import Expr
from tvm.tirx.script import builder as T

from .geometry import ConvGeometry
from .layout import PlaneLayout
from .plane_ops import (
    Index,
    PlaneTarget,
    fill_above,
    fill_below,
    fill_right,
    for_each_plane,
    for_each_row,
    for_each_vector,
    load,
    plane_arg,
    store,
    widened,
)
from .primfunc import primfunc_builder
from .vector_math import activate, broadcast, maximum_of
from .workload import NO_EPILOGUE, Epilogue

SMALL_HEIGHT = 28

Combine = Callable[[Sequence[Expr]], Expr]


def sum_of(values: Sequence[Expr]) -> Expr:
    """Sum of vectors."""
    return reduce(operator.add, values)


@dataclass(frozen=True)
class DepthwiseConfig:
    """Register tile of the depthwise convolution: output rows that are computed together."""

    rows: int = 4

    def __post_init__(self) -> None:
        if not 1 <= self.rows <= 8:
            raise ValueError(f"rows must be in 1..8 to stay in registers, got {self.rows}")

    @classmethod
    def default(cls, height: int) -> DepthwiseConfig:
        """Taller tiles where they divide a small image: more reuse of the loaded rows."""
        return cls(7 if height % 7 == 0 and height <= SMALL_HEIGHT else 4)


def _over_read(window: ConvGeometry, lanes: int) -> int:
    """Elements beyond the last tap of the last lane that :func:`_columns` loads."""
    stride = window.stride[1]
    return 2 * lanes - 1 - 2 * (lanes - 1) if stride == 2 and lanes > 1 else 0


def _pick_lanes(
    window: ConvGeometry,
    in_layout: PlaneLayout,
    out_layout: PlaneLayout,
    lanes: int,
    top_row: int,
    bottom_row: int,
) -> int:
    """Widest vector for which every load stays inside the plane.

    Up to ``lanes``, a power of two; wider than the row only if the store may run into the padding.
    """
    width = out_layout.width
    lanes = min(lanes, 1 << (width - 1).bit_length())
    while lanes > 1:
        covered = max(width, lanes)
        last = (covered - 1) * window.stride[1] - window.padding[1] + window.reach[1]
        end = in_layout.offset(bottom_row, last + _over_read(window, lanes))
        fits = end < in_layout.size and in_layout.offset(top_row, -window.padding[1]) >= 0
        if lanes > width:
            fits &= out_layout.row_stride >= lanes
            fits &= out_layout.offset(out_layout.height - 1, lanes) <= out_layout.size
        if fits:
            return lanes
        lanes //= 2
    return 1


def _for_each_column_vector(width: int, lanes: int, body: Callable[[Index, int], None]) -> None:
    """Like ``for_each_vector``, but one vector wider than the row is allowed."""
    if lanes > width:
        body(0, lanes)
    else:
        for_each_vector(width, lanes, body)


def _columns(
    raw: Callable[[int], Expr], window: ConvGeometry, lanes: int, strided: Callable
) -> list[Expr]:
    """One vector per kernel column.

    ``raw(offset)`` is the contiguous vector that starts ``offset`` elements after the first tap;
    ``strided(offset)`` the same with the window's stride between the lanes.
    """
    offsets = [k * window.dilation[1] for k in range(window.kernel_size[1])]
    stride = window.stride[1]
    if stride == 1 or lanes == 1:
        return [T.Bind(raw(o)) for o in offsets]
    if stride != 2:
        return [T.Bind(strided(o)) for o in offsets]
    pairs = {}
    for o in sorted({o - o % 2 for o in offsets}):
        pairs[o] = (T.Bind(raw(o)), T.Bind(raw(o + lanes)))
    return [
        T.Bind(tirx.Shuffle(list(pairs[o - o % 2]), [o % 2 + 2 * i for i in range(lanes)]))
        for o in offsets
    ]


def _row_loader(
    x: tirx.Buffer,
    plane: list[Index],
    starts: list[Index],
    window: ConvGeometry,
    lanes: int,
    combine: Combine = sum_of,
) -> list[Expr]:
    """Kernel-column vectors of one or more input rows, rows folded by ``combine`` before."""

    def raw(offset: int) -> Expr:
        return combine([load(x, [*plane, s + offset], lanes) for s in starts])

    def strided(offset: int) -> Expr:
        step = window.stride[1]
        return combine(
            [
                widened(x[tuple(plane) + (T.ramp(s + offset, step, lanes),)], x, lanes)
                for s in starts
            ]
        )

    return _columns(raw, window, lanes, strided)


def _border_columns(
    window: ConvGeometry, in_width: int, out_width: int
) -> list[tuple[int, list[int]]]:
    """Output columns whose window leaves the image, each with its kernel columns inside."""
    result = []
    for ox in range(out_width):
        first = ox * window.stride[1] - window.padding[1]
        taps = [first + k * window.dilation[1] for k in range(window.kernel_size[1])]
        inside = [t for t in taps if 0 <= t < in_width]
        if len(inside) < len(taps):
            result.append((ox, inside))
    return result


def max_pool(
    batch: int,
    channels: int,
    in_layout: PlaneLayout,
    out_layout: PlaneLayout,
    window: ConvGeometry,
    target: PlaneTarget,
) -> tirx.PrimFunc:
    """``(x planes, out planes)``: maximum of the window's pixels that lie inside the image.

    NaN if one of them is NaN.

    Raises
    ------
    ValueError
        If the window is dilated or some window covers no pixel of the image.

    Notes
    -----
    Rows are clamped to the image, which changes no maximum because a clamped row is one of the
    window's own. Columns that reach the padding are computed a second time, one by one, since the
    zeros there are no neutral element of the maximum.
    """
    if window.dilation != (1, 1):
        raise ValueError(f"max_pool takes no dilation, got {window.dilation}")
    (kh, _), (sh, sw), (top, left) = window.kernel_size, window.stride, window.padding
    last = in_layout.height - 1
    lanes = _pick_lanes(window, in_layout, out_layout, target.lanes, 0, last)
    borders = _border_columns(window, in_layout.width, out_layout.width)
    if any(not inside for _, inside in borders):
        raise ValueError(
            f"{window} has outputs that see no pixel of an image {in_layout.width} pixels wide"
        )
    largest = partial(maximum_of, nan_maximum=target.nan_maximum)
    with primfunc_builder("plane_max_pool") as ib:
        x = plane_arg("x", batch, channels, in_layout, target)
        out = plane_arg("out", batch, channels, out_layout, target)

        def row(n: Index, c: Index, y: Index) -> None:
            rows = [y * sh - top + k * window.dilation[0] for k in range(kh)]
            starts = [T.Bind(in_layout.offset(T.max(T.min(r, last), 0), 0)) for r in rows]

            def vector(at: Index, width: int) -> None:
                first = [s + (at * sw - left) for s in starts]
                columns = _row_loader(
                    x, [n, c], first, window, width, partial(largest, lanes=width)
                )
                value = largest(columns, lanes=width)
                store(out, value, [n, c, out_layout.offset(y, at)], width)

            _for_each_column_vector(out_layout.width, lanes, vector)
            for ox, inside in borders:
                pixels = [load(x, [n, c, s + ix], 1) for s in starts for ix in inside]
                store(out, largest(pixels, lanes=1), [n, c, out_layout.offset(y, ox)], 1)

        _emit_rows(batch, channels, out, out_layout, target, row)
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
    """``(x planes, out planes)``: mean of the window; the zero padding adds nothing to the sum.

    With ``count_include_pad`` the sum is divided by the window's size, else by its pixels inside
    the image.

    Raises
    ------
    ValueError
        If the input planes have less padding than the window reads.
    """
    (kh, kw), (sh, sw), (top, left) = window.kernel_size, window.stride, window.padding
    bottom = (out_layout.height - 1) * sh - top + window.reach[0]
    right = (out_layout.width - 1) * sw - left + window.reach[1]
    below, beside = bottom - in_layout.height + 1, right - in_layout.width + 1
    if reason := in_layout.lacks(max(top, below), max(left, beside)):
        raise ValueError(reason)
    lanes = _pick_lanes(window, in_layout, out_layout, target.lanes, -top, bottom)
    borders = _border_columns(window, in_layout.width, out_layout.width)
    with primfunc_builder("plane_avg_pool") as ib:
        x = plane_arg("x", batch, channels, in_layout, target)
        out = plane_arg("out", batch, channels, out_layout, target)

        def row(n: Index, c: Index, y: Index) -> None:
            rows = [y * sh - top + k * window.dilation[0] for k in range(kh)]
            starts = [T.Bind(in_layout.offset(r, 0)) for r in rows]
            if count_include_pad:
                count = T.float32(kh)
            else:
                inside = [tirx.all(r >= 0, r < in_layout.height) for r in rows]
                count = T.Bind(sum((T.Cast("float32", i) for i in inside), T.float32(0)))

            def vector(at: Index, width: int) -> None:
                first = [s + (at * sw - left) for s in starts]
                columns = _row_loader(x, [n, c], first, window, width)
                scale = T.Bind(T.float32(1) / (count * T.float32(kw)))
                value = sum_of(columns) * broadcast(scale, width)
                store(out, value, [n, c, out_layout.offset(y, at)], width)

            _for_each_column_vector(out_layout.width, lanes, vector)
            for ox, inside_x in [] if count_include_pad else borders:
                pixels = [load(x, [n, c, s + ix], 1) for s in starts for ix in inside_x]
                value = sum_of(pixels) / (count * T.float32(len(inside_x)))
                store(out, value, [n, c, out_layout.offset(y, ox)], 1)

        _emit_rows(batch, channels, out, out_layout, target, row)
    return ib.get()


def _emit_rows(
    batch: int,
    channels: int,
    out: tirx.Buffer,
    layout: PlaneLayout,
    target: PlaneTarget,
    row: Callable[[Index, Index, Index], None],
) -> None:
    """All planes, row by row, with the zeros around the image."""

    def plane(n: Index, c: Index) -> None:
        for_each_row(out, [n, c], layout, target.lanes, partial(row, n, c))

    for_each_plane(batch, channels, target, plane)


@dataclass(frozen=True)
class DepthwisePlane:
    """How one plane of a depthwise convolution is computed.

    Parameters
    ----------
    in_layout, out_layout : PlaneLayout
    window : ConvGeometry
    target : PlaneTarget
    epilogue : Epilogue
    config : DepthwiseConfig, optional
        ``rows`` output rows are computed together so that they share the loaded input rows; all
        taps are unrolled and the accumulators live in registers.

    Raises
    ------
    ValueError
        If the input planes have less padding than the window reads.
    """

    in_layout: PlaneLayout
    out_layout: PlaneLayout
    window: ConvGeometry
    target: PlaneTarget
    epilogue: Epilogue = NO_EPILOGUE
    config: DepthwiseConfig | None = None

    def __post_init__(self) -> None:
        (bottom, right), (top, left) = self._ends, self.window.padding
        below, beside = bottom - self.in_layout.height + 1, right - self.in_layout.width + 1
        if reason := self.in_layout.lacks(max(top, below), max(left, beside)):
            raise ValueError(reason)

    @property
    def _ends(self) -> tuple[int, int]:
        """Last row and column of the input that are read."""
        extents = (self.out_layout.height, self.out_layout.width)
        window = self.window
        parts = zip(extents, window.stride, window.padding, window.reach, strict=True)
        bottom, right = ((n - 1) * step - pad + reach for n, step, pad, reach in parts)
        return bottom, right

    @property
    def lanes(self) -> int:
        """Lanes of its vectors."""
        top, bottom = -self.window.padding[0], self._ends[0]
        wanted = self.target.lanes
        return _pick_lanes(self.window, self.in_layout, self.out_layout, wanted, top, bottom)

    def emit(
        self,
        source: tuple[tirx.Buffer, list[Index]],
        result: tuple[tirx.Buffer, list[Index]],
        weight: tirx.Buffer,
        bias: tirx.Buffer | None,
        c: Index,
    ) -> None:
        """Compute out_channel ``c``; source and result are planes and the indices of one."""
        (x, at_x), (out, at_out) = source, result
        layout, lanes, window = self.out_layout, self.lanes, self.window
        (kh, _), (sh, _), (top, left) = window.kernel_size, window.stride, window.padding
        config = self.config or DepthwiseConfig.default(layout.height)
        rows = min(config.rows, layout.height)

        def vector(y0: Index, at: Index, width: int) -> None:
            start = broadcast(0.0 if bias is None else load(bias, [c], 1), width)
            acc = [start] * rows
            for r in range((rows - 1) * sh + window.reach[0] + 1):
                uses = [
                    (i, ky)
                    for i in range(rows)
                    for ky in range(kh)
                    if i * sh + ky * window.dilation[0] == r
                ]
                if not uses:
                    continue
                first = self.in_layout.offset(y0 * sh - top + r, at * window.stride[1] - left)
                columns = _row_loader(x, at_x, [first], window, width)
                for i, ky in uses:
                    for kx, column in enumerate(columns):
                        tap = broadcast(load(weight, [c, ky, kx], 1), width)
                        acc[i] = T.Bind(acc[i] + tap * column)
            for i, value in enumerate(acc):
                value = activate(
                    value,
                    self.epilogue.activation,
                    width,
                    nan_maximum=self.target.nan_maximum,
                )
                store(out, value, [*at_out, layout.offset(y0 + i, at)], width)

        fill_above(out, at_out, layout, self.target.lanes)
        with T.serial(0, -(-layout.height // rows)) as t:
            y0 = T.Bind(T.min(t * rows, layout.height - rows))
            _for_each_column_vector(layout.width, lanes, partial(vector, y0))
            for i in range(rows):
                fill_right(out, at_out, layout, y0 + i, self.target.lanes)
        fill_below(out, at_out, layout, self.target.lanes)


def depthwise_conv(
    batch: int,
    channels: int,
    in_layout: PlaneLayout,
    out_layout: PlaneLayout,
    window: ConvGeometry,
    target: PlaneTarget,
    epilogue: Epilogue = NO_EPILOGUE,
    multiplier: int = 1,
    config: DepthwiseConfig | None = None,
) -> tirx.PrimFunc:
    """``(x planes, weight[channels, kh, kw], bias[channels] if bias, out planes)``.

    Out_channel ``c`` reads in_channel ``c // multiplier``; see :class:`DepthwisePlane`.

    Raises
    ------
    ValueError
        If the input planes have less padding than the window reads, or channels are not a multiple
        of ``multiplier``.
    """
    computed = DepthwisePlane(in_layout, out_layout, window, target, epilogue, config)
    if channels % multiplier:
        raise ValueError(f"{channels} out_channels are no multiple of the multiplier {multiplier}")
    with primfunc_builder("plane_depthwise_conv") as ib:
        x = plane_arg("x", batch, channels // multiplier, in_layout, target)
        shape = (channels, *window.kernel_size)
        weight = T.arg("weight", T.Buffer(shape, target.dtype))
        b = T.arg("bias", T.Buffer((channels,), target.dtype)) if epilogue.bias else None
        out = plane_arg("out", batch, channels, out_layout, target)

        def plane(n: Index, c: Index) -> None:
            source = c if multiplier == 1 else c // multiplier
            computed.emit((x, [n, source]), (out, [n, c]), weight, b, c)

        for_each_plane(batch, channels, target, plane)
    return ib.get()
