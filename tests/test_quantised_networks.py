"""Networks of quantize / dequantize on operators on bytes: integer results, reports, fallbacks."""

from __future__ import annotations

import numpy as np
import pytest
import tvm
from conv_cases import pattern_weights
from int8_cases import TARGETS, needs
from qdq_networks import QdqNetwork, Tensor
from relax_oracle import execute
from tvm import relax

import tvm_pattern as tp
from relay_passes import pipeline, targets
from relay_passes.dataflow import bindings_of, op_name
from relay_passes.islands import int8
from relay_passes.markers import parse
from relay_passes.quantised import QuantisedIslands
from relay_passes.report import ReportBuilder
from topi_kernels.backend import Backend
from topi_kernels.schedules.cpu_int8 import plan
from topi_kernels.structure import Structure
from tvm_pattern import machine
from tvm_pattern.verification import VerificationError

ISA = "avx512-vnni"
TARGET = TARGETS[ISA][0]


def image(*shape: int) -> np.ndarray:
    return np.random.default_rng(5).standard_normal(shape).astype(np.float32)


def rewritten(mod: tvm.IRModule, **options: object) -> tuple[list[str], tuple[str, ...]]:
    """Operators after the pass, markers by their name, and the notes."""
    report = ReportBuilder()
    backend = Backend.of(targets.resolve(TARGET))
    mod = QuantisedIslands(backend, report, **options)(mod)
    names = []
    for block in bindings_of(mod["main"]):
        for binding in block:
            marker = parse(binding.value)
            names.append(op_name(binding.value) if marker is None else marker.op)
    return [n for n in names if n], report.build().notes


def run(mod: tvm.IRModule, x: np.ndarray, target: dict = TARGET) -> tuple[list[np.ndarray], object]:
    needs(ISA)
    lowered, report = pipeline.lower(mod, target, num_threads=1)
    return execute(tvm.compile(lowered, targets.resolve(target)), x), report


def check(mod: tvm.IRModule, x: np.ndarray, *expected: Tensor) -> object:
    """Outputs are the reals of exactly these bytes."""
    got, report = run(mod, x)
    for result, want in zip(got, expected, strict=True):
        levels = want.values.astype(int) - want.zero_point
        np.testing.assert_array_equal(np.rint(result / want.scale), levels)
        np.testing.assert_allclose(result, want.real, rtol=1e-6, atol=1e-9)
    return report


@pytest.mark.parametrize("activations", ["uint8", "int8"])
def test_residual_block(activations: str) -> None:
    """Convolutions of several kinds, a residual, a sum, a pool; all of it on bytes."""
    net = QdqNetwork(image(2, 4, 12, 12), activations)
    x = net.enter()
    stem = net.conv(x, 8, group=2, name="stem")
    pooled = net.max_pool(stem, 3, 2, 1)
    a = net.conv(pooled, 8, name="a")
    b = net.conv(a, 8, group=4, residual=pooled, name="b")
    c = net.conv(b, 12, kernel=1, activation="none", name="c")
    d = net.conv(b, 12, kernel=1, activation="relu6", name="d")
    total = net.add(c, d, 0.1)
    last = net.conv(total, 4, stride=2, name="last")
    mod = net.module(last, total)
    names, notes = rewritten(mod)
    assert names.count(int8.CONV) == 6
    assert names.count(int8.QUANTIZE) == 1
    assert names.count(int8.DEQUANTIZE) == 2
    assert names.count(int8.ADD) == 1
    assert "relax.nn.conv2d" not in names
    assert not notes
    report = check(mod, net.x, last, total)
    assert [(row.layer, row.dtype, row.taken) for row in report] == [
        (name, "int8", True) for name in ("stem", "a", "b", "c", "d", "last")
    ]
    assert [row.group for row in report][:3] == [2, 1, 4]


def test_within_one_quantum_of_floats() -> None:
    """The real network that the graph describes, run operator by operator by TVM."""
    net = QdqNetwork(image(1, 4, 9, 9))
    x = net.enter()
    a = net.conv(x, 8, name="a")
    b = net.conv(a, 8, name="b")
    mod = net.module(b)
    (got,), _ = run(mod, net.x)
    (want,) = execute(tvm.compile(mod, tvm.target.Target("llvm")), net.x)
    assert np.abs(got - want).max() <= 1.001 * b.scale
    assert np.mean(got != want) < 0.02


