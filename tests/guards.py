"""Operators called on memory whose surroundings they must neither change nor need."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import tvm

#: Bytes before and behind each array; tensors begin at a multiple of the alignment.
AROUND, ALIGNMENT = 1 << 16, 64
#: What these hold: NaN in every type of floating point.
FILL = np.uint8(255)


def guarded(array: np.ndarray) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray]]:
    """A copy of an array, and the bytes before and behind it."""
    memory = np.full(array.nbytes + 2 * AROUND + ALIGNMENT, FILL)
    start = AROUND + -(memory.ctypes.data + AROUND) % ALIGNMENT
    end = start + array.nbytes
    copy = memory[start:end].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy, (memory[:start], memory[end:])


def run_guarded(operator: Callable[..., Any], *arrays: np.ndarray) -> np.ndarray:
    """Call an operator on copies of arrays; returns the last one, which it writes.

    The others and the memory around all of them must stay as they were; what is read from around
    them is NaN.
    """
    copies = [guarded(np.ascontiguousarray(array)) for array in arrays]
    operator(*(tvm.runtime.from_dlpack(copy) for copy, _ in copies))
    for number, (copy, around) in enumerate(copies):
        for part in around:
            assert np.all(part == FILL), f"written beside argument {number}"
        if number < len(copies) - 1:
            given = np.ascontiguousarray(arrays[number])
            assert copy.tobytes() == given.tobytes(), f"argument {number}, an input, was written"
    return copies[-1][0]
