"""The fitted coefficients of ``topi_kernels/vector_math.py``: run it to see them.

A quotient of polynomials is fitted in double precision by linear least squares, weighted again
after each round towards the places with the largest errors (Lawson), until the largest error is as
small as it gets.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

PLACES = 4000
ROUNDS = 200
# What erf is fitted above at the end of its interval, see ``ERF_MAX``.
ABOVE = 4e-7
SHARPNESS = 16


def fit(
    function: Callable[[np.ndarray], np.ndarray], high: float, top: int, bottom: int
) -> tuple[float, np.ndarray, np.ndarray]:
    """Polynomials of these degrees whose quotient is ``function`` on ``[0, high]``.

    Returns
    -------
    tuple of (float, numpy.ndarray, numpy.ndarray)
        Largest relative error; coefficients, highest power first, the last of the bottom being 1.
    """
    t = (1 + np.cos(np.pi * (np.arange(PLACES) + 0.5) / PLACES)) / 2
    y = function(t * high)
    columns = [t**i for i in range(top + 1)] + [-y * t**i for i in range(1, bottom + 1)]
    matrix = np.stack(columns, 1)
    weights, quotient = np.ones(PLACES), np.ones(PLACES)
    best: tuple[float, np.ndarray] = (math.inf, np.zeros(matrix.shape[1]))
    for _ in range(ROUNDS):
        scale = np.sqrt(weights) / np.abs(quotient * y)
        solution = np.linalg.lstsq(matrix * scale[:, None], y * scale, rcond=None)[0]
        below = np.concatenate([[1.0], solution[top + 1 :]])
        quotient = np.polyval(below[::-1], t)
        errors = np.abs(np.polyval(solution[top::-1], t) / quotient / y - 1)
        if errors.max() < best[0]:
            best = (float(errors.max()), solution)
        weights = weights * errors / errors.max() + 1e-12
        weights /= weights.mean()
    error, solution = best
    powers = float(high) ** -np.arange(max(top, bottom) + 1)
    above = solution[: top + 1] * powers[: top + 1]
    below = np.concatenate([[1.0], solution[top + 1 :]]) * powers[: bottom + 1]
    return error, above[::-1], below[::-1]


def erf_over_x(square: np.ndarray) -> np.ndarray:
    """``erf(x) / x`` of ``x**2``, a little too large towards the end."""
    x = np.sqrt(square)
    erf = np.array([math.erf(v) for v in x])
    return (erf + ABOVE * (x / 4) ** SHARPNESS) / x


def log1p_over_t(t: np.ndarray) -> np.ndarray:
    return np.log1p(t) / t


def main() -> None:
    for name, fitted in (("erf", fit(erf_over_x, 16, 5, 5)), ("log1p", fit(log1p_over_t, 1, 8, 0))):
        error, top, bottom = fitted
        print(f"{name}: {error:.1e}")
        for row in (top, bottom):
            print("   ", ", ".join(f"{value:.9e}" for value in row))


if __name__ == "__main__":
    main()
