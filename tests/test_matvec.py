"""The packed matrix product and the pass that uses it."""

import numpy as np
import pytest
import tvm
from families import PLANE_FAMILIES
from guards import run_guarded
from tvm import relax

from relay_passes.lower_matmul import LowerMatmul
from topi_kernels.matvec import MatvecConfig, matvec, pack_columns
from topi_kernels.plane_ops import PlaneTarget

TARGET = PlaneTarget("x86-avx2")


def random(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype("float32")


@pytest.mark.parametrize("family", PLANE_FAMILIES)
@pytest.mark.parametrize(
    ("rows", "k", "n"), [(1, 1, 1), (1, 37, 63), (2, 5, 64), (7, 20, 65), (4, 3, 200)]
)
def test_product(rows, k, n, family):
    target, config = PlaneTarget(family, 2), MatvecConfig()
    x, matrix = random(rows, k), random(k, n, seed=1)
    packed = pack_columns(matrix, config.vectors * target.lanes)
    func = tvm.tirx.build(matvec(rows, k, n, target, config), target=tvm.target.Target("llvm"))
    out = run_guarded(func, x, packed, np.full((rows, n), np.nan, "float32"))
    np.testing.assert_allclose(out, x @ matrix, rtol=1e-5, atol=1e-5)


def test_packed_columns():
    """Column j of the matrix is lane j % block of block j // block."""
    matrix = random(3, 10)
    packed = pack_columns(matrix, 4)
    assert packed.shape == (3, 3, 4)
    for column in range(10):
        np.testing.assert_array_equal(packed[column // 4, :, column % 4], matrix[:, column])
    assert not packed[2, :, 2:].any()


def test_illegal_config():
    with pytest.raises(ValueError, match=r"rows \* vectors must be in 1..16"):
        MatvecConfig(8, 4)


def module(emit, shape=(2, 6)):
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType(shape, "float32"))
    with builder.function("main", [x]):
        with builder.dataflow():
            y = builder.emit_output(emit(builder, x))
        builder.emit_func_output(y)
    return builder.get()


@pytest.mark.parametrize(
    ("transposed", "shape"), [(False, (2, 6)), (True, (2, 6)), (True, (2, 3, 5, 6))]
)
def test_pass(transposed, shape):
    matrix = random(6, 9, seed=1)

    def emit(b, x):
        if not transposed:
            return relax.op.matmul(x, relax.const(matrix))
        weight = relax.const(np.ascontiguousarray(matrix.T))
        return relax.op.matmul(x, b.emit(relax.op.permute_dims(weight, [1, 0])))

    mod = LowerMatmul(TARGET)(module(emit, shape))
    names = {binding.value.op.name for binding in mod["main"].body.blocks[0].bindings}
    assert names == {"relax.call_tir"} | ({"relax.reshape"} if len(shape) > 2 else set())
    x = random(*shape)
    machine = relax.VirtualMachine(tvm.compile(mod, tvm.target.Target("llvm")), tvm.cpu())
    got = machine["main"](tvm.runtime.tensor(x)).numpy()
    np.testing.assert_allclose(got, x @ matrix, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("emit", "shape"),
    [
        (lambda b, x: relax.op.matmul(x, x), (6, 6)),
        (lambda b, x: relax.op.matmul(x, relax.const(random(6, 4))), (6,)),
        (lambda b, x: relax.op.matmul(x, relax.const(random(6))), (2, 6)),
        (lambda b, x: relax.op.matmul(x, b.emit(relax.op.permute_dims(x))), (2, 6)),
    ],
    ids=["two variables", "one axis", "vector", "transposed variable"],
)
def test_what_stays(emit, shape):
    before = module(emit, shape)
    tvm.ir.assert_structural_equal(LowerMatmul(TARGET)(before), before)
