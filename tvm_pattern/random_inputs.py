"""Inputs for a run that nobody gave any for. Numpy only."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def random_array(rng: np.random.Generator, shape: Sequence[int], dtype: str) -> np.ndarray:
    """Normal floats; of integers 0 and 1, which index any table.

    Parameters
    ----------
    rng : numpy.random.Generator
    shape : sequence of int
    dtype : str
        Such as ``float32`` or ``int64``.
    """
    numbers = np.asarray(rng.standard_normal(tuple(shape)))
    return (numbers if "float" in dtype else numbers > 0).astype(dtype)
