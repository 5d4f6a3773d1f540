"""PlaneLayout: what joins an island, layouts, pack and unpack at its borders."""

import numpy as np
import pytest
import tvm
from relax_oracle import conv_text, text
from tvm import relax
from tvm.script import ir as I
from tvm.script import relax as R

from relay_passes.markers import ConvParams, Marker, layout_to_list, parse
from relay_passes.plane_layout import PlaneLayout
from relay_passes.recognize_activations import activation_marker
from topi_kernels.geometry import ConvGeometry
from topi_kernels.layout import PlaneLayout as Layout
from topi_kernels.workload import Epilogue

SHAPE = (1, 4, 6, 8)
TYPE = relax.TensorType(SHAPE, "float32")


def choose(height, width, pad, dtype):
    assert dtype == "float32"
    return Layout.make(height, width, pad)


class Graph:
    """A function over images; ``run`` lays it out and lists its operators in order."""

    def __init__(self):
        self.builder = relax.BlockBuilder()
        self.x = relax.Var("x", TYPE)

    def emit(self, value):
        return self.builder.emit(value)

    def conv(self, source, k=3, residual=None, op="conv2d"):
        pad = k // 2
        params = ConvParams(
            f"k{k}",
            ConvGeometry((k, k), padding=(pad, pad)),
            (pad, pad),
            Epilogue(residual=residual is not None),
        )
        weight = relax.const(np.ones((4, 4 if op == "conv2d" else 1, k, k), "float32"))
        tensors = (source, weight) if residual is None else (source, weight, residual)
        return self.emit(Marker(op, tensors, params.to_dict()).call(TYPE))

    def act(self, x, name="relu", bounds=(0.0, float("inf"))):
        return self.emit(activation_marker(x, name, bounds).call(x.ty))

    def run(self, emit):
        with self.builder.function("main", [self.x]):
            with self.builder.dataflow():
                results = [self.builder.emit_output(value) for value in emit(self)]
            self.builder.emit_func_output(results)
        mod = PlaneLayout(choose)(self.builder.get())
        mod = relax.transform.CanonicalizeBindings()(mod)
        relax.analysis.well_formed(mod)
        self.ops, self.markers = [], []
        for block in mod["main"].body.blocks:
            for binding in block.bindings:
                marker = parse(binding.value)
                if marker is not None:
                    self.ops.append(marker.op)
                    self.markers.append(marker)
                elif isinstance(binding.value, tvm.ir.Call):
                    self.ops.append(binding.value.op.name)
        return self

    def find(self, op):
        return [m for m in self.markers if m.op == op]


def test_one_convolution():
    graph = Graph().run(lambda g: [g.conv(g.x)])
    assert graph.ops == ["plane_pack", "plane_conv2d", "plane_unpack"]
    params = graph.find("plane_conv2d")[0].params
    assert params["in_layout"] == layout_to_list(Layout.make(6, 8, 1))
    assert params["out_layout"] == layout_to_list(Layout.make(6, 8, 0))
    assert graph.find("plane_pack")[0].params["out_layout"] == params["in_layout"]
    assert graph.find("plane_unpack")[0].params["in_layouts"] == [params["out_layout"]]


def test_padding_is_the_largest_of_the_readers():
    def emit(g):
        y = g.conv(g.x, 1)
        return [g.conv(y, 3), g.conv(y, 5), g.conv(y, 1)]

    graph = Graph().run(emit)
    pads = [m.params["in_layout"][2] for m in graph.find("plane_conv2d")]
    assert pads == [0, 2, 2, 2]
    assert graph.ops.count("plane_pack") == 1
    assert graph.ops.count("plane_unpack") == 3


def test_residual_from_outside_is_packed_once():
    def emit(g):
        y = g.conv(g.x, 3, residual=g.x)
        return [g.conv(y, 3, residual=g.x)]

    graph = Graph().run(emit)
    assert graph.ops == ["plane_pack", "plane_conv2d", "plane_conv2d", "plane_unpack"]
    first = graph.find("plane_conv2d")[0].params
    assert first["residual_layout"] == first["in_layout"]


def test_island_of_pools_additions_and_activations():
    def emit(g):
        y = g.conv(g.x)
        y = g.act(g.emit(relax.op.add(y, g.x)))
        y = g.emit(relax.op.multiply(y, y))
        y = g.emit(relax.op.nn.max_pool2d(y, (3, 3), (2, 2), (1, 1)))
        y = g.emit(relax.op.nn.avg_pool2d(y, (2, 2), (1, 1), (1, 0)))
        return [g.emit(relax.op.mean(y, [-1, -2], keepdims=True))]

    graph = Graph().run(emit)
    assert graph.ops == [
        "plane_pack",
        "plane_conv2d",
        "plane_elementwise",
        "plane_elementwise",
        "plane_elementwise",
        "plane_max_pool",
        "plane_avg_pool",
        "plane_global_pool",
    ]


def test_adaptive_pool_to_one_pixel():
    def emit(g):
        y = g.conv(g.x)
        one = g.emit(relax.op.nn.adaptive_avg_pool2d(y, (1, 1)))
        return [one, g.emit(relax.op.nn.adaptive_avg_pool2d(y, (2, 2)))]

    graph = Graph().run(emit)
    assert "plane_global_pool" in graph.ops
    assert "plane_unpack" in graph.ops
    assert "relax.nn.adaptive_avg_pool2d" in graph.ops


def test_value_used_inside_and_outside_is_unpacked_once():
    def emit(g):
        y = g.conv(g.x)
        both = g.emit(relax.op.concat([y, y], axis=1))
        return [g.conv(y), both, y]

    graph = Graph().run(emit)
    assert graph.ops == [
        "plane_pack",
        "plane_conv2d",
        "plane_unpack",
        "relax.concat",
        "plane_conv2d",
        "plane_unpack",
    ]


