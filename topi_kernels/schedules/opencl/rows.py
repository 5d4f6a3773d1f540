"""Input rows: whole aligned vectors are loaded once, shifted and strided ones picked from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tvm.tirx.script import builder as T

from .reuse import row_chunks
from .vectors import converted, gather, load_aligned


@dataclass(frozen=True)
class RowLoader:
    """Loads vectors of ``width`` pixels, ``step`` elements apart, from a buffer.

    Parameters
    ----------
    buffer : buffer
        Flat.
    width, chunk : int
        Lanes of a vector, and of an aligned load.
    step : int
        Stride of the convolution along a row.
    dtype : str
        What the elements are converted to.
    """

    buffer: Any
    width: int
    chunk: int
    step: int
    dtype: str

    def load(self, start: Any, columns: Sequence[int]) -> dict[int, Any]:
        """The vectors that begin at ``columns`` of the row from ``start`` on.

        ``start`` is a multiple of ``chunk``.
        """
        numbers = row_chunks(columns, self.width, self.step, self.chunk)
        stored = str(self.buffer.dtype)
        chunks = []
        for n in numbers:
            value = T.Bind(load_aligned(self.buffer, start + n * self.chunk, self.chunk))
            if stored != self.dtype:
                value = T.Bind(converted(value, stored, self.dtype, self.chunk))
            chunks.append(value)
        place = {n: i for i, n in enumerate(numbers)}
        result = {}
        for column in columns:
            elements = [column + lane * self.step for lane in range(self.width)]
            places = [(place[e // self.chunk], e % self.chunk) for e in elements]
            result[column] = T.Bind(gather(chunks, places, self.chunk))
        return result
