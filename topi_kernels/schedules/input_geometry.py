"""Where the operator finds its input: the plane as it came, or rows and columns separated.

A convolution with stride 2 along the row needs every second column, so a vector of neighbouring
outputs has its inputs in two vectors and a shuffle. With ``shift = "split"`` each in_channel is
separated once per call into even and odd rows and columns, of which only those that a tap needs are
kept; from there on every tap reads neighbouring elements, as with stride 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.tirx.script import builder as T

from ..geometry import ConvGeometry
from ..layout import PlaneLayout, round_up
from ..pattern import Pattern
from ..vector import CACHE_LINE_FLOATS, lanes, shuffle
from ..workload import ConvWorkload
from .config import SPLIT_STRIDE, ConvConfig


@dataclass(frozen=True)
class InputGeometry:
    """Address arithmetic of an input plane; all figures in elements.

    Parameters
    ----------
    size, origin : int
        Elements of a plane, and offset of the input of output (0, 0)'s tap without padding.
    row_step, col_step : int
        Distance of the inputs of two neighbouring outputs.
    row_stride : int
        Distance of two rows.
    layout : PlaneLayout
        Of the plane as it came.
    reach : int
        Furthest column of a tap, left or right of the output's own.
    """

    size: int
    origin: int
    row_step: int
    col_step: int
    row_stride: int
    layout: PlaneLayout
    reach: int

    def offset(self, row: int, col: int) -> int:
        """Offset of the input ``(row, col)`` away from that of an output."""
        return row * self.row_stride + col

    def line(self, col: int) -> tuple[int, int]:
        """Part of the row and cache line in it that column ``col`` lies on."""
        return 0, col // CACHE_LINE_FLOATS


@dataclass(frozen=True)
class SplitGeometry(InputGeometry):
    """Separated rows and columns, kept where a tap needs them.

    ``row_phases`` and ``col_phases`` name the remainders modulo the stride that are stored,
    ``first_row`` the first stored row of each, ``rows`` and ``columns`` how many there are. A row
    holds the ``columns`` of each remainder, ``half`` apart; the last ``left`` elements of a half
    are zero, and stand for the columns left of the next part.
    """

    stride: tuple[int, int] = (1, 1)
    row_phases: tuple[int, ...] = (0,)
    col_phases: tuple[int, ...] = (0,)
    first_row: int = 0
    rows: int = 1
    columns: int = 1
    left: int = 0
    half: int = 1

    def offset(self, row: int, col: int) -> int:
        part = self.row_phases.index(row % self.stride[0])
        row_index = part * self.rows + row // self.stride[0]
        part = self.col_phases.index(col % self.stride[1])
        return row_index * self.row_stride + part * self.half + col // self.stride[1]

    def line(self, col: int) -> tuple[int, int]:
        return col % self.stride[1], col // self.stride[1] // CACHE_LINE_FLOATS


def plain_geometry(workload: ConvWorkload) -> InputGeometry:
    """The input plane as its producer wrote it."""
    layout, (sh, sw) = workload.in_layout, workload.geometry.stride
    stride, reach = layout.row_stride, column_reach(workload.patterns, workload.geometry)
    return InputGeometry(layout.size, layout.origin, sh * stride, sw, stride, layout, reach)


def column_reach(patterns: Sequence[Pattern], geometry: ConvGeometry) -> int:
    """Furthest column of a tap, left or right of the output's own."""
    taps = (tap for pattern in patterns for tap in pattern.taps)
    return max(abs(kw * geometry.dilation[1] - geometry.padding[1]) for _, kw in taps)


