"""Products with pruned matrices: the operator, the choice, the pass and whole networks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import tvm
from guards import run_guarded
from torch import nn
from tvm import relax

import tvm_pattern as tp
from relay_passes.lower_matmul import LowerMatmul
from relay_passes.report import ReportBuilder
from topi_kernels.plane_ops import PlaneTarget
from topi_kernels.sparse_matvec import (
    MatvecChoice,
    SparseMatvecConfig,
    choose,
    pack_matrix,
    packed_arrays,
    sparse_matvec,
)
from topi_kernels.structure import ASSIGNMENT, ZEROS, Structure
from tvm_pattern.pruning import Rule

FAMILIES = ("x86-avx512", "x86-avx2", "arm-neon")


def matrix_of(n, k, group, density, seed=0):
    """``[n, k]`` in which every ``group`` successive rows keep the same columns."""
    rng = np.random.default_rng(seed)
    kept = rng.random((-(-n // group), k)) < density
    weight = rng.standard_normal((n, k)).astype("float32")
    return np.where(np.repeat(kept, group, 0)[:n], weight, np.float32(0))


def product(weight, x, target, config, structure=None):
    structure = structure or Structure.from_zeros(weight[:, :, None, None])
    packed = pack_matrix(weight.astype(target.dtype), structure, config)
    func = sparse_matvec(len(x), packed, target, config)
    built = tvm.tirx.build(func, target=tvm.target.Target("llvm"))
    out = np.full((len(x), len(weight)), np.nan, target.dtype)
    return run_guarded(built, x.astype(target.dtype), *packed_arrays(packed), out), packed


# (rows, n, k, group of the weights, density): one of each, tails, longer than uint8 can index
# densely (delta8) and sparsely (absolute16), more rows than a tile, nothing and everything kept.
CASES = [
    (1, 1, 1, 1, 1.0),
    (1, 37, 29, 4, 0.5),
    (2, 64, 300, 8, 0.3),
    (1, 16, 3000, 16, 0.002),
    (5, 20, 33, 4, 0.4),
    (4, 32, 64, 8, 0.0),
    (7, 24, 40, 8, 1.0),
]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_product_equals_numpy(case, family):
    rows, n, k, shared, density = case
    weight = matrix_of(n, k, shared, density)
    x = np.random.default_rng(1).standard_normal((rows, k)).astype("float32")
    target = PlaneTarget(family)
    wanted = x.astype("float64") @ weight.astype("float64").T
    for group in (4, 8, 16):
        config = SparseMatvecConfig.fitting(group, rows, target.lanes)
        got, packed = product(weight, x, target, config)
        scale = np.abs(x).astype("float64") @ np.abs(weight).astype("float64").T
        assert (np.abs(got - wanted) <= 1e-6 * scale + 1e-30).all()
        if (k, density) == (300, 0.3):
            assert packed.index_encoding == "delta8"
        if k == 3000:
            assert packed.index_encoding == "absolute16"


def test_threads_change_no_bit():
    weight, x = matrix_of(64, 300, 8, 0.25), np.ones((3, 300), "float32")
    config = SparseMatvecConfig.fitting(8, 3, 8)
    one, _ = product(weight, x, PlaneTarget("x86-avx2", 1), config)
    two, _ = product(weight, x, PlaneTarget("x86-avx2", 2), config)
    np.testing.assert_array_equal(one, two)


def test_float16_is_summed_in_float32():
    weight, x = matrix_of(16, 2000, 8, 1.0) ** 2, np.ones((1, 2000), "float32")
    target = PlaneTarget("arm-neon", dtype="float16")
    got, _ = product(weight, x, target, SparseMatvecConfig.fitting(8, 1, 4))
    wanted = weight.astype("float16").astype("float64").sum(1)
    np.testing.assert_allclose(got[0], wanted, rtol=2**-10)


def test_kept_zeros_are_stored_and_zeros_are_no_structure():
    """What the assignment keeps is kept, whatever values it has."""
    weight = matrix_of(16, 40, 8, 0.5)
    structure = Structure(weight[:, :, None, None] != 0, ASSIGNMENT)
    rounded = np.where(np.abs(weight) < 0.7, np.float32(0), weight)
    x = np.random.default_rng(2).standard_normal((1, 40)).astype("float32")
    config = SparseMatvecConfig.fitting(8, 1, 8)
    got, packed = product(rounded, x, PlaneTarget("x86-avx2"), config, structure)
    assert packed.num_kernels == np.count_nonzero(weight) // 8
    np.testing.assert_allclose(got, x @ rounded.T, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="leaves out weights that are not zero"):
        pack_matrix(weight + 1, structure, config)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"group": 6}, r"group must be one of \(16, 8, 4\)"),
        ({"group": 8, "rows": 5}, r"rows in 1\.\.4"),
        ({"group": 8, "chains": 0}, r"chains must be in 1\.\.4"),
    ],
)
def test_illegal_config(values, message):
    with pytest.raises(ValueError, match=message):
        SparseMatvecConfig(**values)


def test_another_packing_is_refused():
    weight = matrix_of(16, 8, 8, 0.5)
    structure = Structure.from_zeros(weight[:, :, None, None])
    packed = pack_matrix(weight, structure, SparseMatvecConfig(8))
    with pytest.raises(ValueError, match="in groups of 8; expected 1x1 kernels in groups of 4"):
        sparse_matvec(1, packed, PlaneTarget("x86-avx2"), SparseMatvecConfig(4))


def choice_of(weight, rows=1, family="x86-avx2"):
    return choose(Structure.from_zeros(weight[:, :, None, None]), rows, PlaneTarget(family))


def test_choice_follows_the_sharing():
    shared = {g: choice_of(matrix_of(2048, 4096, g, 0.25)) for g in (16, 8, 4)}
    assert [shared[g].config.group for g in (16, 8, 4)] == [16, 8, 4]
    assert all(c.gain > 2 for c in shared.values())
    alone = choice_of(matrix_of(512, 1024, 1, 0.25))
    assert (alone.config, alone.gain) == (None, 1.0)
    assert "at least 4 neighbouring outputs have to share" in alone.reason
    assert choice_of(matrix_of(64, 64, 8, 1.0)) == MatvecChoice(None)
    gpu = choice_of(matrix_of(512, 1024, 8, 0.25), family="mali")
    assert gpu.reason == "no sparse product for the device 'mali'; multiplied densely"


def module(weight, shape, transposed=True):
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType(shape, "float32"))
    with builder.function("main", [x]):
        with builder.dataflow():
            matrix = relax.const(weight if transposed else np.ascontiguousarray(weight.T))
            if transposed:
                matrix = builder.emit(relax.op.permute_dims(matrix, [1, 0]))
            y = builder.emit_output(relax.op.matmul(x, matrix), "layer")
        builder.emit_func_output(y)
    return builder.get()


@pytest.mark.parametrize("transposed", [True, False])
def test_pass_stores_what_was_kept(transposed):
    weight, report = matrix_of(128, 256, 8, 0.25), ReportBuilder()
    mod = LowerMatmul(PlaneTarget("x86-avx2"), report=report)(module(weight, (2, 256), transposed))
    machine = relax.VirtualMachine(tvm.compile(mod, tvm.target.Target("llvm")), tvm.cpu())
    x = np.random.default_rng(3).standard_normal((2, 256)).astype("float32")
    got = machine["main"](tvm.runtime.tensor(x)).numpy()
    np.testing.assert_allclose(got, x @ weight.T, rtol=1e-4, atol=1e-4)
    (row,) = report.build()
    kept = np.count_nonzero(weight) / weight.size
    assert (row.op, row.taken, row.group, row.structure) == ("linear", True, 8, ZEROS)
    assert row.sparsity == pytest.approx(1 - kept)
    assert row.effective_gflop == pytest.approx(2e-9 * 2 * np.count_nonzero(weight))
    assert row.expected_gain > 1.2


def test_pass_says_why_a_pruned_matrix_is_multiplied_densely():
    target = PlaneTarget("x86-avx2")
    alone = ReportBuilder()
    mod = LowerMatmul(target, report=alone)(module(matrix_of(128, 256, 1, 0.25), (1, 256)))
    assert "call_tir(matvec" in str(mod["main"]).replace("cls.", "")
    (row,) = alone.build()
    assert (row.taken, row.expected_gain) == (True, 1.0)
    assert row.effective_gflop == row.dense_equivalent_gflop
    assert "have to share" in row.reason
    deep = ReportBuilder()
    before = module(matrix_of(128, 256, 8, 0.25), (256,))
    tvm.ir.assert_structural_equal(LowerMatmul(target, report=deep)(before), before)
    (row,) = deep.build()
    assert not row.taken
    assert row.reason == "its input has the shape (256,); expected static [..., rows, k]"


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(8 * 36, 256),
        nn.ReLU(),
        nn.Linear(256, 33, bias=False),
    ).eval()


def test_a_pruned_network_compiles_by_its_assignment(recwarn):
    model, x = network(), torch.randn(2, 3, 6, 6)
    tp.pruning.oneshot(model, rules=[Rule(type="linear")])
    with torch.no_grad():
        model[3].weight[:, ::5] = 0  # kept weights may be zero
    lib = tp.compile(model, (x,), target="pattern/x86-avx2", num_threads=1)
    rows = {row.layer: row for row in lib.report}
    assert list(rows) == ["0", "3"]
    assert (rows["3"].structure, rows["3"].group) == (ASSIGNMENT, 8)
    assert rows["3"].sparsity == pytest.approx(0.75)
    assert not [w for w in recwarn if "pruning" in str(w.message)]
    steps = {step["layer"]: step["op"] for step in lib.manifest.steps}
    assert steps["3"] == "sparse_matvec"
    got = torch.as_tensor(lib(x.numpy()))
    with torch.no_grad():
        torch.testing.assert_close(got, model(x), rtol=1e-4, atol=1e-5)
