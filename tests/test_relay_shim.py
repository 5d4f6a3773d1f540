"""Scripts written for Relay: the same calls, the same shapes of results."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
import tvm
from onnx import TensorProto, helper, numpy_helper
from torch import nn

import tvm_pattern as tp
from tvm_pattern import relay

IMAGE = torch.randn(1, 3, 8, 10, generator=torch.Generator().manual_seed(1))


class Sum(nn.Module):
    """Two inputs, two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)

    def forward(self, a, b):
        y = torch.relu(self.conv(a) + b)
        return y, y.mean((2, 3))


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 1)).eval()
    tp.pruning.oneshot(model, connectivity=2.0)
    return model


@pytest.fixture(scope="module")
def built(model):
    mod, params = relay.frontend.from_pytorch(model, [("data", (1, 3, 8, 10))])
    with tvm.transform.PassContext(opt_level=3):
        return relay.build(mod, target="pattern/native", params=params, num_threads=1)


@pytest.fixture
def executor(built):
    return relay.graph_executor.GraphModule(built["default"](tvm.cpu()))


def expected(model, *inputs):
    with torch.no_grad():
        return model(*inputs)


def test_a_script_from_import_to_output(model):
    traced = torch.jit.trace(model, IMAGE)
    mod, params = relay.frontend.from_pytorch(traced, [("input0", tuple(IMAGE.shape))])
    lib = relay.build(mod, target="pattern/native", params=params, num_threads=1)
    module = relay.graph_executor.GraphModule(lib["default"](tvm.cpu(0)))
    module.set_input("input0", tvm.runtime.tensor(IMAGE.numpy()))
    module.run()
    output = module.get_output(0)
    np.testing.assert_allclose(output.numpy(), expected(model, IMAGE).numpy(), atol=1e-5)
    assert module.benchmark(tvm.cpu(0), repeat=2, number=1).mean > 0
    assert len(lib.library.report.taken) == 2


def test_ways_to_set_inputs(model, executor):
    want = expected(model, IMAGE).numpy()
    assert executor.get_num_inputs() == executor.get_num_outputs() == 1
    with pytest.raises(ValueError, match=r"inputs \['data'\] are not set; call set_input"):
        executor.run()
    with pytest.raises(RuntimeError, match="no run yet"):
        executor.get_output(0)
    executor.set_input(0, IMAGE.numpy())
    executor.run()
    np.testing.assert_allclose(executor.get_output(0).numpy(), want, atol=1e-5)
    executor.set_input(data=np.zeros_like(IMAGE.numpy()))
    executor.run(data=IMAGE.numpy())
    np.testing.assert_allclose(executor.get_output(0).numpy(), want, atol=1e-5)
    np.testing.assert_array_equal(executor.get_input("data"), IMAGE.numpy())
    with pytest.raises(IndexError, match="no output 1; the model has 1"):
        executor.get_output(1)
    for key in ("image", 1, -1):
        with pytest.raises(KeyError, match=r"expected one of \['data'\] or an index"):
            executor.set_input(key, IMAGE.numpy())


def test_several_inputs_and_outputs():
    torch.manual_seed(0)
    model = Sum().eval()
    other = torch.randn(1, 8, 8, 10)
    infos = [("a", (1, 3, 8, 10)), ("b", ((1, 8, 8, 10), "float32"))]
    mod, params = relay.frontend.from_pytorch(model, infos)
    module = relay.graph_executor.GraphModule(relay.build(mod, params=params)["default"]())
    module.run(a=IMAGE.numpy(), b=other.numpy())
    assert module.get_num_outputs() == 2
    for index, want in enumerate(expected(model, IMAGE, other)):
        np.testing.assert_allclose(module.get_output(index).numpy(), want.numpy(), atol=1e-5)


def test_params_are_bound():
    torch.manual_seed(0)
    model = Sum().eval()
    mod, _ = relay.frontend.from_pytorch(model, [("a", (1, 3, 8, 10)), ("b", (1, 8, 8, 10))])
    other = torch.randn(1, 8, 8, 10)
    library = relay.build(mod, params={"b": other.numpy()}).library
    assert [spec.name for spec in library.inputs] == ["a"]
    np.testing.assert_allclose(
        library(IMAGE)[0], expected(model, IMAGE, other)[0].numpy(), atol=1e-5
    )
    with pytest.raises(ValueError, match=r"params \['c'\] are no inputs of the module"):
        relay.build(mod, params={"c": other.numpy()})


def test_onnx():
    weight = np.random.default_rng(0).standard_normal((4, 3, 3, 3)).astype("float32")
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["y"])],
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ("n", 3, 8, 10))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ("n", 4, 6, 8))],
        [numpy_helper.from_array(weight, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    mod, params = relay.frontend.from_onnx(model, {"x": (1, 3, 8, 10)})
    got = relay.build(mod, params=params).library(IMAGE)
    want = nn.functional.conv2d(IMAGE, torch.from_numpy(weight))
    np.testing.assert_allclose(got, want.numpy(), atol=1e-4)


def test_export_and_timer(built, executor, tmp_path):
    built.export_library(tmp_path / "net.so")
    np.testing.assert_array_equal(tp.load(tmp_path / "net.so")(IMAGE), built.library(IMAGE))
    executor.set_input("data", IMAGE.numpy())
    timer = executor.module.time_evaluator("run", tvm.cpu(), number=2, repeat=3)
    assert len(timer().results) == 3
    with pytest.raises(ValueError, match="cannot time 'warm'; expected 'run'"):
        executor.module.time_evaluator("warm", tvm.cpu())


def test_wrong_arguments(model, built):
    with pytest.raises(ValueError, match=r"input_infos: got 'data', expected \(name, shape\)"):
        relay.frontend.from_pytorch(model, ["data"])
    with pytest.raises(ValueError, match=r"input_infos: got \('data', 3\)"):
        relay.frontend.from_pytorch(model, [("data", 3)])
    with pytest.raises(KeyError, match="no function 'main' in this library; expected 'default'"):
        built["main"]
    with pytest.raises(TypeError, match=r"got a BuiltModule, expected lib\['default'\]\(device\)"):
        relay.graph_executor.GraphModule(built)
    with pytest.raises(ValueError, match="the library is compiled for"):
        built["default"](tvm.device("opencl", 0))