def split_geometry(workload: ConvWorkload, vector_width: int) -> SplitGeometry:
    """The smallest separated plane that holds every input of the convolution."""
    window = workload.geometry
    (sh, sw), (dh, dw), (pt, pl) = window.stride, window.dilation, window.padding
    taps = [tap for pattern in workload.patterns for tap in pattern.taps]
    rows = [kh * dh - pt for kh, _ in taps]
    cols = [kw * dw - pl for _, kw in taps]
    first_row = min(row // sh for row in rows)
    last_row = max(row // sh for row in rows) + workload.out_layout.height - 1
    columns = max(col // sw for col in cols) + workload.out_layout.width
    left = max(0, -min(col // sw for col in cols))
    align = vector_width
    while align > 4 and align > columns + left:
        align //= 2
    half = round_up(columns + left, align)
    row_phases = tuple(sorted({row % sh for row in rows}))
    col_phases = tuple(sorted({col % sw for col in cols}))
    row_stride = half * len(col_phases)
    count = last_row - first_row + 1
    origin = round_up(left, align) - first_row * row_stride
    size = round_up(left, align) + count * len(row_phases) * row_stride + 2 * vector_width
    if (size // align) % 2 == 0:  # planes of a power of two would share cache sets
        size += align
    return SplitGeometry(
        size,
        origin,
        row_stride,
        1,
        row_stride,
        workload.in_layout,
        column_reach(workload.patterns, workload.geometry),
        stride=(sh, sw),
        row_phases=row_phases,
        col_phases=col_phases,
        first_row=first_row,
        rows=count,
        columns=columns,
        left=left,
        half=half,
    )


def input_geometry(workload: ConvWorkload, config: ConvConfig) -> InputGeometry:
    """The geometry that ``config.shift`` reads from."""
    if config.shift == "split":
        return split_geometry(workload, config.vector_width)
    return plain_geometry(workload)


def _separate_row(
    x: Any, source: Any, out: Any, target: Any, pieces: list[tuple[int, int]], zeros: range
) -> None:
    """One row of one column remainder: every second element of ``pieces``, and zeros."""
    for first, width in pieces:
        start = source + first * SPLIT_STRIDE
        if width == 1:
            value = x[start]
        else:
            parts = [x[lanes(start, width)], x[lanes(start + width, width)]]
            value = shuffle(parts, range(0, SPLIT_STRIDE * width, SPLIT_STRIDE))
        T.buffer_store(out, value, [lanes(target + first, width)])
    for i in zeros:
        T.buffer_store(out, tirx.const(0.0, out.dtype), [target + i])


def _row_pieces(
    workload: ConvWorkload, geometry: SplitGeometry, width: int
) -> tuple[list[tuple[int, int]], range]:
    """``(first, width)`` of the vectors that fill a half row, and which elements to clear.

    Whole vectors read past the row, which is harmless inside the plane: only the elements that
    stand for columns left of the next part must be zero. At the end of memory the columns are
    read to the last one and no further.
    """
    layout = workload.in_layout
    last_row = (geometry.first_row + geometry.rows - 1) * geometry.stride[0]
    end = layout.origin + (last_row + max(geometry.row_phases)) * layout.row_stride
    end += max(geometry.col_phases) + SPLIT_STRIDE * geometry.half
    width = min(width, geometry.half)
    if end <= layout.size:
        whole = [(first, width) for first in range(0, geometry.half, width)]
        return whole, range(geometry.half - geometry.left, geometry.half)
    pieces, done = [], 0
    while done < geometry.columns:
        while width > geometry.columns - done:
            width //= 2
        pieces.append((done, width))
        done += width
    return pieces, range(geometry.columns, geometry.half)


def separate_input(
    workload: ConvWorkload, config: ConvConfig, geometry: SplitGeometry, x: Any, num_threads: int
) -> Any:
    """Emit the separation of the whole input and return the buffer that holds it."""
    layout, (sh, _) = workload.in_layout, geometry.stride
    planes = workload.batch * workload.in_channels
    out = T.alloc_buffer((planes * geometry.size,), workload.dtype, scope="global")
    parallel = T.parallel if num_threads != 1 else T.serial
    margin = geometry.origin + geometry.first_row * geometry.row_stride
    pieces, zeros = _row_pieces(workload, geometry, config.vector_width)
    with parallel(0, planes) as plane:
        base = T.Bind(plane * geometry.size)
        for i in range(margin):
            T.buffer_store(out, tirx.const(0.0, workload.dtype), [base + i])
        with T.serial(0, geometry.rows) as i:
            for part, row_phase in enumerate(geometry.row_phases):
                row = (i + geometry.first_row) * sh + row_phase
                first = geometry.first_row * sh + row_phase
                last = first + (geometry.rows - 1) * sh
                # One remainder's rows may begin or end before the other's; what stands for a row
                # beyond the padding is never used, but reading it would leave the plane.
                if first < -layout.pad:
                    row = T.max(row, -layout.pad)
                if last > layout.height + layout.pad - 1:
                    row = T.min(row, layout.height + layout.pad - 1)
                source = T.Bind(plane * layout.size + layout.origin + row * layout.row_stride)
                line = part * geometry.rows + i
                target = T.Bind(base + margin + line * geometry.row_stride)
                for half, col_phase in enumerate(geometry.col_phases):
                    start = target + half * geometry.half
                    _separate_row(x, source + col_phase, out, start, pieces, zeros)
    return out
