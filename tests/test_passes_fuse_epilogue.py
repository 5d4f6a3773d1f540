"""FuseEpilogue on convolution markers."""

import numpy as np
import pytest
import tvm
from relax_oracle import conv_text, text
from tvm import relax
from tvm.script import ir as I
from tvm.script import relax as R

from relay_passes.fuse_epilogue import FuseEpilogue
from relay_passes.markers import ConvParams, Marker, parse
from relay_passes.recognize_activations import activation_marker
from topi_kernels.geometry import ConvGeometry

SHAPE = (1, 4, 6, 7)
TYPE = relax.TensorType(SHAPE, "float32")
BIAS = np.arange(4, dtype="float32").reshape(1, 4, 1, 1)


class Graph:
    """Builds a function of markers; ``run`` fuses and returns the markers by layer."""

    def __init__(self):
        self.builder = relax.BlockBuilder()
        self.x = relax.Var("x", TYPE)
        self.weight = relax.const(np.ones((4, 4, 1, 1), "float32"))

    def conv(self, layer, source=None, op="conv2d"):
        params = ConvParams(layer, ConvGeometry((1, 1))).to_dict()
        source = self.x if source is None else source
        return self.emit(Marker(op, (source, self.weight), params).call(TYPE))

    def act(self, x, name, bounds=(0.0, 0.0)):
        return self.emit(activation_marker(x, name, bounds).call(TYPE))

    def add(self, a, b):
        wrap = [relax.const(v) if isinstance(v, np.ndarray) else v for v in (a, b)]
        return self.emit(relax.op.add(*wrap))

    def emit(self, value):
        return self.builder.emit(value)

    def run(self, emit):
        with self.builder.function("main", [self.x]):
            with self.builder.dataflow():
                results = [self.builder.emit_output(value) for value in emit(self)]
            self.builder.emit_func_output(results)
        mod = FuseEpilogue()(self.builder.get())
        relax.analysis.well_formed(mod)
        self.markers, self.others = {}, []
        for block in mod["main"].body.blocks:
            for binding in block.bindings:
                marker = parse(binding.value)
                if marker is not None and "layer" in marker.params:
                    self.markers[marker.params["layer"]] = marker
                elif marker is not None:
                    self.others.append(marker.params["activation"])
                elif hasattr(binding.value, "op"):
                    self.others.append(binding.value.op.name)
        return self

    def facts(self, layer):
        params = self.markers[layer].params
        epilogue = params["epilogue"]
        return epilogue["bias"], epilogue["residual"], epilogue["activation"]


@pytest.mark.parametrize("activation", ["relu", "relu6", "hardswish", "silu"])
@pytest.mark.parametrize("swapped", [False, True])
def test_whole_chain(activation, swapped):
    def emit(g):
        y = g.add(BIAS, g.conv("c")) if swapped else g.add(g.conv("c"), BIAS)
        y = g.add(g.x, y) if swapped else g.add(y, g.x)
        bounds = {"relu": (0.0, float("inf")), "relu6": (0.0, 6.0)}.get(activation, (0.0, 0.0))
        return [g.act(y, activation, bounds)]

    graph = Graph().run(emit)
    assert graph.facts("c") == (True, True, activation)
    assert graph.others == []
    x, _weight, bias, residual = graph.markers["c"].tensors
    np.testing.assert_array_equal(bias.value.numpy(), BIAS.reshape(-1))
    assert residual.same_as(x)


def test_biases_add_up():
    def emit(g):
        y = g.add(g.add(g.conv("c"), BIAS), np.array(1.5, "float32"))
        y = g.add(y, np.float32(0.5))
        return [g.add(y, np.ones((4, 1, 1), "float32"))]

    graph = Graph().run(emit)
    assert graph.facts("c") == (True, False, "none")
    assert graph.others == []
    bias = graph.markers["c"].tensors[2].value.numpy()
    np.testing.assert_array_equal(bias, BIAS.reshape(-1) + 3)


def test_bias_after_residual_stays_outside():
    graph = Graph().run(lambda g: [g.add(g.add(g.conv("c"), g.x), BIAS)])
    assert graph.facts("c") == (False, True, "none")
    assert graph.others == ["relax.add"]


def test_constant_of_the_image_is_no_bias():
    image = np.ones(SHAPE, "float32")
    row = np.ones((1, 1, 1, 7), "float32")
    for value in (image, row):
        graph = Graph().run(lambda g, value=value: [g.add(g.conv("c"), value)])
        assert graph.facts("c") == (False, False, "none")
        assert graph.others == ["relax.add"]


