"""ONNX files as exporters write them: open sizes, computed shapes, missing facts, bad files."""

from __future__ import annotations

import importlib.util

import numpy as np
import onnx
import pytest
import tvm
from onnx import TensorProto, helper, numpy_helper
from tvm import relax

from tvm_pattern.frontend import import_model

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64


def model(nodes, inputs, outputs=("y",), stored=(), opset=13, output_shape=()) -> onnx.ModelProto:
    """A model of ``nodes``; outputs without a type unless they get a shape."""
    values = [
        helper.make_tensor_value_info(name, FLOAT, output_shape)
        if output_shape
        else onnx.ValueInfoProto(name=name)
        for name in outputs
    ]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info(name, FLOAT, dims) for name, dims in inputs.items()],
        values,
        [numpy_helper.from_array(array, name) for name, array in dict(stored).items()],
    )
    imports = [helper.make_opsetid("", opset)]
    return helper.make_model(graph, opset_imports=imports, ir_version=8)


def weight(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype("float32") * 0.2


def flattened(dims) -> onnx.ModelProto:
    """Conv, then a reshape whose target is computed from the shape of the data."""
    nodes = [
        helper.make_node("Conv", ["x", "stem.weight"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("Shape", ["c"], ["s"]),
        helper.make_node("Gather", ["s", "first"], ["n"], axis=0),
        helper.make_node("Unsqueeze", ["n", "axes"], ["n1"]),
        helper.make_node("Concat", ["n1", "rest"], ["target"], axis=0),
        helper.make_node("Reshape", ["c", "target"], ["y"]),
    ]
    stored = {
        "stem.weight": weight(4, 3, 3, 3),
        "first": np.array(0, "int64"),
        "axes": np.array([0], "int64"),
        "rest": np.array([-1], "int64"),
    }
    return model(nodes, {"x": dims}, stored=stored)


def reference(proto: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options)
    return session.run(None, {session.get_inputs()[0].name: x})[0]


def run_relax(imported, x: np.ndarray) -> np.ndarray:
    executable = tvm.compile(imported.mod, tvm.target.Target("llvm"))
    return relax.VirtualMachine(executable, tvm.cpu())["main"](tvm.runtime.tensor(x)).numpy()


@pytest.mark.parametrize(
    "dims", [("n", 3, "h", "w"), (-1, 3, "?", "?"), (None, 3, None, None), None]
)
def test_examples_fix_every_size_that_is_left_open(dims, tmp_path):
    x = weight(2, 3, 6, 5)
    proto = flattened(dims)
    onnx.save(proto, tmp_path / "net.onnx")
    imported = import_model(tmp_path / "net.onnx", x)
    assert imported.outputs[0].shape == (2, 4 * 6 * 5)
    assert list(imported.layer_names.values()) == ["stem"]
    operators = imported.mod.script()
    assert "shape_of" not in operators
    assert "shape_to_tensor" not in operators
    np.testing.assert_allclose(run_relax(imported, x), reference(proto, x), atol=1e-5)


def test_sizes_that_do_not_fit_are_refused():
    proto = flattened(("n", 3, "h", "w"))
    with pytest.raises(ValueError, match=r"symbolic dimensions \(x \[n, 3, h, w\]\); give example"):
        import_model(proto)
    with pytest.raises(ValueError, match=r"got shape \[2, 4, 6, 5\].*expects \[n, 3, h, w\]"):
        import_model(proto, weight(2, 4, 6, 5))
    nodes = [helper.make_node("Add", ["x", "z"], ["y"])]
    two = model(nodes, {"x": ("n", 4), "z": ("n", 4)})
    with pytest.raises(ValueError, match=r"'z': got shape \[3, 4\].* n is 2 in another input"):
        import_model(two, (weight(2, 4), weight(3, 4)))
    other = model(nodes, {"x": ("n", 4), "z": ("m", 4)})
    with pytest.raises(ValueError, match=r"cannot have inputs of these sizes: .*; give example_in"):
        import_model(other, (weight(2, 4), weight(3, 4)))
    unpadded = [helper.make_node("Conv", ["x", "w"], ["y"])]
    small = model(unpadded, {"x": ("n", 3, "h", "w")}, stored={"w": weight(4, 3, 3, 3)})
    with pytest.raises(ValueError, match=r"cannot have inputs of these sizes: .*; give example_in"):
        import_model(small, weight(1, 3, 2, 2))


@pytest.mark.parametrize("size", [16, 17])
@pytest.mark.parametrize("where", ["SAME_LOWER", "SAME_UPPER"])
@pytest.mark.parametrize("operator", ["MaxPool", "AveragePool"])
def test_same_padding_of_pooling_covers_the_image(operator, where, size):
    node = helper.make_node(
        operator, ["x"], ["y"], kernel_shape=[2, 2], strides=[2, 2], auto_pad=where
    )
    proto = model([node], {"x": (1, 2, size, size)})
    x = weight(1, 2, size, size)
    imported = import_model(proto)
    assert imported.outputs[0].shape == (1, 2, 8 + size % 2, 8 + size % 2)
    np.testing.assert_allclose(run_relax(imported, x), reference(proto, x), atol=1e-6)


def test_a_file_whose_outputs_have_no_type_is_taken(tmp_path):
    proto = model([helper.make_node("Relu", ["x"], ["y"])], {"x": (1, 2, 3, 4)})
    onnx.save(proto, tmp_path / "net.onnx")
    x = weight(1, 2, 3, 4)
    imported = import_model(tmp_path / "net.onnx")
    np.testing.assert_array_equal(run_relax(imported, x), np.maximum(x, 0))


def test_missing_external_data_is_named(tmp_path):
    onnx.save_model(
        flattened((1, 3, 6, 5)),
        tmp_path / "net.onnx",
        save_as_external_data=True,
        location="net.weights",
        size_threshold=0,
    )
    assert import_model(tmp_path / "net.onnx").outputs[0].shape == (1, 120)
    (tmp_path / "net.weights").unlink()
    with pytest.raises(ValueError, match=r"keeps weights in 'net\.weights'.*copy all files"):
        import_model(tmp_path / "net.onnx")


def test_files_and_weights_of_more_than_2_gb_are_refused(tmp_path, monkeypatch):
    path = tmp_path / "net.onnx"
    with path.open("wb") as file:
        file.truncate(2**31)  # no bytes on the disk
    with pytest.raises(ValueError, match=r"has 2\.1 GB, expected at most 2 GB.*external data"):
        import_model(path)
    monkeypatch.setattr("tvm_pattern.onnx_files.MAX_BYTES", 100)
    with pytest.raises(ValueError, match="GB of weights, expected at most 2 GB"):
        import_model(flattened((1, 3, 6, 5)))


def test_an_opset_newer_than_the_installed_onnx_is_named():
    proto = flattened((1, 3, 6, 5))
    known = onnx.defs.onnx_opset_version()
    proto.opset_import[0].version = known + 1
    with pytest.raises(ValueError, match=f"opset {known + 1}, expected at most {known}"):
        import_model(proto)


def test_operators_without_a_translation_are_named_with_the_way_out():
    nodes = [
        helper.make_node("Relu", ["x"], ["r"]),
        helper.make_node("LSTM", ["r", "W", "R"], ["y"], hidden_size=4, name="rnn"),
    ]
    stored = {"W": weight(1, 16, 5), "R": weight(1, 16, 4)}
    proto = model(nodes, {"x": (3, 1, 5)}, stored=stored)
    with pytest.raises(ValueError, match=r"LSTM \(node 'rnn'\).*extract_model with the output 'r'"):
        import_model(proto)


def test_products_of_bytes_without_a_translation_are_named():
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "scale", "zero"]),
        helper.make_node("ConvInteger", ["q", "w", "zero"], ["y"], name="conv"),
    ]
    proto = model(nodes, {"x": (1, 2, 5, 5)}, stored={"w": np.ones((3, 2, 3, 3), "uint8")})
    with pytest.raises(ValueError, match=r"ConvInteger \(node 'conv'\); .*with the output 'q'\)"):
        import_model(proto)