def test_global_pool_is_real() -> None:
    net = QdqNetwork(image(1, 3, 7, 5))
    a = net.conv(net.enter(), 8, name="a")
    mean = net.emit(relax.op.mean(net.dequantize(a), [2, 3]))
    mod = net.module(mean)
    assert rewritten(mod)[0].count(int8.GLOBAL_POOL) == 1
    (got,), _ = run(mod, net.x)
    np.testing.assert_allclose(got, a.real.mean(axis=(2, 3)), rtol=1e-5)


def test_a_change_of_scale() -> None:
    net = QdqNetwork(image(1, 3, 6, 6))
    a = net.conv(net.enter(), 4, name="a")
    b = net.rescale(a, a.scale * 1.7, 9)
    check(net.module(b), net.x, b)


def test_pool_2x2_of_a_wide_image() -> None:
    net = QdqNetwork(image(1, 1, 5, 70))
    a = net.conv(net.enter(), 2, activation="none", name="a")
    b = net.max_pool(a, 2, 2)
    check(net.module(b), net.x, b)


# The structure -----------------------------------------------------------------------------------


def test_the_structure_is_the_pruners_not_that_of_rounded_zeros() -> None:
    """Two filters share what the pruner kept, whichever of their weights became zero."""
    kept = pattern_weights(8, 8, group=2) != 0
    rounded = kept & (np.random.default_rng(1).random(kept.shape) < 0.5)
    net = QdqNetwork(image(1, 8, 6, 6))
    a = net.conv(net.enter(), 8, kept=rounded, name="a")
    mod = net.module(a)
    needs(ISA)
    structures = {"a": Structure(kept, "assignment")}
    lowered, report = pipeline.lower(mod, TARGET, num_threads=1, structures=structures)
    (got,) = execute(tvm.compile(lowered, targets.resolve(TARGET)), net.x)
    np.testing.assert_allclose(got, a.real, rtol=1e-6, atol=1e-9)
    assert [(row.structure, row.group) for row in report] == [("assignment", 2)]
    assert report.rows[0].sparsity == pytest.approx(1 - kept.mean())


# What stays in float32 ---------------------------------------------------------------------------


def test_an_addition_to_a_depthwise_convolution_is_left_with_its_reason() -> None:
    net = QdqNetwork(image(1, 4, 8, 8))
    a = net.conv(net.enter(), 8, name="a")
    b = net.conv(a, 8, groups=8, residual=a, name="b")
    c = net.conv(b, 4, kernel=1, name="c")
    mod = net.module(c)
    names, notes = rewritten(mod)
    assert names.count(int8.CONV) == 2
    assert names.count("relax.nn.conv2d") == 1
    reason = "an image is added to the result of a depthwise convolution"
    assert notes == (f"b: runs in float32: {reason}",)
    (got,), report = run(mod, net.x)
    assert np.abs(got - c.real).max() <= 1.001 * c.scale
    assert {row.layer: row.dtype for row in report} == {"a": "int8", "b": "float32", "c": "int8"}
    assert report.notes == notes


def test_mobile_block() -> None:
    """Depthwise convolutions of both strides, several filters of a channel, 1x1 around them."""
    net = QdqNetwork(image(1, 3, 15, 21))
    a = net.conv(net.enter(), 6, kernel=1, activation="relu6", name="expand")
    b = net.conv(a, 12, groups=6, activation="relu6", name="deep")
    c = net.conv(b, 12, groups=12, stride=2, kernel=5, name="strided")
    d = net.conv(c, 4, kernel=1, activation="none", name="project")
    mod = net.module(d)
    names, notes = rewritten(mod)
    assert (names.count(int8.CONV), names.count(int8.DEPTHWISE), notes) == (2, 2, ())
    report = check(mod, net.x, d)
    assert [row.dtype for row in report] == ["int8"] * 4


def test_stem_7x7() -> None:
    net = QdqNetwork(image(1, 3, 20, 34))
    a = net.conv(net.enter(), 6, kernel=7, stride=2, name="stem")
    report = check(net.module(a), net.x, a)
    assert report.rows[0].config["form"] == "window"


def test_weights_with_zero_points_are_left() -> None:
    net = QdqNetwork(image(1, 4, 8, 8))
    a = net.conv(net.enter(), 4, name="a", weight_zero=3)
    names, notes = rewritten(net.module(a))
    assert int8.CONV not in names
    assert notes[0].startswith("a: runs in float32: the weight is quantised with zero points that")


def test_a_result_that_is_read_as_bytes_stays_so() -> None:
    net = QdqNetwork(image(1, 4, 8, 8))
    a = net.conv(net.enter(), 4, name="a")
    mod = net.module(net.emit(relax.op.astype(a.var, "int32")))
    names, notes = rewritten(mod)
    assert int8.CONV not in names
    assert len(notes) == 1


