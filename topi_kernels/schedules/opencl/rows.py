"""Input rows: whole vectors are loaded once, shifted and strided ones picked from them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from tvm.tirx.script import builder as T

from .inputs import Inputs
from .reuse import streamed
from .vectors import converted, gather


@dataclass(frozen=True)
class RowLoader:
    """Loads vectors of ``width`` pixels, ``step`` elements apart.

    Parameters
    ----------
    inputs : Inputs
        What loads chunks.
    stored : str
        Type of the elements.
    width : int
        Lanes of a vector.
    step : int
        Stride of the convolution along a row.
    dtype : str
        What the elements are converted to.
    """

    inputs: Inputs
    stored: str
    width: int
    step: int
    dtype: str

    def vectors(self, at: Any, offset: int, columns: Sequence[int]) -> Iterator[tuple[int, Any]]:
        """``(column, vector)`` of a row, from left to right; loads as late as they can be.

        Parameters
        ----------
        at : expression
            Where a tile begins, see :meth:`Inputs.at`.
        offset : int
            Elements from its first pixel to the row.
        columns : sequence of int
            Where the vectors begin, ascending.
        """
        held: dict[int, Any] = {}
        chunks = self.inputs.chunks
        for column, fresh, _ in streamed(columns, self.width, self.step, chunks):
            held |= {n: self._chunk(at, offset + chunks.start(n)) for n in fresh}
            numbers = list(held)
            index = {n: i for i, n in enumerate(numbers)}
            places = [chunks.place(column + lane * self.step) for lane in range(self.width)]
            picked = [(index[number], lane) for number, lane in places]
            chosen = [held[n] for n in numbers]
            yield column, T.Bind(gather(chosen, picked, self.width, chunks.width))

    def _chunk(self, at: Any, offset: int) -> Any:
        value = T.Bind(self.inputs.load(at, offset))
        if self.stored == self.dtype:
            return value
        return T.Bind(converted(value, self.stored, self.dtype, self.inputs.chunks.width))
