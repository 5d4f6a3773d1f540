"""PatternRewrite and its report: every convolution has a row, every refusal a reason."""

import json

import numpy as np
import pytest
import tvm
from relax_oracle import conv_text
from tvm import relax
from tvm.script import ir as I
from tvm.script import relax as R

from relay_passes.markers import ConvParams, Marker, layout_from_list, layout_to_list, parse
from relay_passes.pattern_rewrite import PatternRewrite
from relay_passes.report import ReportBuilder
from topi_kernels.geometry import ConvGeometry
from topi_kernels.layout import PlaneLayout
from topi_kernels.report import LayerRow, RewriteReport


def rewrite(mod, **kwargs):
    report = ReportBuilder()
    return PatternRewrite(report, **kwargs)(mod), report.build()


def conv_module(weight, x_shape=(1, 4, 8, 9), x_dtype="float32", op=None, **attrs):
    """One convolution; a weight that is no array becomes a parameter of that shape."""
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType(x_shape, x_dtype))
    params = [x]
    if isinstance(weight, np.ndarray):
        w = relax.const(weight)
    else:
        w = relax.Var("w", relax.TensorType(weight, x_dtype))
        params.append(w)
    with builder.function("main", params):
        with builder.dataflow():
            call = (op or relax.op.nn.conv2d)(x, w, **attrs)
            y = builder.emit_output(builder.emit(call, name_hint="layer"))
        builder.emit_func_output(y)
    return builder.get()


def weight(*shape):
    return np.random.default_rng(0).standard_normal(shape).astype("float32")


BAD = weight(4, 4, 3, 3)
BAD[0, 0, 0, 0] = np.nan
N = tvm.tirx.Var("n", "int64")
REFUSED = {
    "weight is a parameter": (conv_module((4, 4, 3, 3)), "not a constant"),
    "nan": (conv_module(BAD), "NaN or Inf"),
    "stride": (conv_module(weight(4, 4, 3, 3), strides=(1, 5)), r"stride \(1, 5\); at most 4"),
    "dynamic": (conv_module(weight(4, 4, 3, 3), x_shape=(N, 4, 8, 8)), "dynamic shape"),
    "float16": (
        conv_module(weight(4, 4, 3, 3).astype("float16"), x_dtype="float16"),
        "no target is known to compute in float16",
    ),
    "mixed types": (
        conv_module(weight(4, 4, 3, 3).astype("float16"), x_dtype="float16", out_dtype="float32"),
        "expected all of them to be one of float32/float16",
    ),
    "layout": (
        conv_module(weight(4, 4, 3, 3), x_shape=(1, 8, 8, 4), data_layout="NHWC"),
        "expected NCHW/OIHW/NCHW",
    ),
    "1-D": (
        conv_module(weight(4, 4, 3), x_shape=(1, 4, 8), op=relax.op.nn.conv1d),
        "1-D convolution",
    ),
    "3-D": (
        conv_module(weight(4, 4, 3, 3, 3), x_shape=(1, 4, 8, 8, 8), op=relax.op.nn.conv3d),
        "3-D convolution",
    ),
    "transposed": (
        conv_module(weight(4, 5, 3, 3), op=relax.op.nn.conv2d_transpose),
        "transposed convolution",
    ),
    "too large": (
        conv_module(weight(4, 4, 1, 1), x_shape=(1024, 4, 1024, 1024)),
        "32-bit indexing",
    ),
}


@pytest.mark.parametrize(("mod", "reason"), REFUSED.values(), ids=REFUSED.keys())
def test_refusals_are_recorded(mod, reason):
    after, report = rewrite(mod)
    tvm.ir.assert_structural_equal(after, mod)
    (row,) = report
    assert not row.taken
    assert row.layer == "layer"
    with pytest.raises(AssertionError, match=reason):
        raise AssertionError(row.reason)


def test_unsupported_target_leaves_everything():
    mod = conv_module(weight(4, 4, 3, 3))
    after, report = rewrite(mod, unsupported="no schedules")
    tvm.ir.assert_structural_equal(after, mod)
    assert report.rows[0].reason == "no schedules"


def test_facts_of_a_row():
    value = weight(6, 4, 3, 3)
    value[:, :, 0] = 0
    _, report = rewrite(conv_module(value, strides=2, padding=1))
    (row,) = report
    assert row.taken
    assert row.reason == ""
    assert row.op == "nn.conv2d"
    assert (row.in_shape, row.out_shape) == ((1, 4, 8, 9), (1, 6, 4, 5))
    assert (row.kernel_size, row.stride) == ((3, 3), (2, 2))
    assert row.sparsity == pytest.approx(1 / 3)
    dense = 2 * 6 * 4 * 9 * 4 * 5 / 1e9
    assert row.dense_equivalent_gflop == pytest.approx(dense)
    assert row.effective_gflop == pytest.approx(dense * 2 / 3)