def test_concatenation_splits_the_island():
    def emit(g):
        a, b = g.conv(g.x, 1), g.conv(g.x, 3)
        joined = g.emit(relax.op.concat([a, b], axis=2))
        half = g.emit(relax.op.strided_slice(joined, [2], [0], [6]))
        return [g.conv(half)]

    graph = Graph().run(emit)
    assert graph.ops.count("plane_unpack") == 3
    assert graph.ops.count("plane_pack") == 2


@pytest.mark.parametrize(
    "pool",
    [
        lambda x: relax.op.nn.max_pool2d(x, (2, 2), (1, 1), (0, 0), (2, 2)),
        lambda x: relax.op.nn.avg_pool2d(x, (2, 2), (2, 2), (0, 0), ceil_mode=True),
        lambda x: relax.op.nn.max_pool2d(x, (2, 2), (1, 1), (2, 2)),
        lambda x: relax.op.mean(x, [1], keepdims=True),
        lambda x: relax.op.mean(x),
    ],
    ids=["dilated", "ceil average", "window without pixel", "channel mean", "total mean"],
)
def test_pools_that_do_not_join(pool):
    graph = Graph().run(lambda g: [g.emit(pool(g.conv(g.x)))])
    assert graph.ops[:3] == ["plane_pack", "plane_conv2d", "plane_unpack"]
    assert graph.ops[3].startswith("relax.")


def test_addition_of_another_shape_does_not_join():
    def emit(g):
        y = g.conv(g.x)
        return [g.emit(relax.op.add(y, relax.const(np.ones((1, 4, 1, 1), "float32"))))]

    assert Graph().run(emit).ops[-1] == "relax.add"


@pytest.mark.parametrize(
    "activation",
    [
        "relu",
        "relu6",
        "clip",
        "silu",
        "sigmoid",
        "hardsigmoid",
        "hardswish",
        "tanh",
        "leaky_relu",
        "affine",
    ],
)
def test_activation_outside_an_island_becomes_relax_again(activation):
    graph = Graph().run(lambda g: [g.act(g.x, activation, (-1.0, 1.0))])
    assert graph.ops
    assert all(op.startswith("relax.") for op in graph.ops)


def test_depthwise_and_convolution_share_planes():
    def emit(g):
        return [g.conv(g.conv(g.x, 3, op="depthwise_conv2d"), 1)]

    graph = Graph().run(emit)
    assert graph.ops == ["plane_pack", "plane_depthwise", "plane_conv2d", "plane_unpack"]


def test_before_and_expected():
    conv = conv_text("c", padding=(1, 1, 1, 1))
    padded, bare = Layout.make(6, 8, 1), Layout.make(6, 8, 0)
    pack = text(in_layouts=[], out_layout=layout_to_list(padded))
    unpack = text(in_layouts=[layout_to_list(bare)], out_layout=None)
    placed = conv_text(
        "c",
        padding=(1, 1, 1, 1),
        in_layout=layout_to_list(padded),
        out_layout=layout_to_list(bare),
    )
    in_type = relax.TensorType((1, 4, padded.size), "float32")
    out_type = relax.TensorType((1, 4, bare.size), "float32")

    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((1, 4, 6, 8), "float32"), w: R.Tensor((4, 4, 3, 3), "float32")):
            with R.dataflow():
                c = R.call_pure_packed(
                    "pattern_sparse.conv2d",
                    x,
                    w,
                    R.str(conv),
                    ty_args=R.Tensor((1, 4, 6, 8), "float32"),
                )
                y = R.exp(c)
                R.output(y)
            return y

    @I.ir_module
    class Expected:
        @R.function
        def main(x: R.Tensor((1, 4, 6, 8), "float32"), w: R.Tensor((4, 4, 3, 3), "float32")):
            with R.dataflow():
                p = R.call_pure_packed("pattern_sparse.plane_pack", x, R.str(pack), ty_args=in_type)
                q = R.call_pure_packed(
                    "pattern_sparse.plane_conv2d", p, w, R.str(placed), ty_args=out_type
                )
                c = R.call_pure_packed(
                    "pattern_sparse.plane_unpack",
                    q,
                    R.str(unpack),
                    ty_args=R.Tensor((1, 4, 6, 8), "float32"),
                )
                y = R.exp(c)
                R.output(y)
            return y

    tvm.ir.assert_structural_equal(PlaneLayout(choose)(Before), Expected)


def test_rows_and_columns_are_padded_by_what_their_readers_need():
    def emit(graph):
        image = graph.conv(graph.x, 1)
        weight = relax.const(np.ones((4, 4, 1, 3), "float32"))
        params = ConvParams("far", ConvGeometry((1, 3), (1, 1), (0, 40), (1, 40)), (0, 40))
        far = graph.emit(Marker("conv2d", (image, weight), params.to_dict()).call(TYPE))
        params = ConvParams("tall", ConvGeometry((3, 1), padding=(1, 0)), (2, 0))
        weight = relax.const(np.ones((4, 4, 3, 1), "float32"))
        tall = graph.emit(Marker("conv2d", (image, weight), params.to_dict()).call(TYPE))
        return [far, tall]

    graph = Graph()
    graph.run(emit)
    layout = Layout(
        *next(m for m in graph.markers if m.params.get("layer") == "k1").params["out_layout"]
    )
    assert layout.pad == 2
    assert 40 <= layout.side < 40 + 16
    assert layout == choose(6, 8, (2, 40), "float32")
