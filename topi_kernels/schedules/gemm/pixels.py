"""Kernels of one tap: a position is a pixel, and there is one product."""

from __future__ import annotations

from typing import Any

from tvm.tirx.script import builder as T

from ...geometry import ConvGeometry
from ...layout import PlaneLayout
from ...vector import lanes
from ..tile_outputs import zero_range
from .operands import PIECE, Operands


class Pixels(Operands):
    """Blocks of whole rows of the output; a step is ``PIECE`` pixels of a row."""

    @property
    def rows(self) -> int:
        """Rows of a block."""
        return self.positions // self.workload.out_layout.width

    @property
    def blocks(self) -> int:
        return -(-self.workload.out_layout.height // self.rows)

    @property
    def _pieces(self) -> int:
        return -(-self.workload.out_layout.width // PIECE)

    @property
    def steps(self) -> int:
        return self.rows * self._pieces

    def _place(self, block: Any, step: Any) -> tuple[Any, Any, Any]:
        """Row of the image, column, and position in the block, of a step's first pixel.

        The last block and the last piece of a row are moved back to end with the image.
        """
        layout = self.workload.out_layout
        row = T.Bind(step // self._pieces)
        column = T.Bind(T.min(step % self._pieces * PIECE, layout.width - PIECE))
        first = T.min(block * self.rows, layout.height - self.rows)
        return T.Bind(first + row), column, T.Bind(row * layout.width + column)

    def gather(self, held: Any, batch: Any, block: Any, step: Any) -> None:
        w = self.workload
        stride, layout = w.geometry.stride, w.in_layout
        row, column, position = self._place(block, step)
        inside = layout.origin + row * (stride[0] * layout.row_stride) + column * stride[1]
        origin = T.Bind(batch * (w.in_channels * layout.size) + inside)
        count, first_of = self.channel_starts()
        with T.serial(0, count) as number:
            first = T.Bind(first_of(number))
            for k, value in enumerate(self.channel_lanes(origin, first, stride[1])):
                start = (position + k) * self.depth + first
                T.buffer_store(held, value, [lanes(start, self.width)])

    def scatter(self, results: Any, batch: Any, block: Any, step: Any, filters: Any) -> None:
        offset, first = filters
        row, column, position = self._place(block, step)
        bias = self.bias(first)
        values = []
        for k in range(PIECE):
            start = (position + k) * self.config.group + offset
            values.append(T.Bind(results[lanes(start, self.width)] + bias))
        self.store_pieces(values, batch, first, [(row, column)])
        layout = self.workload.out_layout
        gap = layout.row_stride - layout.width
        if not gap:
            return
        with T.If(column == layout.width - PIECE), T.Then():
            count = min(self.width, self.workload.out_channels)
            with T.serial(0, count) as i:
                plane = (batch * self.workload.out_channels + first + i) * layout.size
                start = plane + layout.origin + row * layout.row_stride + layout.width
                zero_range(self.buffers.out, T.Bind(start), gap, self.width)


def why_no_pixels(geometry: ConvGeometry, source: PlaneLayout, layout: PlaneLayout) -> str | None:
    """Why a convolution's pixels cannot be taken in pieces of a row, or None."""
    if geometry.kernel_size != (1, 1) or geometry.padding != (0, 0):
        return "body gemm is for kernels of one tap without padding"
    if layout.width < PIECE:
        return f"rows of {layout.width} pixels are shorter than a piece of {PIECE}"
    (down, along), (height, width) = geometry.stride, (layout.height, layout.width)
    if along > 2:
        return f"body gemm reads every or every second pixel of a row, stride {along} is neither"
    last = source.origin + (height - 1) * down * source.row_stride + width * along - 1
    if last >= source.size:
        return "pairs of inputs reach beyond the plane"
    return None