def test_second_activation_stays_outside():
    def emit(g):
        return [g.act(g.act(g.conv("c"), "silu"), "hardswish")]

    graph = Graph().run(emit)
    assert graph.facts("c") == (False, False, "silu")
    assert graph.others == ["hardswish"]


@pytest.mark.parametrize(("activation", "bounds"), [("clip", (-1.0, 1.0)), ("sigmoid", (0.0, 0.0))])
def test_activations_that_the_operator_lacks(activation, bounds):
    graph = Graph().run(lambda g: [g.act(g.conv("c"), activation, bounds)])
    assert graph.facts("c") == (False, False, "none")
    assert graph.others == [activation]


def test_several_consumers():
    def emit(g):
        y = g.add(g.conv("c"), BIAS)
        return [g.act(y, "silu"), g.act(y, "hardswish")]

    graph = Graph().run(emit)
    assert graph.facts("c") == (True, False, "none")
    assert sorted(graph.others) == ["hardswish", "silu"]


def test_convolution_that_is_an_output():
    def emit(g):
        y = g.conv("c")
        return [y, g.act(y, "silu")]

    graph = Graph().run(emit)
    assert graph.facts("c") == (False, False, "none")
    assert "silu" in graph.others


def test_sum_of_two_convolutions():
    """One takes the addition; the other one keeps its own bias and becomes the residual."""

    def emit(g):
        a, b = g.add(g.conv("a"), BIAS), g.add(BIAS + 1, g.conv("b"))
        return [g.act(g.add(a, b), "silu")]

    graph = Graph().run(emit)
    assert graph.facts("a") == (True, True, "silu")
    assert graph.facts("b") == (True, False, "none")
    assert graph.others == []


def test_twice_itself_is_no_residual():
    def emit(g):
        y = g.conv("c")
        return [g.add(y, y)]

    graph = Graph().run(emit)
    assert graph.facts("c") == (False, False, "none")
    assert graph.others == ["relax.add"]


def test_residual_of_another_shape():
    def emit(g):
        mean = g.emit(relax.op.mean(g.x, [2, 3], keepdims=True))
        return [g.add(g.conv("c"), mean)]

    graph = Graph().run(emit)
    assert graph.facts("c") == (False, False, "none")


def test_depthwise_takes_no_residual():
    def emit(g):
        return [g.add(g.add(g.conv("c", op="depthwise_conv2d"), BIAS), g.x)]

    graph = Graph().run(emit)
    assert graph.facts("c") == (True, False, "none")
    assert graph.others == ["relax.add"]


def test_chain_of_blocks():
    """A fused chain feeds the next convolution and its residual."""

    def emit(g):
        a = g.act(g.conv("a"), "silu")
        return [g.act(g.add(a, g.conv("b", a)), "silu")]

    graph = Graph().run(emit)
    assert graph.facts("a") == (False, False, "silu")
    assert graph.facts("b") == (False, True, "silu")


def test_before_and_expected():
    conv = conv_text("c", padding=(1, 1, 1, 1))
    relu = text(activation="relu", bounds=[0.0, float("inf")])
    fused = conv_text("c", padding=(1, 1, 1, 1), residual=True, activation="relu")

    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((1, 4, 6, 7), "float32"), w: R.Tensor((4, 4, 3, 3), "float32")):
            with R.dataflow():
                c = R.call_pure_packed(
                    "pattern_sparse.conv2d",
                    x,
                    w,
                    R.str(conv),
                    ty_args=R.Tensor((1, 4, 6, 7), "float32"),
                )
                s = R.add(x, c)
                y = R.call_pure_packed(
                    "pattern_sparse.activation",
                    s,
                    R.str(relu),
                    ty_args=R.Tensor((1, 4, 6, 7), "float32"),
                )
                R.output(y)
            return y

    @I.ir_module
    class Expected:
        @R.function
        def main(x: R.Tensor((1, 4, 6, 7), "float32"), w: R.Tensor((4, 4, 3, 3), "float32")):
            with R.dataflow():
                y = R.call_pure_packed(
                    "pattern_sparse.conv2d",
                    x,
                    w,
                    x,
                    R.str(fused),
                    ty_args=R.Tensor((1, 4, 6, 7), "float32"),
                )
                R.output(y)
            return y

    tvm.ir.assert_structural_equal(FuseEpilogue()(Before), Expected)
