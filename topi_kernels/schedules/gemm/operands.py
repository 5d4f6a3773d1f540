"""What both kinds of operands share: positions, their inputs in order, and the way to the planes.

A *position* is a row of the matrices of inputs and of results: a pixel, or one of Winograd's tiles.
Inputs are held as ``[product][position][in_channel]``, results of a block of filters as
``[product][position][filter]``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

from tvm.tirx.script import builder as T

from ...vector import CACHE_LINE_FLOATS, constant, lanes, shuffle, splat, transposed
from ...vector_math import activate
from ...workload import ConvWorkload
from ..config import ConvConfig
from ..tile import Buffers

#: Pixels of a row that are turned into lanes of channels, or back, at once.
PIECE = 4


class Operands(ABC):
    """Inputs and results of one convolution.

    Parameters
    ----------
    workload : ConvWorkload
    config : ConvConfig
    buffers : Buffers
        The operator's parameters.
    """

    def __init__(self, workload: ConvWorkload, config: ConvConfig, buffers: Buffers) -> None:
        self.workload, self.config, self.buffers = workload, config, buffers
        self.width = config.vector_width
        self.positions = config.positions
        #: Elements between two positions' inputs: an odd number of lines, lest those of a
        #: register_tile share a few sets of a cache.
        lines = -(-workload.in_channels // CACHE_LINE_FLOATS)
        self.depth = (lines + (lines + 1) % 2) * CACHE_LINE_FLOATS
        #: Elements between two products' inputs; a vector more, lest they share sets of a cache.
        self.product_step = self.positions * self.depth + self.width

    @property
    @abstractmethod
    def blocks(self) -> int:
        """Blocks of positions of an image."""

    @abstractmethod
    def gather(self, held: Any, batch: Any, block: Any, step: Any) -> None:
        """Write the inputs of a step of a block, all in_channels, to ``held``."""

    @property
    @abstractmethod
    def steps(self) -> int:
        """Steps that bring a block's inputs in order, or its results back."""

    @abstractmethod
    def scatter(self, results: Any, batch: Any, block: Any, step: Any, filters: Any) -> None:
        """Store a step's outputs of the filters ``filters`` and after; they fill a vector."""

    # ---- channels to lanes and back -----------------------------------------------------------

    def channel_starts(self) -> tuple[int, Callable[[Any], Any]]:
        """Vectors of in_channels, and the first channel of one; the last is moved back."""
        channels = self.workload.in_channels
        count = -(-channels // self.width)
        last = max(0, channels - self.width)
        if channels % self.width == 0:
            return count, lambda number: number * self.width
        return count, lambda number: T.min(number * self.width, last)

    def channel_lanes(
        self, origin: Any, first: Any, stride: int = 1, wanted: Sequence[int] = range(PIECE)
    ) -> list[Any]:
        """Vectors of in_channels ``first`` and after, at ``PIECE`` neighbouring pixels.

        ``origin`` is the pixel's place in the plane of in_channel 0; ``wanted`` are the pixels that
        are used.
        """
        w = self.workload
        planes = [
            origin + T.min(first + i, w.in_channels - 1) * w.in_layout.size
            if w.in_channels < self.width
            else origin + (first + i) * w.in_layout.size
            for i in range(self.width)
        ]
        pieces = [self._piece(plane, stride) for plane in planes]
        joined = []
        for j in range(PIECE):
            parts = pieces[j::PIECE]
            joined.append(
                parts[0] if len(parts) == 1 else T.Bind(shuffle(parts, range(self.width)))
            )
        found = transposed(joined, self.width)
        return [found[k] for k in wanted]

    def _piece(self, start: Any, stride: int) -> Any:
        if stride == 1:
            return T.Bind(self.buffers.x[lanes(start, PIECE)])
        whole = self.buffers.x[lanes(start, 2 * PIECE)]
        return T.Bind(shuffle([T.Bind(whole)], range(0, 2 * PIECE, 2)))

    def bias(self, filters: Any) -> Any:
        """The bias of a vector of filters; zeros without one."""
        w = self.workload
        if self.buffers.bias is None:
            return constant(0.0, self.width, w.dtype)
        if w.out_channels >= self.width:
            return T.Bind(self.buffers.bias[lanes(filters, self.width)])
        scalars = [self.buffers.bias[min(i, w.out_channels - 1)] for i in range(self.width)]
        return T.Bind(shuffle([T.Bind(s) for s in scalars], range(self.width)))

    def store_pieces(
        self, values: Sequence[Any], batch: Any, filters: Any, places: Sequence[tuple[Any, int]]
    ) -> None:
        """Turn ``PIECE`` vectors of filters into neighbouring pixels, and store them.

        ``places`` are ``(row, column)`` of the pixels that belong together, each ``PIECE`` by their
        number long; bias is in the values already.
        """
        w, epilogue = self.workload, self.workload.epilogue
        length = PIECE // len(places)
        if not epilogue.residual:
            values = [self._activated(value, self.width) for value in values]
        values = [T.Bind(value) for value in values]
        # Row j of a turned block holds filters j, PIECE + j and so on.
        for j, turned in enumerate(transposed(values, self.width)):
            for first in range(0, self.width, PIECE):
                number = first + j
                if number >= w.out_channels:
                    continue
                for part, (row, column) in enumerate(places):
                    picks = range(first + part * length, first + (part + 1) * length)
                    whole = self.width == length
                    value = turned if whole else shuffle([turned], picks)
                    self._store(value, batch, filters + number, row, column, length)

    def _store(
        self, value: Any, batch: Any, number: Any, row: Any, column: Any, length: int
    ) -> None:
        w = self.workload
        plane = batch * w.out_channels + number

        def place(layout: Any) -> Any:
            inside = layout.origin + row * layout.row_stride + column
            return lanes(plane * layout.size + inside, length)

        if w.residual_layout is not None and self.buffers.residual is not None:
            value = value + self.buffers.residual[place(w.residual_layout)]
            value = self._activated(T.Bind(value), length)
        T.buffer_store(self.buffers.out, value, [place(w.out_layout)])

    def _activated(self, value: Any, count: int) -> Any:
        nan_maximum = self.config.isa == "neon"
        return activate(value, self.workload.epilogue.activation, count, nan_maximum=nan_maximum)

    def splat(self, value: Any) -> Any:
        """``value`` in every lane."""
        return splat(value, self.width)
