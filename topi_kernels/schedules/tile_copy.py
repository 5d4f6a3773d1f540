"""The input of a block of in_channels, copied so that what a tile reads lies side by side.

A kernel of one tap reads the same vectors of a tile for every filter. Where they lie in the plane,
rows apart and planes of a power of two apart, they share few sets of the nearest cache, and with a
stride every one is put together from two. Copied once per tile and block, a kernel's input is one
run of whole vectors, and its address the in_channel times a constant.
"""

from __future__ import annotations

from typing import Any

from tvm.tirx.script import builder as T

from ..geometry import ConvGeometry
from ..vector import lanes
from ..workload import ConvWorkload
from .config import ConvConfig
from .load_reuse import tap_inputs
from .tile import Buffers, Place
from .tile_inputs import Bases, InputLoader


def copied_floats(config: ConvConfig) -> int:
    """Elements of one in_channel of a copied tile."""
    return config.tile_rows * config.tile_cols * config.vector_width


def why_not_copied(geometry: ConvGeometry) -> str | None:
    """Why a tile's input is not copied for a convolution, or None when it can be."""
    if geometry.kernel_size != (1, 1) or geometry.padding != (0, 0):
        return "body copied is for kernels of one tap without padding"
    return None


class TileCopy:
    """The copied input of one tile and block: vectors by in_channel, row and column."""

    def __init__(self, workload: ConvWorkload, config: ConvConfig) -> None:
        self.workload, self.config = workload, config
        self.floats = copied_floats(config)
        self.block = min(config.channel_block, workload.in_channels)
        size = self.block * self.floats
        self.buffer = T.alloc_buffer((size,), workload.dtype, scope="global")

    def fill(self, buffers: Buffers, place: Place, block: Any) -> None:
        """Copy the in_channels of a block."""
        geometry = buffers.geometry
        first = T.Bind(block * self.block)
        count = T.Bind(T.min(self.block, self.workload.in_channels - first))
        origin = T.Bind(
            place.batch * (self.workload.in_channels * geometry.size)
            + geometry.origin
            + place.y0 * geometry.row_step
            + place.x0 * geometry.col_step
        )
        rows, columns = tap_inputs(self.workload.geometry, self.config, (0, 0))
        with T.serial(0, count) as i:
            base = Bases(self.config, T.Bind(origin + (first + i) * geometry.size))
            loader = InputLoader(geometry, self.config, buffers.x, base, None)
            for r, row in enumerate(rows):
                for c, col in enumerate(columns):
                    at = i * self.floats + self._within(r, c)
                    index = lanes(at, self.config.vector_width)
                    T.buffer_store(self.buffer, loader.load(row, col), [index])

    def _within(self, row: int, col: int) -> int:
        return (row * self.config.tile_cols + col) * self.config.vector_width

    def start(self, offset: Any) -> Any:
        """Where the in_channel of an entry begins.

        In 64 bits: TVM divides indices that are multiples of the vector by it, and LLVM then
        computes the address of every vector anew if they might overflow.
        """
        return T.Cast("int64", offset) * self.config.vector_width

    def vector(self, start: Any, row: int, col: int) -> Any:
        """Vector ``col`` of row ``row`` of the in_channel that begins at ``start``."""
        return self.buffer[lanes(start + self._within(row, col), self.config.vector_width)]
