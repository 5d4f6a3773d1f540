"""Arrays aligned as TVM's tensors are, and constants in their memory."""

import numpy as np
import pytest

from relay_passes.dataflow import constant, constant_in_place
from topi_kernels.aligned import ALIGNMENT, aligned_zeros, is_aligned


@pytest.mark.parametrize("shape", [(1,), (3, 5, 7), (1 << 20, 3)])
@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
def test_zeros_are_aligned_whole_and_can_be_written(shape, dtype):
    array = aligned_zeros(shape, dtype)
    assert (array.shape, str(array.dtype)) == (shape, dtype)
    assert array.ctypes.data % ALIGNMENT == 0
    assert array.flags.c_contiguous
    assert not array.any()
    array[...] = 1
    assert (array == 1).all()


def _shifted(array, elements):
    """The same values, ``elements`` behind an aligned address."""
    room = aligned_zeros((array.size + elements,), array.dtype)
    room[elements:] = array.reshape(-1)
    return room[elements:].reshape(array.shape)


def test_a_constant_lies_in_the_memory_of_an_aligned_array():
    array = aligned_zeros((4, 6), "float32")
    array[...] = np.arange(24).reshape(4, 6)
    held = constant(constant_in_place(array))
    assert held.ctypes.data == array.ctypes.data
    np.testing.assert_array_equal(held, np.arange(24).reshape(4, 6))


@pytest.mark.parametrize(
    "array",
    [
        pytest.param(_shifted(np.arange(24.0, dtype="float32"), 1), id="not-aligned"),
        pytest.param(aligned_zeros((4, 6), "float32").T, id="columns-first"),
    ],
)
def test_of_other_arrays_it_is_an_aligned_copy(array):
    held = constant(constant_in_place(array))
    assert held.ctypes.data != array.ctypes.data
    assert is_aligned(held)
    np.testing.assert_array_equal(held, array)


def test_of_a_read_only_array_it_is_a_copy():
    array = aligned_zeros((8,), "float32")
    array.flags.writeable = False
    held = constant(constant_in_place(array))
    assert held.ctypes.data != array.ctypes.data


def test_the_memory_lives_as_long_as_the_constant():
    array = aligned_zeros((1 << 18,), "float32")
    array[...] = 3
    made = constant_in_place(array)
    del array
    other = np.full(1 << 18, 5, "float32")
    assert (constant(made) == 3).all()
    assert other[0] == 5


def test_an_array_without_elements_becomes_a_constant():
    assert constant(constant_in_place(aligned_zeros((0, 4), "float32"))).shape == (0, 4)
