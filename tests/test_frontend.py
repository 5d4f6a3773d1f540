"""Importing: every kind of model, and a clear error for everything that cannot be imported."""

from __future__ import annotations

import copy

import numpy as np
import onnx
import pytest
import torch
import tvm
from onnx import TensorProto, helper, numpy_helper
from torch import nn
from tvm import relax

from tvm_pattern.frontend import TensorSpec, import_model


class TwoHeads(nn.Module):
    """Two inputs, two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.head = nn.Conv2d(4, 2, 1)

    def forward(self, image, bias):
        y = torch.relu(self.stem(image))
        return self.head(y), y.mean((2, 3)) + bias


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1)
    ).eval()


IMAGE = torch.randn(1, 3, 7, 9, generator=torch.Generator().manual_seed(1))


def run_relax(imported, *arrays):
    """Oracle path: TVM's own default pipeline."""
    target = tvm.target.Target("llvm")
    mod = relax.transform.DecomposeOpsForInference()(imported.mod)
    vm = relax.VirtualMachine(tvm.compile(mod, target), tvm.cpu())
    result = vm["main"](*(tvm.runtime.tensor(a) for a in arrays))
    return [r.numpy() for r in result] if len(imported.outputs) > 1 else result.numpy()


def onnx_model(dims=(1, 3, 7, 9), weight=None) -> onnx.ModelProto:
    if weight is None:
        weight = np.random.default_rng(0).standard_normal((4, 3, 3, 3)).astype("float32")
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["x", "stem.weight"], ["c"], name="first", pads=[1, 1, 1, 1]),
            helper.make_node("Relu", ["c"], ["y"]),
        ],
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, dims)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, (dims[0], 4, *dims[2:]))],
        [numpy_helper.from_array(weight, "stem.weight")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def test_module():
    model = network()
    imported = import_model(model, IMAGE)
    assert imported.inputs == (TensorSpec("input", (1, 3, 7, 9), "float32"),)
    assert imported.outputs == (TensorSpec("output0", (1, 2, 7, 9), "float32"),)
    assert sorted(imported.layer_names.values()) == ["0", "3"]
    with torch.no_grad():
        expected = model(IMAGE).numpy()
    np.testing.assert_allclose(run_relax(imported, IMAGE.numpy()), expected, atol=1e-5)


def test_layer_names_are_dotted_paths():
    imported = import_model(nn.ModuleDict({"a": network()})["a"], (IMAGE,))
    names = {b.var.name for block in imported.mod["main"].body.blocks for b in block.bindings}
    assert set(imported.layer_names) <= names
    nested = nn.Sequential(network(), nn.Sequential(nn.Conv2d(2, 2, 1))).eval()
    assert list(import_model(nested, IMAGE).layer_names.values()) == ["0.0", "0.3", "1.0"]


def test_several_inputs_and_outputs():
    model = TwoHeads().eval()
    bias = torch.randn(1, 4)
    imported = import_model(model, (IMAGE, bias))
    assert [s.name for s in imported.inputs] == ["image", "bias"]
    assert [s.shape for s in imported.outputs] == [(1, 2, 7, 9), (1, 4)]
    with torch.no_grad():
        expected = model(IMAGE, bias)
    for got, want in zip(run_relax(imported, IMAGE.numpy(), bias.numpy()), expected, strict=True):
        np.testing.assert_allclose(got, want.numpy(), atol=1e-5)


@pytest.mark.parametrize("convert", [torch.jit.trace, lambda m, _: torch.jit.script(m)])
def test_script_modules(convert):
    model = network()
    imported = import_model(convert(model, IMAGE), IMAGE)
    assert list(imported.layer_names.values()) == ["0", "3"]
    with torch.no_grad():
        expected = model(IMAGE).numpy()
    np.testing.assert_allclose(run_relax(imported, IMAGE.numpy()), expected, atol=1e-5)


def test_exported_program_and_ir_module_need_no_examples():
    model = network()
    imported = import_model(torch.export.export(model, (IMAGE,)))
    again = import_model(imported.mod)
    assert again.inputs == imported.inputs
    assert again.outputs == imported.outputs
    np.testing.assert_array_equal(
        run_relax(again, IMAGE.numpy()), run_relax(imported, IMAGE.numpy())
    )


def test_onnx_file_and_proto(tmp_path):
    model = onnx_model()
    path = tmp_path / "net.onnx"
    onnx.save(model, path)
    weight = torch.from_numpy(numpy_helper.to_array(model.graph.initializer[0]).copy())
    expected = torch.relu(nn.functional.conv2d(IMAGE, weight, padding=1)).numpy()
    for source in (model, path, str(path)):
        imported = import_model(source)
        assert imported.inputs == (TensorSpec("x", (1, 3, 7, 9), "float32"),)
        assert list(imported.layer_names.values()) == ["stem"]
        np.testing.assert_allclose(run_relax(imported, IMAGE.numpy()), expected, atol=1e-5)


def test_onnx_symbolic_dimensions_take_the_shapes_of_the_examples():
    model = onnx_model(("n", 3, "h", "w"))
    with pytest.raises(
        ValueError, match=r"\['x'\] have symbolic dimensions .*; give example_inputs"
    ):
        import_model(model)
    imported = import_model(model, IMAGE)
    assert imported.outputs[0].shape == (1, 4, 7, 9)
    with pytest.raises(ValueError, match=r"got shape \[1, 2, 7, 9\].*expects \[n, 3, "):
        import_model(model, IMAGE[:, :2])
    with pytest.raises(ValueError, match="got 2 example inputs, the ONNX model has 1"):
        import_model(model, (IMAGE, IMAGE))


def test_unreadable_onnx(tmp_path):
    with pytest.raises(ValueError, match="no such file"):
        import_model(tmp_path / "none.onnx")
    for content in (b"no protobuf at all", b""):
        path = tmp_path / "bad.onnx"
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"bad\.onnx is not a readable ONNX model"):
            import_model(path)
    for name, words in (
        ("net.pt", "torch.load or torch.jit.load"),
        ("net.pt2", "torch.export.load"),
        ("net.pth", "load them into their network"),
        ("net.safetensors", "load them into their network"),
    ):
        path = tmp_path / name
        path.touch()
        with pytest.raises(ValueError, match=rf"{name}, expected an ONNX model; .*{words}"):
            import_model(path)
    model = onnx_model()
    model.graph.node[1].op_type = "NoSuchOperator"
    with pytest.raises(ValueError, match=r"without a translation: NoSuchOperator \(node 'y'\)"):
        import_model(model)


