"""Winograd's minimal filtering F(m x m, 3 x 3): its matrices, its weights and its error.

``m`` outputs along a row of a 3-tap filter take ``m + 2`` multiplications instead of ``3 m``: ``y =
A^T [(G g) * (B^T d)]``, and in two dimensions ``Y = A^T [(G g G^T) * (B^T d B)] A``. The matrices
are those of Toom and Cook for the points 0, some pairs of opposite points, and infinity. Numpy
only.

The points of F(4 x 4) are 0, 3/4, -3/4, 3/2, -3/2: all entries that activations are multiplied by
are exact in binary, and errors are a fifth of those of the usual 0, 1, -1, 2, -2.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

import numpy as np

TAPS = 3
#: Positive points of the pairs, by the outputs of a tile along a row.
POINTS: dict[int, tuple[Fraction, ...]] = {
    2: (Fraction(1),),
    4: (Fraction(3, 4), Fraction(3, 2)),
}
#: How much larger rounding errors are than those of plain sums of the same products, at most.
ERROR_GROWTH = {2: 1.0, 4: 2.0}


def _product(roots: list[Fraction], length: int) -> list[Fraction]:
    """Coefficients of the monic polynomial with these roots, lowest first."""
    row = [Fraction(1)]
    for root in roots:
        shifted, scaled = [Fraction(0), *row], [root * value for value in [*row, Fraction(0)]]
        row = [a - b for a, b in zip(shifted, scaled, strict=True)]
    return row + [Fraction(0)] * (length - len(row))


@dataclass(frozen=True)
class Winograd:
    """The matrices of F(m, 3), see the module's text.

    Row 0 belongs to the point 0, rows ``2 i + 1`` and ``2 i + 2`` to a pair of opposite points, the
    last row to infinity.

    Parameters
    ----------
    outputs : int
        ``m``, outputs of a tile along a row.
    input_rows : tuple of tuple of float
        ``B^T``, ``[m + 2, m + 2]``.
    filter_rows : tuple of tuple of float
        ``G``, ``[m + 2, 3]``.
    output_rows : tuple of tuple of float
        ``A^T``, ``[m, m + 2]``.
    """

    outputs: int
    input_rows: tuple[tuple[float, ...], ...]
    filter_rows: tuple[tuple[float, ...], ...]
    output_rows: tuple[tuple[float, ...], ...]

    @property
    def inputs(self) -> int:
        """Inputs of a tile along a row, which are also the products along it."""
        return self.outputs + TAPS - 1

    @property
    def products(self) -> int:
        """Products of a tile and kernel."""
        return self.inputs**2

    @classmethod
    @lru_cache
    def of(cls, outputs: int) -> Winograd:
        """The matrices for tiles of ``outputs x outputs``.

        Raises
        ------
        ValueError
            If there are no points for such tiles.
        """
        if outputs not in POINTS:
            raise ValueError(f"Winograd tiles have {sorted(POINTS)} outputs a row, got {outputs}")
        points = [Fraction(0)]
        for point in POINTS[outputs]:
            points += [point, -point]
        size = outputs + TAPS - 1
        others = [[q for q in points if q != p] for p in points]
        scales = [_product(rest, size) for rest in others]
        values = [
            sum((c * p**k for k, c in enumerate(row)), Fraction(0))
            for p, row in zip(points, scales, strict=True)
        ]
        powers = [[p**k for k in range(size)] for p in points]

        def rows(columns: int, by: list[Fraction]) -> list[list[Fraction]]:
            last = [Fraction(int(k == columns - 1)) for k in range(columns)]
            finite = zip(powers, by, strict=True)
            return [*([v / value for v in row[:columns]] for row, value in finite), last]

        ones = [Fraction(1)] * len(points)
        transposed = zip(*rows(outputs, ones), strict=True)
        return cls(
            outputs,
            _floats([*scales, _product(points, size)]),
            _floats(rows(TAPS, values)),
            _floats([list(row) for row in transposed]),
        )

    def transformed(self, weight: np.ndarray) -> np.ndarray:
        """``G g G^T`` of every kernel, computed in float64.

        Parameters
        ----------
        weight : numpy.ndarray
            ``[out_channels, in_channels, 3, 3]``.

        Returns
        -------
        numpy.ndarray
            float32 ``[products, in_channels, out_channels]``.
        """
        rows = np.array(self.filter_rows)
        found = np.einsum("ar,oirs,bs->abio", rows, weight.astype(np.float64), rows)
        return found.reshape(self.products, *weight.shape[1::-1]).astype(np.float32)

    @property
    def recovery(self) -> np.ndarray:
        """``[3, inputs]``: what gives a filter back from its products, ``L G = 1``."""
        first, last = np.zeros(self.inputs), np.zeros(self.inputs)
        rows = np.array(self.filter_rows)
        first[0], last[-1] = 1 / rows[0, 0], 1.0
        middle = np.zeros(self.inputs)
        # Of opposite points the even powers cancel in the difference.
        middle[1], middle[2] = 0.5 / rows[1, 1], 0.5 / rows[2, 1]
        return np.stack([first, middle, last])

    def error_bound(self, image: np.ndarray, weight: np.ndarray) -> np.ndarray:
        """Largest possible error of a tile's outputs, computed in float32 with rounding to nearest.

        Parameters
        ----------
        image : numpy.ndarray
            ``[in_channels, inputs, inputs]``, the inputs of a tile.
        weight : numpy.ndarray
            ``[out_channels, in_channels, 3, 3]``.

        Returns
        -------
        numpy.ndarray
            float64 ``[out_channels, outputs, outputs]``: ``n u / (1 - n u)`` times the same formula
            of absolute values, where ``n`` is the operations that a value passes through.
        """
        b, a = (np.abs(np.array(rows)) for rows in (self.input_rows, self.output_rows))
        g = np.array(self.filter_rows)
        inputs = np.einsum("ar,irs,bs->abi", b, np.abs(image.astype(np.float64)), b)
        weights = np.abs(np.einsum("ar,oirs,bs->abio", g, weight.astype(np.float64), g))
        largest = np.einsum("pa,abi,abio,qb->opq", a, inputs, weights, a)
        passed = (weight.shape[1] + 4 * self.inputs + 1) * 2.0**-24
        return passed / (1 - passed) * largest


def _floats(rows: list[list[Fraction]]) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(float(value) for value in row) for row in rows)