def test_flops_of_a_transposed_convolution():
    """Every weight meets every input pixel once."""
    _, report = rewrite(conv_module(weight(4, 5, 2, 2), op=relax.op.nn.conv2d_transpose, strides=2))
    assert report.rows[0].dense_equivalent_gflop == pytest.approx(2 * 4 * 5 * 4 * 8 * 9 / 1e9)


def test_unpruned_convolution_says_so():
    _, report = rewrite(conv_module(weight(4, 4, 3, 3)))
    assert report.rows[0].taken
    assert "not pruned" in report.rows[0].reason


@pytest.mark.parametrize("multiplier", [1, 2])
def test_depthwise(multiplier):
    after, report = rewrite(conv_module(weight(4 * multiplier, 1, 3, 3), groups=4))
    marker = parse(after["main"].body.blocks[0].bindings[0].value)
    assert marker.op == "depthwise_conv2d"
    assert report.rows[0].taken


def test_single_in_channel_is_an_ordinary_convolution():
    after, _ = rewrite(conv_module(weight(4, 1, 3, 3), x_shape=(1, 1, 8, 8)))
    assert parse(after["main"].body.blocks[0].bindings[0].value).op == "conv2d"


def test_before_and_expected():
    value = weight(4, 4, 3, 3)
    before = conv_module(value, padding=(1, 2, 3, 4), dilation=2)
    expected_text = conv_text("layer", padding=(1, 2, 3, 4), dilation=(2, 2), structure="zeros")
    kept = np.packbits(value.reshape(-1) != 0, bitorder="little")

    @I.ir_module
    class Expected:
        @R.function
        def main(
            x: R.Tensor((1, 4, 8, 9), "float32"),
            w: R.Tensor((4, 4, 3, 3), "float32"),
            k: R.Tensor((18,), "uint8"),
        ):
            with R.dataflow():
                y = R.call_pure_packed(
                    "pattern_sparse.conv2d",
                    x,
                    w,
                    k,
                    R.str(expected_text),
                    ty_args=R.Tensor((1, 4, 8, 11), "float32"),
                )
                R.output(y)
            return y

    # The output variable of `before` only renames the layer's.
    after = relax.transform.CanonicalizeBindings()(rewrite(before)[0])
    expected = relax.transform.BindParams("main", {"w": value, "k": kept})(Expected)
    tvm.ir.assert_structural_equal(after, expected)


def test_report_names_stay_unique_and_survive_json():
    builder = ReportBuilder()
    assert builder.add(LayerRow("conv", "nn.conv2d", True)) == "conv"
    assert builder.add(LayerRow("conv", "nn.conv2d", False, "why", (1, 2), (3,))) == "conv.1"
    builder.update("conv.1", config={"tile": 4}, pattern_set=("xx/..",))
    report = builder.build()
    assert RewriteReport.from_json(report.to_json()) == report
    assert [row.layer for row in report.taken] == ["conv"]
    assert [row.layer for row in report.skipped] == ["conv.1"]
    assert "why" in str(report)
    assert "conv.1" in str(report)
    with pytest.raises(KeyError):
        builder.update("missing", group=2)


def test_reports_of_before_the_structure_was_named_are_read():
    row = LayerRow("conv", "nn.conv2d", True, structure="assignment")
    assert RewriteReport.from_json(RewriteReport((row,)).to_json()).rows[0] == row
    older = json.loads(RewriteReport((row,)).to_json())
    del older[0]["structure"]
    assert RewriteReport.from_json(json.dumps(older)).rows[0].structure == ""


def test_marker_round_trip():
    layout = PlaneLayout.make(5, 6, 1)
    params = ConvParams(
        "a", ConvGeometry((3, 3), (1, 2), (0, 1)), (2, 3), in_layout=layout, out_layout=layout
    )
    x = relax.Var("x", relax.TensorType((1,), "float32"))
    marker = parse(Marker("plane_conv2d", (x, x), params.to_dict()).call(x.ty))
    assert marker.op == "plane_conv2d"
    assert len(marker.tensors) == 2
    assert ConvParams.from_dict(marker.params) == params
    assert layout_from_list(layout_to_list(layout)) == layout
    other = relax.call_pure_packed("someone.elses", x, ty_args=x.ty)
    assert parse(other) is None
    assert parse(x) is None
    assert parse(None) is None