def test_an_operator_without_inputs_is_named():
    nodes = [
        helper.make_node("RandomUniform", [], ["r"], shape=[2, 3], name="noise"),
        helper.make_node("Add", ["x", "r"], ["y"]),
    ]
    proto = model(nodes, {"x": (2, 3)})
    with pytest.raises(ValueError, match=r"RandomUniform \(node 'noise'\); .* make it an input"):
        import_model(proto)


def test_without_onnx_runtime_computed_shapes_name_it(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "onnxruntime" else find(name)
    )
    with pytest.raises(ImportError, match=r"computes shapes \(Shape\).*'\.\[onnx\]'"):
        import_model(flattened(("n", 3, "h", "w")), weight(1, 3, 6, 5))
    plain = model([helper.make_node("Relu", ["x"], ["y"])], {"x": ("n", 2)})
    assert import_model(plain, weight(3, 2)).outputs[0].shape == (3, 2)


def test_operators_that_onnx_runtime_writes_out_are_folded_too():
    """It has no GroupNormalization of this opset, and puts the specification's definition there."""
    proto = model(
        [helper.make_node("GroupNormalization", ["x", "scale", "bias"], ["y"], num_groups=2)],
        {"x": (2, 4, 5, 6)},
        stored={name: weight(2) for name in ("scale", "bias")},
        opset=20,
    )
    x = weight(2, 4, 5, 6)
    got = run_relax(import_model(proto, x), x)
    np.testing.assert_allclose(got, reference(proto, x), rtol=0, atol=1e-5)


def test_float16_stays_float16():
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"])],
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT16, (1, 2))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT16, (1, 2))],
    )
    imported = import_model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)]))
    assert imported.outputs[0].dtype == "float16"
    assert isinstance(imported.mod, tvm.IRModule)
