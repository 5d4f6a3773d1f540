"""Networks with 8-bit values, from torch and ONNX: values, and structures that rounding hides."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torch.ao.quantization.fx._decomposed
import tvm
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from torch import nn
from tvm import relax

import tvm_pattern as tp
from relay_passes.dataflow import constant, op_name
from topi_kernels.structure import COVERING, Structure
from tvm_pattern import compiler
from tvm_pattern.exported_program import load_exported_program
from tvm_pattern.frontend import import_model
from tvm_pattern.verification import VerificationError
from tvm_pattern.verification.compare import QUANTUM, tolerance_of

OPS = torch.ops.quantized_decomposed
IMAGE = torch.randn(1, 3, 9, 10, generator=torch.Generator().manual_seed(1))


def pruned_weight(out_channels: int = 8, in_channels: int = 3, seed: int = 0) -> np.ndarray:
    """float32, every kernel with one of two patterns of four taps or removed, some values tiny."""
    generator = np.random.default_rng(seed)
    weight = generator.standard_normal((out_channels, in_channels, 3, 3)).astype("float32")
    weight[np.abs(weight) < 0.3] *= 1e-3  # rounded to zero, though kept
    patterns = np.array([[0, 1, 0, 1, 1, 0, 0, 1, 0], [1, 1, 0, 1, 1, 0, 0, 0, 0]], bool)
    patterns = patterns.reshape(2, 3, 3)
    which = generator.integers(0, 3, (out_channels, in_channels))
    mask = np.concatenate([patterns, np.zeros((1, 3, 3), bool)])[which]
    return weight * mask


class Quantized(nn.Module):
    """A convolution between quantised values, its weight stored as integers or as floats."""

    def __init__(self, stored: str = "integers", limits: tuple[int, int] = (0, 255)) -> None:
        super().__init__()
        weight = torch.from_numpy(pruned_weight())
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        nn.init.normal_(self.conv.bias, generator=torch.Generator().manual_seed(2))
        scale = weight.abs().amax((1, 2, 3)) / 127
        scale[scale == 0] = 1.0
        self.register_buffer("scale", scale)
        self.register_buffer("zeros", torch.zeros(8, dtype=torch.int64))
        self.stored, self.limits = stored, limits
        if stored == "integers":
            weight = OPS.quantize_per_channel(weight, scale, self.zeros, 0, -127, 127, torch.int8)
            del self.conv.weight
            self.conv.register_buffer("weight", weight)
        else:
            self.conv.weight = nn.Parameter(weight)

    def forward(self, x):
        low, high = self.limits
        x = OPS.quantize_per_tensor(x, 0.03, 110, low, high, torch.uint8)
        x = OPS.dequantize_per_tensor(x, 0.03, 110, low, high, torch.uint8)
        weight = self.conv.weight
        if self.stored == "floats":
            weight = OPS.quantize_per_channel(
                weight, self.scale, self.zeros, 0, -127, 127, torch.int8
            )
        if self.stored == "fake":
            weight = torch.fake_quantize_per_channel_affine(
                weight, self.scale, self.zeros.int(), 0, -127, 127
            )
        else:
            weight = OPS.dequantize_per_channel(
                weight, self.scale, self.zeros, 0, -127, 127, torch.int8
            )
        y = torch.relu(nn.functional.conv2d(x, weight, self.conv.bias, padding=1))
        return torch.fake_quantize_per_tensor_affine(y, 0.02, 0, low, high)


def bindings(mod):
    return [b for block in mod["main"].body.blocks for b in block.bindings]


def rewritten_calls(imported, name):
    return [b.value for b in bindings(imported.mod) if op_name(b.value) == name]


def exported(model):
    return torch.export.export(model.eval(), (IMAGE,))


@pytest.mark.parametrize("stored", ["integers", "floats", "fake"])
def test_a_torch_program_compiles_to_the_values_that_torch_gives(stored):
    model = Quantized(stored).eval()
    lib = tp.compile(model, IMAGE, num_threads=1)
    assert lib.manifest.verification["status"] == "checked"
    with torch.no_grad():
        want = model(IMAGE).numpy()
    # Steps of 0.02; a float on the border between two may go either way.
    steps = np.abs(np.asarray(lib(IMAGE)) - want) / 0.02
    assert steps.max() < 1.01
    assert np.mean(steps > 0.01) < 0.01


@pytest.mark.parametrize("stored", ["integers", "floats", "fake"])
def test_weights_arrive_as_integers_per_out_channel(stored):
    imported = import_model(exported(Quantized(stored)))
    convolution = rewritten_calls(imported, "relax.nn.conv2d")[0]
    values = {b.var: b.value for b in bindings(imported.mod)}
    weight = values[convolution.args[1]]
    assert op_name(weight) == "relax.dequantize"
    integers, scale, zero_point = (constant(a) for a in weight.args)
    assert integers.dtype == np.int8
    assert (scale.dtype, scale.shape) == (np.float32, (8,))
    assert zero_point.dtype == np.int32
    assert not zero_point.any()
    expected = np.rint(pruned_weight() / scale[:, None, None, None])
    assert np.array_equal(integers, expected)
    assert list(imported.layer_names.values()) == ["conv"]


def test_narrow_ranges_saturate_at_their_own_limits():
    model = Quantized(limits=(0, 127)).eval()
    x = IMAGE * 4  # far beyond (127 - 110) * 0.03
    lib = tp.compile(model, x, num_threads=1)
    with torch.no_grad():
        want = model(x).numpy()
    assert want.max() == pytest.approx(127 * 0.02)
    np.testing.assert_allclose(np.asarray(lib(x)), want, atol=0.0201)


def test_structures_cover_what_rounding_made_zero():
    imported = import_model(exported(Quantized()))
    structure = imported.structures["conv"]
    weight = pruned_weight()
    integers = Quantized().conv.weight.numpy()
    assert structure.source == COVERING
    assert not structure.contradictions(integers)
    kept = Structure.from_zeros(weight)
    assert structure.kept_weights == kept.kept_weights > np.count_nonzero(integers)
    assert structure.tap_sets == kept.tap_sets
    row = tp.compile(Quantized().eval(), IMAGE, num_threads=1, verify=False).report.rows[0]
    assert (row.taken, row.structure) == (True, COVERING)
    assert row.sparsity == pytest.approx(1 - structure.kept_weights / weight.size)


def test_programs_are_read_from_files(tmp_path):
    path = tmp_path / "model.pt2"
    torch.export.save(exported(Quantized()), path)
    program = load_exported_program(path)
    assert import_model(program).layer_names == {"conv": "conv"}


class Dynamic(nn.Module):
    def forward(self, x):
        scale, zero = OPS.choose_qparams.tensor(x, 0, 255, 1e-5, torch.uint8)
        x = OPS.quantize_per_tensor.tensor(x, scale, zero, 0, 255, torch.uint8)
        return OPS.dequantize_per_tensor.tensor(x, scale, zero, 0, 255, torch.uint8)


class Half(nn.Module):
    def forward(self, x):
        x = OPS.quantize_per_tensor(x, 0.1, 0, 0, 255, torch.uint8)
        return OPS.dequantize_per_tensor(
            x, 0.1, 0, 0, 255, torch.uint8, out_dtype=torch.float16
        ).float()


class Wide(nn.Module):
    def forward(self, x):
        return torch.fake_quantize_per_tensor_affine(x, 0.1, 0, -1000, 1000)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Dynamic(), "choose_qparams"),
        (Half(), "dequantised to float16; expected float32"),
        (Wide(), "-1000 ... 1000; expected a range within 8 bits"),
    ],
)
def test_what_is_not_taken_is_named(model, message):
    with pytest.raises(ValueError, match=message):
        import_model(exported(model))


# ONNX --------------------------------------------------------------------------------------------


class Batches(CalibrationDataReader):
    def __init__(self) -> None:
        generator = np.random.default_rng(0)
        self._left = [generator.standard_normal(IMAGE.shape).astype("float32") for _ in range(4)]

    def get_next(self):
        return {"x": self._left.pop()} if self._left else None


def float_onnx() -> onnx.ModelProto:
    generator = np.random.default_rng(3)
    head = generator.standard_normal((5, 8)).astype("float32")
    stored = [
        numpy_helper.from_array(pruned_weight(), "stem.weight"),
        numpy_helper.from_array(generator.standard_normal(8).astype("float32"), "stem.bias"),
        numpy_helper.from_array(pruned_weight(8, 8, 5), "body.weight"),
        numpy_helper.from_array(head, "head.weight"),
    ]
    nodes = [
        helper.make_node("Conv", ["x", "stem.weight", "stem.bias"], ["a"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("MaxPool", ["b"], ["c"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Conv", ["c", "body.weight"], ["d"], pads=[1, 1, 1, 1]),
        helper.make_node("Add", ["d", "c"], ["e"]),
        helper.make_node("Relu", ["e"], ["f"]),
        helper.make_node("GlobalAveragePool", ["f"], ["g"]),
        helper.make_node("Flatten", ["g"], ["h"]),
        helper.make_node("Gemm", ["h", "head.weight"], ["y"], transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, list(IMAGE.shape))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 5])],
        stored,
    )
    opset = [helper.make_opsetid("", 17)]
    return helper.make_model(graph, opset_imports=opset, ir_version=9)


def quantized_onnx(folder, **options) -> str:
    source, path = folder / "float.onnx", folder / "qdq.onnx"
    onnx.save(float_onnx(), source)
    quantize_static(
        source, path, Batches(), quant_format=QuantFormat.QDQ, per_channel=True,
        activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
        **options,
    )  # fmt: skip
    return str(path)


SYMMETRIC = {"WeightSymmetric": True}


@pytest.mark.parametrize(
    "options",
    [{}, {"extra_options": {"AddQDQPairToWeight": True}}],
    ids=["integer weights", "float weights"],
)
def test_files_of_onnx_runtime_compile_to_its_values(tmp_path, options):
    path = quantized_onnx(tmp_path, **options)
    lib = tp.compile(path, num_threads=1)
    assert lib.manifest.verification["status"] == "checked"
    assert lib.manifest.verification["oracle"].startswith("ONNX Runtime")
    # As the file says: its integer kernels saturate on AVX2 without VNNI.
    exact = onnxruntime.SessionOptions()
    exact.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    want = onnxruntime.InferenceSession(path, exact).run(None, {"x": IMAGE.numpy()})[0]
    got = np.asarray(lib(IMAGE.numpy()))
    assert np.abs(got - want).max() <= QUANTUM * np.abs(want).max()
    rows = {row.layer: row for row in lib.report.rows}
    assert rows["stem"].structure == rows["body"].structure == COVERING
    body = Structure.from_zeros(pruned_weight(8, 8, 5))
    assert rows["body"].sparsity == pytest.approx(1 - body.kept_weights / body.kept.size)


def ending_in_integers() -> tvm.IRModule:
    """A Relax module whose output is uint8."""
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((1, 3, 9, 10), "float32"))
    zero, scale = relax.const(np.int32(7)), relax.const(np.float32(0.05))
    with builder.function("main", [x]):
        with builder.dataflow():
            a = builder.emit(relax.op.quantize(x, scale, zero, 1, "uint8"))
            a = builder.emit(relax.op.dequantize(a, scale, zero, 1))
            y = builder.emit(relax.op.nn.conv2d(a, relax.const(pruned_weight()), padding=1))
            y = builder.emit_output(relax.op.quantize(y, scale, zero, 1, "uint8"))
        builder.emit_func_output(y)
    return builder.get()


def test_integer_outputs_may_differ_by_a_step():
    lib = tp.compile(ending_in_integers(), IMAGE, num_threads=1)
    assert lib.manifest.verification["status"] == "checked"
    assert lib.manifest.verification["max_error"] <= QUANTUM
    tolerance = tolerance_of(ending_in_integers())
    steps = np.array([3, 4], np.uint8)
    assert tolerance.error(steps, steps + np.uint8(1)) == pytest.approx(QUANTUM)
    assert tolerance.error(steps, steps[:1]) == np.inf
    assert "a step of 8 bits" in tolerance.basis


def test_a_library_that_is_off_by_more_than_a_step_is_refused(monkeypatch):
    """The check sees a library that lost the kernels of one input."""

    def broken(model, examples, **options):
        other = Quantized().eval()
        other.conv.weight[:, 1] = 0
        return import_model(other, examples, **options)

    monkeypatch.setattr(compiler, "import_model", broken)
    with pytest.raises(VerificationError, match="does not compute what the model computes") as info:
        tp.compile(Quantized().eval(), IMAGE, num_threads=1)
    assert info.value.error > 10 * QUANTUM
