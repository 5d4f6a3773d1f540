"""One library for several sizes: an entry each, weights once, the choice at the call."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn
from typer.testing import CliRunner

import tvm_pattern as tp
from tvm_pattern import cli, sources
from tvm_pattern.artifact import ArtifactError, manifest_path

# Values that no code or index holds by chance: how often one is in a file is how often its layer's
# weights are.
MARKS = (1234.5678, -987.65432, 0.00012345678)
SHAPES = ((1, 3, 12, 14), (1, 3, 16, 40), (3, 3, 12, 14))
FACTORY = f"{__name__}:network"


def network() -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 16, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    ).eval()
    tp.pruning.oneshot(net, connectivity=2.0)
    return net


def inputs(shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype("float32")


def expected(model, x):
    with torch.no_grad():
        return model(torch.from_numpy(x)).numpy()


@pytest.fixture(scope="module")
def model():
    net = network()
    with torch.no_grad():
        for layer, mark in zip((net[0], net[2], net[4]), MARKS, strict=True):
            kept = layer.weight.abs().flatten().argmax()
            layer.weight.view(-1)[kept] = mark
    return net


@pytest.fixture(scope="module")
def library(model):
    return tp.compile(model, num_threads=1, sizes=[(inputs(shape),) for shape in SHAPES])


@pytest.fixture(scope="module")
def exported(library, tmp_path_factory):
    return library.export(tmp_path_factory.mktemp("sizes") / "net.so")


def test_each_size_computes_what_the_model_computes(library, exported, model):
    for lib in (library, tp.load(exported)):
        for shape in SHAPES:
            x = inputs(shape, 1)
            want = expected(model, x)
            np.testing.assert_allclose(lib(x), want, rtol=1e-4, atol=1e-5 * np.abs(want).max())


def test_weights_are_stored_once(exported):
    content = exported.read_bytes()
    for mark in MARKS:
        assert content.count(np.float32(mark).tobytes()) == 1


def test_each_size_is_a_library_of_its_own(library, exported):
    loaded = tp.load(exported)
    for lib in (library, loaded):
        assert [size.inputs[0].shape for size in lib.sizes] == list(SHAPES)
        assert lib.inputs == lib.sizes[0].inputs
        for size, shape in zip(lib.sizes, SHAPES, strict=True):
            assert size.sizes == (size,)
            assert size.report.rows[0].in_shape == shape
            assert size.manifest.verification["status"] == "checked"
            assert size.at(inputs(shape)) is size
            layers = {step.layer for step in size.profile(repeat=1, min_repeat_ms=0).steps}
            assert {"0", "2", "4"} <= layers
            assert size.benchmark(inputs(shape), repeat=2).median > 0
        assert lib.benchmark(inputs(SHAPES[2]), repeat=2).median > 0
    with pytest.raises(ArtifactError, match="one size of a library; export the whole"):
        library.sizes[1].export(exported.with_name("other.so"))
    with pytest.raises(ValueError, match="compiled for that shape"):
        library.sizes[1](inputs(SHAPES[0]))


def test_a_library_of_one_size_is_its_own_size(model):
    lib = tp.compile(model, num_threads=1, sizes=[inputs(SHAPES[0])], verify=False)
    assert lib.sizes == (lib,)
    assert lib.manifest.sizes == []


def test_another_size_is_refused_and_the_nearest_named(library):
    with pytest.raises(ValueError) as caught:
        library(inputs((1, 3, 16, 48)))
    text = str(caught.value)
    assert "got inputs of the shapes [1, 3, 16, 48]" in text
    assert "the nearest is [1, 3, 16, 40]" in text
    assert "among sizes" in text
    with pytest.raises(ValueError, match=r"nearest is \[3, 3, 12, 14\]"):
        library.benchmark(inputs((4, 3, 12, 14)))
    for wrong in ((), (inputs((3, 12, 14)),), (inputs(SHAPES[0]),) * 2):
        with pytest.raises(ValueError, match="got inputs of the shapes"):
            library(*wrong)
    with pytest.raises(ValueError, match="got dtype float64, expected float32"):
        library(inputs(SHAPES[1]).astype("float64"))


def test_threads_are_set_for_all_sizes(exported, model):
    lib = tp.load(exported)
    with pytest.raises(ArtifactError, match="compiled for 1 threads"):
        lib.num_threads = 2
    lib.num_threads = 1
    assert {size.num_threads for size in lib.sizes} == {1}


X = inputs(SHAPES[0])


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"example_inputs": X, "sizes": [X]}, ValueError, "got example_inputs and sizes"),
        ({"sizes": []}, ValueError, "sizes is empty"),
        ({"sizes": X}, TypeError, "sizes is a ndarray, expected a list"),
        ({"sizes": [X, (X,)]}, ValueError, r"sizes\[0\] and sizes\[1\] are the same"),
        ({"sizes": [X, X[0]]}, ValueError, "differ in the sizes of their axes alone"),
        ({"sizes": [X, (X, X)]}, ValueError, "cannot run on the example inputs"),
    ],
)
def test_sizes_that_cannot_be(arguments, error, text):
    with pytest.raises(error, match=text):
        tp.compile(nn.Conv2d(3, 4, 3).eval(), **arguments)


class Parts(nn.Module):
    def forward(self, x):
        return x.split(2, dim=2)


def test_sizes_with_other_outputs_are_refused():
    with pytest.raises(ValueError, match=r"2 outputs for sizes\[1\] and 1 for sizes\[0\]"):
        tp.compile(Parts().eval(), sizes=[inputs((1, 3, 2, 4)), inputs((1, 3, 4, 4))])


def test_an_onnx_file_of_open_width_and_batch(tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    weight = inputs((4, 3, 3, 3), 3)
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("GlobalAveragePool", ["c"], ["g"]),
        helper.make_node("Mul", ["c", "g"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 8, "width"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(weight, "w")],
    )
    path = tmp_path / "net.onnx"
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), path
    )
    shapes = ((1, 3, 8, 12), (1, 3, 8, 20), (2, 3, 8, 12))
    lib = tp.compile(path, num_threads=1, sizes=[inputs(shape) for shape in shapes])
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for shape in shapes:
        (want,) = session.run(None, {"x": inputs(shape, 4)})
        np.testing.assert_allclose(lib(inputs(shape, 4)), want, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match=r"the ONNX model expects \[n, 3, 8, width\]"):
        tp.compile(path, sizes=[inputs(shapes[0]), inputs((1, 3, 9, 12))])


def run(*arguments):
    result = CliRunner().invoke(cli.app, [str(a) for a in arguments])
    return result.exit_code, result.stdout, result.stderr


def run_json(*arguments):
    code, output, error = run(*arguments, "--json")
    assert code == 0, error
    return json.loads(output)


def test_the_command_line(tmp_path):
    path = tmp_path / "net.so"
    shapes = [word for shape in SHAPES[:2] for word in ("--shape", "x".join(map(str, shape)))]
    facts = run_json("compile", FACTORY, *shapes, "--threads", 1, "-o", path)
    assert facts["sizes"] == [[list(shape)] for shape in SHAPES[:2]]
    assert run_json("run", path, "--size", 1, "--repeat", 1)["outputs"][0]["shape"] == [1, 16]
    np.save(tmp_path / "x.npy", inputs(SHAPES[1]))
    assert run("run", path, "--input", tmp_path / "x.npy", "--repeat", 0)[0] == 0
    rows = run_json("bench", path, "--repeat", 2, "--profile", "--cool-down", 0)
    assert [row["device"] for row in rows] == [
        "this machine, 1x3x12x14",
        "this machine, 1x3x16x40",
    ]
    assert all(row["median_ms"] > 0 and row["profile"]["steps"] for row in rows)
    assert "size 1" in run("inspect", path)[1]
    code, _, error = run("run", path, "--size", 2)
    assert code == 1
    assert "has 2 sizes, from 0" in error


def test_how_many_inputs_of_how_many_sizes():
    class Two(nn.Module):
        def forward(self, x, y, scale=1.0):
            return x + y * scale

    class Any(nn.Module):
        def forward(self, *xs):
            return sum(xs)

    sizes = sources.sizes_of(["1x2", "2x2", "3x2", "4x2"], Two())
    assert [[x.shape for x in size] for size in sizes] == [[(1, 2), (2, 2)], [(3, 2), (4, 2)]]
    assert len(sources.sizes_of(["1x2", "2x2"], Any())) == 1
    assert len(sources.sizes_of(["1x2"], Two())) == 1  # importing says what is missing
    assert sources.sizes_of(None, Path("net.onnx")) is None
    with pytest.raises(ValueError, match="Two does not say the shapes of its inputs; name them"):
        sources.sizes_of(None, Two())
    with pytest.raises(ValueError, match="got 3 times --shape for a model of 2 inputs"):
        sources.sizes_of(["1x2", "2x2", "3x2"], Two())


def test_a_damaged_manifest_is_refused(exported, tmp_path):
    path = tmp_path / "net.so"
    path.write_bytes(exported.read_bytes())
    data = json.loads(manifest_path(exported).read_text())
    data["sizes"][0]["inputs"] = "none"
    manifest_path(path).write_text(json.dumps(data))
    with pytest.raises(ArtifactError, match=r"sizes.0.inputs"):
        tp.load(path)
    data["sizes"][0] = {**data["sizes"][1], "function": "main_7"}
    manifest_path(path).write_text(json.dumps(data))
    lib = tp.load(path)
    with pytest.raises(ArtifactError, match="no function"):
        lib.sizes[1](inputs(SHAPES[2]))
