"""Expressions on vectors stay as small as they are written."""

import pytest
import tvm
from tvm.tirx.script import builder as T

from topi_kernels.primfunc import primfunc_builder
from topi_kernels.vector_math import ACTIVATIONS, activate, maximum_of


@pytest.mark.parametrize("activation", [a for a in ACTIVATIONS if a != "none"])
@pytest.mark.parametrize("nan_maximum", [False, True])
def test_simplification_does_not_multiply_an_activation(activation, nan_maximum):
    # TVM's simplifier puts what a variable is bound to in the place of each of its uses; that made
    # an exponential a hundred times larger and a layer's compilation take half a minute.
    with primfunc_builder("f") as builder:
        x = T.arg("x", T.buffer((16,), "float32"))
        y = T.arg("y", T.buffer((16,), "float32"))
        index = T.ramp(0, 1, 16)
        value = activate(x[index], activation, 16, (0.5, 1.5), nan_maximum=nan_maximum)
        T.buffer_store(y, value, [index])
    before = tvm.IRModule({"f": builder.get()})
    after = tvm.s_tir.transform.StmtSimplify()(before)
    assert len(after.script()) < 3 * len(before.script())


@pytest.mark.parametrize("nan_maximum", [False, True])
def test_simplification_does_not_multiply_a_maximum(nan_maximum):
    # Each comparison has its last value twice: nine grew 2^8 times, and a 5x5 pool never compiled.
    with primfunc_builder("f") as builder:
        x = T.arg("x", T.buffer((9 * 16,), "float32"))
        y = T.arg("y", T.buffer((16,), "float32"))
        values = [x[T.ramp(16 * i, 1, 16)] for i in range(9)]
        T.buffer_store(y, maximum_of(values, 16, nan_maximum=nan_maximum), [T.ramp(0, 1, 16)])
    before = tvm.IRModule({"f": builder.get()})
    after = tvm.s_tir.transform.StmtSimplify()(before)
    assert len(after.script()) < 3 * len(before.script())