def test_activations_per_channel_are_left() -> None:
    net = QdqNetwork(image(1, 4, 8, 8))
    scale = relax.const(np.full(4, 0.1, np.float32))
    zero = relax.const(np.zeros(4, np.uint8))
    q = net.emit(relax.op.quantize(net.input, scale, zero, axis=1, out_dtype="uint8"))
    real = net.emit(relax.op.dequantize(q, scale, zero, axis=1))
    weight = relax.op.dequantize(
        relax.const(np.ones((4, 4, 3, 3), np.int8)),
        relax.const(np.float32(0.1)),
        relax.const(np.int8(0)),
        axis=0,
    )
    y = net.emit(relax.op.nn.conv2d(real, net.emit(weight), padding=1), "a")
    names, notes = rewritten(net.module(net.emit(net.quantize(y, 0.1, 3))))
    assert int8.CONV not in names
    assert notes == (
        "a: runs in float32: activations are quantised per channel (4 scales); expected one scale"
        " for a tensor",
    )


def test_a_device_without_such_instructions_says_so() -> None:
    net = QdqNetwork(image(1, 4, 8, 8))
    mod = net.module(net.conv(net.enter(), 4, name="a"))
    _, report = pipeline.lower(mod, "pattern/cortex-a53", num_threads=1)
    assert report.notes == (
        "quantised operators run in float32: the device 'arm-neon-in-order' has no instructions"
        " that multiply bytes, or the project no kernels for them",
    )
    assert [row.dtype for row in report] == ["float32"]


@pytest.mark.parametrize(
    ("target", "isa"),
    [
        ({"kind": "llvm", "mcpu": "icelake-server"}, "avx512-vnni"),
        ({"kind": "llvm", "mcpu": "cascadelake"}, "avx-vnni"),
        ({"kind": "llvm", "mcpu": "alderlake"}, "avx-vnni"),
        ("pattern/x86-avx2", "avx2"),
        ("pattern/x86-avx512", ""),
        ("pattern/cortex-a55", "neon-dotprod"),
        ("pattern/cortex-x1", "neon-dotprod"),
        ("pattern/neoverse-n1", "neon-dotprod"),
        ("pattern/cortex-a72", ""),
        ("pattern/armv7", ""),
        ("pattern/mali", ""),
    ],
    ids=str,
)
def test_the_instructions_of_a_target(target: object, isa: str) -> None:
    assert Backend.of(targets.resolve(target)).int8 == isa


def test_a_float_network_is_not_touched() -> None:
    x = relax.Var("x", relax.TensorType((1, 3, 4, 4), "float32"))
    builder = relax.BlockBuilder()
    with builder.function("main", [x]):
        with builder.dataflow():
            out = builder.emit_output(relax.op.nn.relu(x))
        builder.emit_func_output(out)
    mod = builder.get()
    report = ReportBuilder()
    backend = Backend.of(targets.resolve("pattern/cortex-a53"))
    assert QuantisedIslands(backend, report)(mod).same_as(mod)
    assert not report.build().notes


# The library -------------------------------------------------------------------------------------


def test_compile_checks_and_exports(tmp_path) -> None:
    needs(ISA)
    net = QdqNetwork(image(1, 4, 8, 8))
    a = net.conv(net.enter(), 8, name="a")
    b = net.conv(a, 8, group=2, residual=a, name="b")
    library = tp.compile(net.module(b), target=TARGET, num_threads=1)
    assert library.manifest.verification["status"] == "checked"
    assert "sqrt(3 roundings" in library.manifest.verification["basis"]
    assert {"avx512vnni", "avx512vbmi"} <= set(library.manifest.cpu_features)
    library.export(str(tmp_path / "net.so"))
    loaded = tp.load(str(tmp_path / "net.so"))
    np.testing.assert_allclose(loaded(net.x), b.real, rtol=1e-6, atol=1e-9)
    assert [row.dtype for row in loaded.report] == ["int8", "int8"]
    layers = [step.layer for step in loaded.profile(repeat=1, min_repeat_ms=0).steps]
    assert layers == ["input", "a", "b", "after b"]


def test_a_computer_without_the_instructions_is_refused_at_load(tmp_path, monkeypatch) -> None:
    needs(ISA)
    net = QdqNetwork(image(1, 4, 6, 6))
    mod = net.module(net.conv(net.enter(), 4, name="a"))
    path = str(tmp_path / "net.so")
    tp.compile(mod, target=TARGET, num_threads=1, verify=False).export(path)
    present = machine.machine_features() - {"avx512vbmi"}
    monkeypatch.setattr(machine, "surely_has", lambda _features: False)
    monkeypatch.setattr(machine, "machine_features", lambda: present)
    with pytest.raises(Exception, match="avx512vbmi, which this machine lacks"):
        tp.load(path)


