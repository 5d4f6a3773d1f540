"""ONNX files pruned as torch modules: right against ONNX Runtime, and written back."""

from __future__ import annotations

import copy
import warnings

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from tvm_pattern.posttrain import posttrain
from tvm_pattern.pruning import ConfigError, OnnxNetwork, Rule, oneshot


class Branches(nn.Module):
    """Convolutions of many kinds, two of which read one value, with what ONNX needs between."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.SiLU())
        self.left = nn.Conv2d(8, 8, 3, padding=2, dilation=2, bias=False)
        self.right = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.point = nn.Conv2d(16, 6, 1)

    def forward(self, x):
        x = self.stem(x)
        both = torch.cat([self.left(x).relu(), self.right(x)], 1)
        scale = both.shape[2] * 0.5
        return self.point(both) * scale, x.mean((2, 3))


@pytest.fixture(scope="module")
def image():
    return torch.randn(2, 3, 13, 10, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def exported(image):
    torch.manual_seed(1)
    model = Branches().eval()
    with torch.no_grad():
        model.stem[1].running_var.uniform_(0.5, 2.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            model,
            (image,),
            dynamo=True,
            verbose=False,
            dynamic_shapes=({0: torch.export.Dim("n")},),
        )
    return program.model_proto


def reference(model, *arrays):
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    feeds = {i.name: np.asarray(a) for i, a in zip(session.get_inputs(), arrays, strict=True)}
    return session.run(None, feeds)


def assert_same(got, want):
    got = got if isinstance(got, tuple) else (got,)
    for one, other in zip(got, want, strict=True):
        np.testing.assert_allclose(one.detach().numpy(), other, rtol=1e-4, atol=1e-5)


def graph_of(nodes, weights, shape=(1, 4, 9, 9), outputs=("y",)):
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(w, n) for n, w in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def weight(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def test_the_module_is_the_model(exported, image):
    network = OnnxNetwork(exported)
    convs = [n for n, m in network.named_modules() if isinstance(m, nn.Conv2d)]
    assert convs == ["stem.0", "left", "right", "point"]
    assert_same(network(image), reference(exported, image))
    assert network.left_dense == {}
    assert network.inputs == ["x"]
    twin = copy.deepcopy(network)
    with torch.no_grad():
        network.get_submodule("left").weight.zero_()
    assert_same(twin(image), reference(exported, image))  # a copy has weights of its own


def test_what_is_pruned_is_in_the_file(exported, image, tmp_path):
    network = OnnxNetwork(exported)
    report = oneshot(network, 2.0, connectivity_1x1=2.0, rules=[Rule(name="left", group=4)])
    path = tmp_path / "pruned.onnx"
    network.save(path)
    saved = onnx.load(path)
    onnx.checker.check_model(saved)
    assert_same(network(image), reference(saved, image))
    stored = {t.name: numpy_helper.to_array(t) for t in saved.graph.initializer}
    for name, layer in report.assignment.items():
        kept = stored[f"{name}.weight"] != 0
        assert not kept[layer.removed().numpy()].any()
        assert kept.sum() == layer.nonzeros()
    assert report.assignment["left"].kept == 32
    assert_same(OnnxNetwork(path)(image), reference(saved, image))


def smooth(count, seed):
    coarse = torch.randn(count, 3, 5, 4, generator=torch.Generator().manual_seed(seed))
    return nn.functional.interpolate(coarse, (13, 10), mode="bilinear")


def test_fitting_by_pictures_is_nearer_than_projection(exported):
    pictures, held_out = smooth(48, 5), smooth(16, 6)
    want = OnnxNetwork(exported)(held_out)[0]
    fitted, projected = OnnxNetwork(exported), OnnxNetwork(exported)
    posttrain(fitted, list(pictures.split(16)), 2.0)
    oneshot(projected, 2.0)
    errors = [float((n(held_out)[0] - want).square().mean()) for n in (fitted, projected)]
    assert errors[0] < 0.7 * errors[1]


def test_names_that_a_module_has_for_itself_are_changed():
    names = ["inputs", "forward", "a", "a.b", "a.b", "c.train", "c"]
    chain = ["x", *(f"v{i}" for i in range(len(names) - 1)), "y"]
    nodes, weights = [], {}
    for number, name in enumerate(names):
        w = f"{name}.weight" if f"{name}.weight" not in weights else f"{name}_2.weight"
        weights[w] = weight(4, 4, 1, 1, seed=number)
        nodes.append(helper.make_node("Conv", [chain[number], w], [chain[number + 1]]))
    model = graph_of(nodes, weights)
    network = OnnxNetwork(model)
    assert len([m for m in network.modules() if isinstance(m, nn.Conv2d)]) == len(names)
    x = weight(1, 4, 9, 9, seed=3)
    assert_same(network(torch.from_numpy(x)), reference(model, x))


def test_uneven_padding_shared_weights_and_shared_biases(image):
    """A bias that two convolutions read becomes two; a weight that they share stays one."""
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["a"], pads=[0, 1, 2, 1], name="first"),
        helper.make_node("Conv", ["a", "w", "b"], ["c"], pads=[1, 1, 1, 1], name="second"),
        helper.make_node("Conv", ["c", "v", "b"], ["y"], pads=[1, 1, 1, 1], name="th.ird"),
    ]
    model = graph_of(nodes, {"w": weight(4, 4, 3, 3), "v": weight(4, 4, 3, 3), "b": weight(4)})
    network = OnnxNetwork(model)
    x = weight(1, 4, 9, 9, seed=3)
    assert_same(network(torch.from_numpy(x)), reference(model, x))
    names = [n for n, m in network.named_modules() if isinstance(m, nn.Conv2d)]
    assert names == ["first", "second", "th_ird"]
    oneshot(network, 2.0, first="prune")
    with torch.no_grad():
        network.get_submodule("second").bias += 1.0
    assert_same(network(torch.from_numpy(x)), reference(network.to_onnx(), x))
    first, second = (network.get_submodule(n) for n in ("first", "second"))
    assert first.weight is second.weight
    assert first.weight.count_nonzero() == 4 * 8


def test_convolutions_that_stay_with_the_runtime_are_named():
    nodes = [
        helper.make_node("Constant", [], ["w0"], value=numpy_helper.from_array(weight(4, 4, 3, 3))),
        helper.make_node("Conv", ["x", "w0"], ["a"], pads=[1, 1, 1, 1], name="own"),
        helper.make_node("Mul", ["w1", "two"], ["w2"]),
        helper.make_node("Conv", ["a", "w2"], ["b"], name="computed"),
        helper.make_node("Conv", ["b", "w1"], ["c"], name="read"),
        helper.make_node("Conv", ["c", "w3"], ["d"], auto_pad="SAME_UPPER", name="same"),
        helper.make_node("Squeeze", ["d", "axis"], ["e"]),
        helper.make_node("Reshape", ["e", "shape"], ["f"]),
        helper.make_node("Conv", ["f", "w4"], ["y"], name="line"),
    ]
    weights = {
        "w1": weight(4, 4, 3, 3),
        "two": np.float32(2.0).reshape(1),
        "w3": weight(4, 4, 3, 3),
        "axis": np.array([0]),
        "shape": np.array([1, 4, 25]),
        "w4": weight(2, 4, 3),
    }
    model = graph_of(nodes, weights)
    network = OnnxNetwork(model)
    assert [n for n, m in network.named_modules() if isinstance(m, nn.Conv2d)] == ["own"]
    assert network.left_dense == {
        "computed": "its weight is computed by the graph",
        "read": "its weight is read by other operators too",
        "same": "its padding is SAME_UPPER, which depends on the size of the image",
        "line": "it is 1-D",
    }
    x = weight(1, 4, 9, 9, seed=3)
    assert_same(network(torch.from_numpy(x)), reference(model, x))
    oneshot(network, 2.0, first="prune")
    assert_same(network(torch.from_numpy(x)), reference(network.to_onnx(), x))


def test_a_branch_of_the_graph_sees_values_from_outside():
    def branch(op):
        node = helper.make_node(op, ["a"], ["out"])
        return helper.make_graph(
            [node], op, [], [helper.make_tensor_value_info("out", TensorProto.FLOAT, None)]
        )

    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], pads=[1, 1, 1, 1], name="one"),
        helper.make_node("ReduceSum", ["x"], ["s"], keepdims=0),
        helper.make_node("Greater", ["s", "zero"], ["positive"]),
        helper.make_node(
            "If", ["positive"], ["b"], then_branch=branch("Relu"), else_branch=branch("Neg")
        ),
        helper.make_node("Conv", ["b", "v"], ["y"], name="two"),
    ]
    weights = {"w": weight(4, 4, 3, 3), "v": weight(2, 4, 3, 3), "zero": np.float32(0).reshape(())}
    model = graph_of(nodes, weights)
    network = OnnxNetwork(model)
    for sign in (1.0, -1.0):
        x = np.full((1, 4, 9, 9), sign, np.float32)
        assert_same(network(torch.from_numpy(x)), reference(model, x))


def test_a_file_whose_outputs_carry_no_shape(tmp_path):
    """Runtimes take it."""
    model = graph_of([helper.make_node("Conv", ["x", "w"], ["y"])], {"w": weight(4, 4, 3, 3)})
    for output in model.graph.output:
        output.type.tensor_type.ClearField("shape")
    path = tmp_path / "plain.onnx"
    path.write_bytes(model.SerializeToString())
    network = OnnxNetwork(path)
    oneshot(network, connectivity=2.0, first="prune")
    network.save(tmp_path / "pruned.onnx")
    x = np.ones((1, 4, 9, 9), np.float32)
    pruned = onnx.load(tmp_path / "pruned.onnx")
    assert_same(network(torch.from_numpy(x)), reference(pruned, x))


def test_unusable_files_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="no such file"):
        OnnxNetwork(tmp_path / "none.onnx")
    path = tmp_path / "text.onnx"
    path.write_text("no model")
    with pytest.raises(ConfigError, match="is not a readable ONNX model"):
        OnnxNetwork(path)
    foreign = graph_of([helper.make_node("My", ["x"], ["y"], domain="my")], {})

    foreign.graph.output[0].ClearField("type")
    path = tmp_path / "foreign.onnx"
    path.write_bytes(foreign.SerializeToString())
    with pytest.raises(ConfigError, match=r"is not a readable ONNX model: .*domain my"):
        OnnxNetwork(path)
    half = graph_of(
        [helper.make_node("Conv", ["x", "w"], ["y"], name="half")],
        {"w": weight(4, 4, 3, 3).astype(np.float16)},
    )
    with pytest.raises(ConfigError, match=r"no convolution .*half: its weight is float16"):
        OnnxNetwork(half)
    model = graph_of([helper.make_node("Conv", ["x", "w"], ["y"])], {"w": weight(4, 4, 3, 3)})
    with pytest.raises(ValueError, match=r"got 2 inputs, the ONNX model has 1 \(x\)"):
        OnnxNetwork(model)(torch.zeros(1), torch.zeros(1))
    for shape in ((2, 4, 9, 9), (1, 9, 9, 4), (4, 9, 9)):
        with pytest.raises(
            ValueError, match=r"'x' has shape .* expects \[1, 4, 9, 9\]; give inputs"
        ):
            OnnxNetwork(model)(torch.zeros(shape))