def test_training_mode_is_named():
    model = network()
    model[1].train()
    with pytest.raises(ValueError, match=r"module '1' is in training mode; call model\.eval"):
        import_model(model, IMAGE)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite_are_named(bad):
    model = network()
    model[3].weight.data[1, 2, 0, 0] = bad
    with pytest.raises(ValueError, match=r"weights '3\.weight': 1 of 8 values are NaN or Inf"):
        import_model(model, IMAGE)
    with pytest.raises(ValueError, match=r"weights '3\.weight'"):
        import_model(torch.export.export(model, (IMAGE,)))
    model[3].weight.data[1, 2, 0, 0] = 1.0
    imported = import_model(model, IMAGE)
    model[1].running_var[0] = bad
    with pytest.raises(ValueError, match=r"weights '1\.running_var'"):
        import_model(model, IMAGE)
    weight = np.full((4, 3, 3, 3), bad, "float32")
    with pytest.raises(ValueError, match=r"weights 'stem\.weight': 108 of 108"):
        import_model(onnx_model(weight=weight))
    poison = tvm.runtime.tensor(np.full((1, 3, 7, 9), bad, "float32"))
    poisoned = relax.transform.BindParams("main", {"input": poison})(imported.mod)
    with pytest.raises(ValueError, match="weights 'constant of"):
        import_model(poisoned)


