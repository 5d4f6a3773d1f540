"""Input rows: whole vectors are loaded once, shifted and strided ones picked from them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from tvm.tirx.script import builder as T

from .reuse import Chunks, streamed
from .vectors import converted, gather, load_aligned, load_any


@dataclass(frozen=True)
class RowLoader:
    """Loads vectors of ``width`` pixels, ``step`` elements apart, from a buffer.

    Parameters
    ----------
    buffer : buffer
        Flat.
    width : int
        Lanes of a vector.
    chunks : Chunks
        The loads.
    step : int
        Stride of the convolution along a row.
    dtype : str
        What the elements are converted to.
    """

    buffer: Any
    width: int
    chunks: Chunks
    step: int
    dtype: str

    def vectors(self, base: Any, offset: int, columns: Sequence[int]) -> Iterator[tuple[int, Any]]:
        """``(column, vector)`` of a row, from left to right; loads as late as they can be.

        Parameters
        ----------
        base : expression
            Element of a tile's first pixel.
        offset : int
            Distance from there to the row.
        columns : sequence of int
            Where the vectors begin, ascending.
        """
        held: dict[int, Any] = {}
        for column, fresh, _ in streamed(columns, self.width, self.step, self.chunks):
            held |= {n: self._chunk(base, offset + self.chunks.start(n)) for n in fresh}
            numbers = list(held)
            index = {n: i for i, n in enumerate(numbers)}
            places = [self.chunks.place(column + lane * self.step) for lane in range(self.width)]
            picked = [(index[number], lane) for number, lane in places]
            chosen = [held[n] for n in numbers]
            yield column, T.Bind(gather(chosen, picked, self.width, self.chunks.width))

    def _chunk(self, base: Any, offset: int) -> Any:
        stored, width = str(self.buffer.dtype), self.chunks.width
        load = load_aligned if self.chunks.is_aligned else load_any
        value = T.Bind(load(self.buffer, base, width, offset))
        if stored == self.dtype:
            return value
        return T.Bind(converted(value, stored, self.dtype, width))