def test_wrong_bytes_are_found_by_the_check(monkeypatch) -> None:
    """The tolerance of a quantised model does not hide an operator that computes something else."""
    needs(ISA)
    net = QdqNetwork(image(1, 4, 8, 8))
    mod = net.module(net.conv(net.enter(), 8, name="a"))
    right = plan.Int8Layer.folded_bias
    monkeypatch.setattr(plan.Int8Layer, "folded_bias", lambda *args: right(*args) + 3e5)
    with pytest.raises(VerificationError):
        tp.compile(mod, target=TARGET, num_threads=1)


# Dense layers ------------------------------------------------------------------------------------


def dense_network(rows: int, k: int, n: int, *, transposed: bool) -> tuple[tvm.IRModule, dict]:
    """``relu(x)`` as bytes, flattened, times a matrix of bytes."""
    rng = np.random.default_rng(3)
    net = QdqNetwork(image(rows, 1, 1, k))
    x = net.enter(0.02, 7)
    real = net.emit(relax.op.reshape(net.dequantize(x), (rows, k)))
    weight = rng.integers(-127, 128, (n, k)).astype(np.int8)
    scales = rng.uniform(0.5, 1.5, n).astype(np.float32)
    stored = weight if transposed else np.ascontiguousarray(weight.T)
    zeros = relax.const(np.zeros(n, np.int8))
    axis = 0 if transposed else 1
    matrix = net.emit(relax.op.dequantize(relax.const(stored), relax.const(scales), zeros, axis))
    if transposed:
        matrix = net.emit(relax.op.permute_dims(matrix))
    mod = net.module(net.emit(relax.op.matmul(real, matrix), "fc"))
    sums = (x.values.reshape(rows, k).astype(np.int64) - 7) @ weight.T.astype(np.int64)
    return mod, {"x": net.x, "want": sums * (scales * np.float64(0.02))}


@pytest.mark.parametrize(
    ("rows", "k", "n", "transposed"), [(1, 70, 100, True), (5, 9, 3, False), (2, 64, 64, True)]
)
def test_dense_layers(rows: int, k: int, n: int, transposed: bool) -> None:
    mod, case = dense_network(rows, k, n, transposed=transposed)
    assert rewritten(mod)[0].count(int8.MATVEC) == 1
    (got,), report = run(mod, case["x"])
    np.testing.assert_allclose(got, case["want"], rtol=1e-6, atol=1e-4)
    assert [(r.op, r.dtype, r.taken) for r in report] == [("matmul", "int8", True)]


def test_a_dense_layer_whose_sums_may_overflow_is_left() -> None:
    net = QdqNetwork(image(1, 1, 1, 70_000))
    real = net.emit(relax.op.reshape(net.dequantize(net.enter()), (1, 70_000)))
    weight = relax.const(np.full((70_000, 2), 127, np.int8))
    scale, zero = relax.const(np.float32(1)), relax.const(np.int8(0))
    matrix = net.emit(relax.op.dequantize(weight, scale, zero, axis=1))
    names, notes = rewritten(net.module(net.emit(relax.op.matmul(real, matrix), "fc")))
    assert int8.MATVEC not in names
    assert "runs in float32: the sums of filter 0 may reach" in notes[0]


@pytest.mark.parametrize("name", ["mobile", "dense"])
def test_threads(name: str) -> None:
    """Two threads give what one gives."""
    needs(ISA)
    if name == "dense":
        mod, case = dense_network(3, 30, 200, transposed=True)
        x = case["x"]
    else:
        net = QdqNetwork(image(2, 3, 9, 9))
        a = net.conv(net.enter(), 6, kernel=1, name="a")
        mod, x = net.module(net.conv(a, 6, groups=6, name="b")), net.x
    results = []
    for threads in (1, 2):
        lowered, _ = pipeline.lower(mod, TARGET, num_threads=threads)
        results += execute(tvm.compile(lowered, targets.resolve(TARGET)), x)
    np.testing.assert_array_equal(*results)


def test_a_dense_layer_on_avx2() -> None:
    needs("avx2")
    mod, case = dense_network(3, 30, 20, transposed=True)
    (got,), report = run(mod, case["x"], TARGETS["avx2"][0])
    np.testing.assert_allclose(got, case["want"], rtol=1e-6, atol=1e-4)
    assert report.rows[0].config == {"isa": "avx2"}
