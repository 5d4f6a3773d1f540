"""Inputs that nobody gave: plausible numbers of every dtype."""

from __future__ import annotations

import numpy as np
import pytest

from tvm_pattern.random_inputs import random_array


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_floats_are_normal(dtype):
    array = random_array(np.random.default_rng(0), (50, 40), dtype)
    assert (array.shape, str(array.dtype)) == ((50, 40), dtype)
    assert abs(array.mean()) < 0.1
    assert abs(array.std() - 1) < 0.1


@pytest.mark.parametrize("dtype", ["int64", "int8", "uint8", "bool"])
def test_integers_index_any_table(dtype):
    array = random_array(np.random.default_rng(0), [50, 40], dtype)
    assert str(array.dtype) == dtype
    assert set(np.unique(array)) == {0, 1}