def test_wrong_example_inputs():
    model = network()
    with pytest.raises(ValueError, match=r"needs example_inputs"):
        import_model(model)
    with pytest.raises(ValueError, match=r"cannot run on the example inputs \(float32\[1, 4, 7, 9"):
        import_model(model, torch.zeros(1, 4, 7, 9))
    with pytest.raises(ValueError, match=r"cannot run on the example inputs"):
        import_model(model, (IMAGE, IMAGE))
    program = torch.export.export(model, (IMAGE,))
    with pytest.raises(ValueError, match=r"got float32\[1, 3, 7, 8\], expected float32\[1, 3"):
        import_model(program, IMAGE[..., :8])
    with pytest.raises(ValueError, match=r"got float64\[1, 3, 7, 9\], expected float32"):
        import_model(program, IMAGE.double())
    with pytest.raises(ValueError, match="got 2 example inputs, the model has 1"):
        import_model(program, (IMAGE, IMAGE))
    with pytest.raises(ValueError, match="got str, expected float32"):
        import_model(program, ("image",))


def test_dynamic_shapes():
    dim = torch.export.Dim("height", min=4, max=64)
    program = torch.export.export(network(), (IMAGE,), dynamic_shapes={"input": {2: dim}})
    with pytest.raises(ValueError, match="the ExportedProgram has dynamic shapes"):
        import_model(program)

    n = tvm.tirx.Var("n", "int64")
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((n, 3), "float32"))
    with builder.function("main", [x]):
        builder.emit_func_output(builder.emit(relax.op.nn.relu(x)))
    with pytest.raises(ValueError, match=r"input 'x' has the dynamic shape \['n', '3'\]"):
        import_model(builder.get())


def test_ir_modules_without_a_relax_main():
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((2, 3), "float32"))
    with builder.function("other", [x]):
        builder.emit_func_output(builder.emit(relax.op.nn.relu(x)))
    with pytest.raises(ValueError, match=r"has the functions \['other'\]; expected a Relax 'main'"):
        import_model(builder.get())
    primfunc = relax.transform.LegalizeOps()(builder.get())["relu"]
    with pytest.raises(ValueError, match=r"'main' is a PrimFunc; expected a relax\.Function"):
        import_model(tvm.IRModule({"main": primfunc}))
    shape = relax.Var("s", relax.ShapeType([2, 3]))
    builder = relax.BlockBuilder()
    with builder.function("main", [shape]):
        builder.emit_func_output(builder.emit(relax.op.zeros(shape, "float32")))
    with pytest.raises(ValueError, match=r"input 's' is .*; expected a tensor of known shape"):
        import_model(builder.get())


def test_models_that_cannot_be_traced_or_imported():
    class Branches(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    with pytest.raises(ValueError, match=r"torch\.export cannot trace Branches"):
        import_model(Branches().eval(), IMAGE)

    class Unusual(nn.Module):
        def forward(self, x):
            return torch.linalg.svdvals(x)

    with pytest.raises(ValueError, match=r"the operator '\w*svd\w*' has no translation\. Replace"):
        import_model(Unusual().eval(), IMAGE)


def test_other_types():
    with pytest.raises(TypeError, match=r"cannot compile a builtins\.int; expected a torch\.nn"):
        import_model(3)


@pytest.mark.parametrize("operator", ["clip", "maximum"])
def test_infinite_bounds_are_no_weights(operator):
    """Hardswish arrives as ``clip(x, 0, inf)``."""
    x = relax.Var("x", relax.TensorType((1, 2, 3, 3), "float32"))
    builder = relax.BlockBuilder()
    with builder.function("main", [x]):
        if operator == "clip":
            y = relax.op.clip(x, 0, float("inf"))
        else:
            y = relax.op.maximum(x, relax.const(np.float32(-np.inf)))
        builder.emit_func_output(builder.emit(y))
    imported = import_model(builder.get())
    got = run_relax(imported, -np.ones((1, 2, 3, 3), np.float32))
    np.testing.assert_array_equal(got, np.full(got.shape, 0.0 if operator == "clip" else -1.0))


def test_infinite_bounds_of_onnx_are_no_weights():
    graph = helper.make_graph(
        [helper.make_node("Clip", ["x", "low", "high"], ["y"])],
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, (1, 2, 3, 3))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, (1, 2, 3, 3))],
        [
            numpy_helper.from_array(np.float32(0), "low"),
            numpy_helper.from_array(np.float32(np.inf), "high"),
        ],
    )
    opset = [helper.make_opsetid("", 18)]
    import_model(helper.make_model(graph, opset_imports=opset, ir_version=9))
    graph.initializer[1].CopyFrom(numpy_helper.from_array(np.float32(np.nan), "high"))
    with pytest.raises(ValueError, match="weights 'high': 1 of 1 values are NaN or Inf"):
        import_model(helper.make_model(graph, opset_imports=opset, ir_version=9))


