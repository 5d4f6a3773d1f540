"""Arrays whose first element lies where TVM's tensors begin, so that a tensor may be made of one.

numpy aligns to 16 bytes only, and code that was compiled for TVM's tensors loads whole vectors.
"""

from __future__ import annotations

import math

import numpy as np

#: Bytes; what TVM allocates tensors at, and asks of memory that it is given.
ALIGNMENT = 64


def aligned_zeros(shape: tuple[int, ...], dtype: np.dtype | str) -> np.ndarray:
    """An array of zeros, row-major, that begins at a multiple of :data:`ALIGNMENT`."""
    dtype = np.dtype(dtype)
    size = math.prod(shape) * dtype.itemsize
    raw = np.zeros(size + ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    return raw[start : start + size].view(dtype).reshape(shape)


def is_aligned(array: np.ndarray) -> bool:
    """Whether the first element lies at a multiple of :data:`ALIGNMENT`."""
    return array.ctypes.data % ALIGNMENT == 0