def test_variances_that_give_no_number_are_named():
    model = network()
    model[1].running_var[3] = -1.0
    with pytest.raises(ValueError, match=r"batch norm .*channel 3: -1.*check the checkpoint"):
        import_model(model, IMAGE)


class Remembering(nn.Module):
    """Writes a buffer in each call; ``reads``: answers by what the call before left in it."""

    def __init__(self, *, reads: bool, in_place: bool) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 4, 3)
        self.register_buffer("last", torch.zeros(1, 4, 4, 4))
        self.reads, self.in_place = reads, in_place

    def forward(self, x):
        y = self.layer(x)
        if self.reads:
            y = y + self.last
        if self.in_place:
            self.last.copy_(y)
        else:
            self.last = y
        return y if self.reads else y + self.last


@pytest.mark.parametrize("in_place", [False, True])
def test_a_model_that_remembers_its_calls_is_refused(in_place):
    x = torch.ones(1, 3, 6, 6)
    with pytest.raises(ValueError, match="it changes 'last' in each call and answers by what"):
        import_model(Remembering(reads=True, in_place=in_place).eval(), (x,))
    writes = Remembering(reads=False, in_place=in_place).eval()
    assert len(import_model(writes, (x,)).outputs) == 1
    assert not writes.last.any()  # as it was before it was looked at


def test_a_model_that_ran_or_was_made_in_inference_mode():
    x = torch.ones(1, 3, 6, 6)
    ran = Remembering(reads=False, in_place=False).eval()
    with torch.inference_mode():
        ran(x)
        made = nn.Conv2d(3, 4, 1).eval()
    last = ran.last.clone()
    assert len(import_model(ran, (2 * x,)).outputs) == 1
    assert torch.equal(ran.last, last)
    with pytest.raises(ValueError, match=r"'weight' .* torch\.inference_mode.*copy\.deepcopy"):
        import_model(made, (x,))
    assert len(import_model(copy.deepcopy(made), (x,)).outputs) == 1


def test_the_example_inputs_stay_as_they_were():
    class Changing(nn.Module):
        def forward(self, x):
            return x.add_(1)

    x = torch.ones(1, 3, 6, 6)
    import_model(Changing().eval(), (x,))
    assert torch.equal(x, torch.ones_like(x))


@pytest.mark.parametrize("training", [True, False])
def test_onnx_dropout_only_stands_in_evaluation_mode(training):
    model = onnx_model()
    last = model.graph.output[0].name
    model.graph.node.append(helper.make_node("Dropout", [last, "rate", "training"], ["kept"]))
    model.graph.initializer.append(numpy_helper.from_array(np.float32(0.5), "rate"))
    model.graph.initializer.append(numpy_helper.from_array(np.array(training), "training"))
    model.graph.output[0].name = "kept"
    if training:
        with pytest.raises(ValueError, match=r"Dropout in training mode \(node 'kept'\)"):
            import_model(model)
    else:
        assert len(import_model(model).outputs) == 1


def test_onnx_without_outputs():
    model = onnx_model()
    del model.graph.output[:]
    with pytest.raises(ValueError, match="has no outputs; expected one at least"):
        import_model(model)
