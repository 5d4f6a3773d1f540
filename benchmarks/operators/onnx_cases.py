"""The ONNX half of the operator table: one node a line.

A line is the call of an operator on the input ``x`` (and ``y``); lists are constants, ``""`` stands
for an input that is left out, named arguments are attributes.
"""

from __future__ import annotations

from .case import Case, cases_of

IMAGE = "2,4,9,11"

_RESIZE = ";".join(
    [
        f'Resize(x, "", {target}, mode="{mode}", coordinate_transformation_mode="{coordinates}")'
        for mode in ("nearest", "linear", "cubic")
        for coordinates in (
            "half_pixel",
            "half_pixel_symmetric",
            "pytorch_half_pixel",
            "align_corners",
            "asymmetric",
        )
        for target in (
            "[1.0, 1.0, 1.5, 1.5]",
            "[1.0, 1.0, 2.0, 2.0]",
            "[1.0, 1.0, 0.6, 1.3]",
            '"", [2, 4, 20, 7]',
            '"", [2, 4, 25, 25]',
        )
    ]
    + [
        f'Resize(x, "", {target}, mode="nearest", nearest_mode="{rounding}",'
        f' coordinate_transformation_mode="{coordinates}")'
        for rounding in ("floor", "ceil", "round_prefer_floor", "round_prefer_ceil")
        for coordinates in ("half_pixel", "asymmetric")
        for target in ("[1.0, 1.0, 1.5, 0.7]", '"", [2, 4, 13, 15]')
    ]
    + [
        'Resize(x, "", [1.0, 1.0, 1.5, 0.7], mode="cubic", cubic_coeff_a=-0.5)',
        'Resize(x, "", [1.0, 1.0, 1.5, 0.7], mode="cubic", exclude_outside=1)',
        'Resize(x, "", [1.5, 2.0], mode="linear", axes=[2, 3])',
        'Resize(x, "", "", [1, 1], mode="linear", axes=[2, 3])',
        'Resize(x, "", "", [2, 4, 1, 1], mode="linear",'
        ' coordinate_transformation_mode="pytorch_half_pixel")',
        'Resize(x, "", [1.0, 1.0, 0.7, 0.7], mode="linear", antialias=1)',
        "Resize(x, [0.0, 0.0, 0.2, 0.1, 1.0, 1.0, 0.8, 0.9], [1.0, 1.0, 1.5, 1.5],"
        ' mode="linear", coordinate_transformation_mode="tf_crop_and_resize")',
    ]
)

_POOLS = (
    ";".join(
        [
            f'{pool}(x, kernel_shape={kernel}, strides={stride}, auto_pad="{pad}")'
            for pool in ("MaxPool", "AveragePool")
            for kernel, stride in (("[3, 3]", "[2, 2]"), ("[2, 2]", "[2, 2]"), ("[4, 2]", "[3, 1]"))
            for pad in ("SAME_UPPER", "SAME_LOWER", "VALID")
        ]
    )
    + """
MaxPool(x, kernel_shape=[3, 3]); MaxPool(x, kernel_shape=[3, 3], pads=[1, 0, 0, 1])
MaxPool(x, kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1)
MaxPool(x, kernel_shape=[2, 2], dilations=[2, 2])
MaxPool(x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1], ceil_mode=1)
AveragePool(x, kernel_shape=[3, 3], pads=[1, 1, 1, 1])
AveragePool(x, kernel_shape=[3, 3], strides=[2, 2])
AveragePool(x, kernel_shape=[3, 3], pads=[1, 1, 1, 1], count_include_pad=1)
AveragePool(x, kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1)
AveragePool(x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1], ceil_mode=1)
AveragePool(x, kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4, ceil_mode=1, count_include_pad=1)
AveragePool(x, kernel_shape=[3, 3], pads=[1, 0, 2, 1])
AveragePool(x, kernel_shape=[3, 3], dilations=[2, 2])
GlobalAveragePool(x); GlobalMaxPool(x); LpPool(x, kernel_shape=[3, 3], p=2); GlobalLpPool(x, p=2)
LpPool(x, kernel_shape=[3, 3], p=1, strides=[2, 2], pads=[1, 1, 1, 1])
"""
)

_CONVS = (
    ";".join(
        [
            f"Conv(x, weight(6, 4, {kernel}), kernel_shape=[{kernel}], strides={stride},"
            f' auto_pad="{pad}")'
            for kernel, stride in (("3, 3", "[2, 2]"), ("2, 2", "[1, 1]"), ("4, 2", "[3, 1]"))
            for pad in ("SAME_UPPER", "SAME_LOWER", "VALID")
        ]
    )
    + """
Conv(x, weight(6, 4, 3, 3), [0.1, 0.2, 0.3, 0.4, 0.5, 0.6], pads=[1, 1, 1, 1])
Conv(x, weight(6, 4, 3, 3), pads=[1, 0, 2, 1])
Conv(x, weight(8, 2, 3, 3), group=2, dilations=[2, 1])
ConvTranspose(x, weight(4, 6, 3, 3), strides=[2, 2], pads=[1, 1, 1, 1], output_padding=[1, 1])
ConvTranspose(x, weight(4, 6, 3, 3), strides=[2, 2], auto_pad="SAME_UPPER")
ConvTranspose(x, weight(4, 6, 3, 3), strides=[2, 2], auto_pad="SAME_LOWER")
ConvTranspose(x, weight(4, 3, 2, 2), strides=[2, 2], group=2)
ConvTranspose(x, weight(4, 6, 3, 3), dilations=[2, 1])
ConvTranspose(x, weight(4, 6, 3, 3), strides=[2, 2], output_shape=[18, 22])
ConvTranspose(x, weight(4, 6, 3, 3), pads=[1, 0, 2, 1])
"""
)

_PADS = """
Pad(x, [0, 0, 1, 2, 0, 0, 3, 0]); Pad(x, [0, 0, 1, 2, 0, 0, 3, 0], 1.5)
Pad(x, [0, 0, 1, 2, 0, 0, 3, 0], mode="reflect")
Pad(x, [0, 0, 1, 2, 0, 0, 3, 0], mode="edge"); Pad(x, [0, 0, 1, 2, 0, 0, 3, 0], mode="wrap")
Pad(x, [1, 2, 3, 0], "", [2, 3]); Pad(x, [0, 0, -1, 2, 0, 0, 1, -2]); Pad(x, [1, 2], 2.0, [-1])
"""

_ELEMENTWISE = """
Relu(x); LeakyRelu(x); LeakyRelu(x, alpha=0.3); Elu(x); Elu(x, alpha=0.5); Selu(x)
Selu(x, alpha=2.0, gamma=0.5)
Celu(x); Celu(x, alpha=0.5); Sigmoid(x); HardSigmoid(x); HardSigmoid(x, alpha=0.3, beta=0.2)
HardSwish(x); Mish(x)
Softplus(x); Softsign(x); ThresholdedRelu(x); ThresholdedRelu(x, alpha=0.3)
Shrink(x, lambd=0.5, bias=0.2); Shrink(x)
PRelu(x, weight(4, 1, 1)); Clip(x, -1.0, 1.0); Clip(x, "", 0.5); Clip(x, 0.5); Clip(x, 1.0, -1.0)
Tanh(x); Erf(x); Gelu(x); Gelu(x, approximate="tanh")
Softmax(x); Softmax(x, axis=1); LogSoftmax(x, axis=1); Hardmax(x); Abs(x); Neg(x); Exp(x)
Floor(x); Ceil(x); Round(x); Sign(x)
Sin(x); Cos(x); Tan(x); Sinh(x); Cosh(x); Atan(x); Asinh(x); Reciprocal(x); Identity(x)
Not(Greater(x, y)); IsNaN(x); IsInf(x)
Add(x, y); Sub(x, y); Mul(x, y); Div(x, y); Pow(Abs(x), y); Pow(x, 2.0); Max(x, y); Min(x, y)
Max(x, y, x); Mean(x, y); Sum(x, y, x)
Mod(x, y, fmod=1); Equal(x, y); Greater(x, y); Less(x, y); GreaterOrEqual(x, y)
LessOrEqual(x, y); Where(Greater(x, y), x, y)
And(Greater(x, y), Less(x, 1.0)); Or(Greater(x, y), Less(x, 1.0))
Xor(Greater(x, y), Less(x, 1.0)); Cast(x, to=6); Cast(x, to=7); Cast(x, to=11)
Dropout(x); Dropout(x, 0.5); Log(Abs(x)); Sqrt(Abs(x)); Cast(Greater(x, y), to=1)
BitShift(Cast(Abs(x), to=12), constant(1, 12), direction="LEFT")
"""

_NORMS = """
BatchNormalization(x, weight(4), weight(4), weight(4), positive(4))
BatchNormalization(x, weight(4), weight(4), weight(4), positive(4), epsilon=0.1)
InstanceNormalization(x, weight(4), weight(4))
InstanceNormalization(x, weight(4), weight(4), epsilon=0.1)
LayerNormalization(x, weight(11), weight(11)); LayerNormalization(x, weight(9, 11), "", axis=-2)
LayerNormalization(x, weight(11), weight(11), epsilon=0.1)
GroupNormalization(x, weight(2), weight(2), num_groups=2); LRN(x, size=3)
LRN(x, size=5, alpha=0.1, beta=0.5, bias=2.0); LpNormalization(x); LpNormalization(x, axis=1, p=1)
MeanVarianceNormalization(x)
"""

_REDUCTIONS = (
    ";".join(
        f"Reduce{name}(x{call})"
        for name in (
            "Sum",
            "Mean",
            "Max",
            "Min",
            "Prod",
            "L1",
            "L2",
            "SumSquare",
            "LogSumExp",
            "LogSum",
        )
        for call in ("", ", [1]", ", [2, 3], keepdims=0", ", [-1, 0]")
    )
    + """
ArgMax(x); ArgMax(x, axis=1, keepdims=0); ArgMin(x, axis=-1)
ArgMax(x, axis=1, select_last_index=1); CumSum(x, constant(1, 7))
CumSum(x, constant(1, 7), reverse=1); CumSum(x, constant(1, 7), exclusive=1)
TopK(x, [3], axis=1, outputs=2); TopK(x, [2], axis=2, largest=0, outputs=2)
"""
)

_SHAPES = """
Concat(x, y, axis=1); Concat(x, y, axis=-1); Split(x, [1, 3], axis=1, outputs=2)
Split(x, axis=1, num_outputs=2, outputs=2); Split(x, axis=3, num_outputs=4, outputs=4)
Slice(x, [1], [3], [1]); Slice(x, [0, 1], [100, -1], [2, 3], [2, 3])
Slice(x, [-1], [-100], [3], [-1]); Slice(x, [-4], [-1], [-1], [2])
Slice(x, [8, 9], [2, 1], [2, 3], [-2, -3])
Gather(x, [0, 2], axis=1); Gather(x, [0, -1], axis=3); Gather(x, constant(1, 7), axis=2)
GatherElements(x, constant_like_x(1), axis=1); GatherND(x, [[0, 1], [1, 3]])
Transpose(x); Transpose(x, perm=[0, 2, 3, 1]); Reshape(x, [2, -1]); Reshape(x, [0, 0, -1])
Reshape(x, [8, 99]); Flatten(x); Flatten(x, axis=2); Flatten(x, axis=-1)
Squeeze(Slice(x, [0], [1], [0]), [0]); Unsqueeze(x, [1, -1]); Expand(x, [3, 1, 1, 1, 1])
Tile(x, [1, 2, 1, 3]); Shape(x); Shape(x, start=1, end=3); Size(x)
DepthToSpace(x, blocksize=2); DepthToSpace(x, blocksize=2, mode="CRD")
SpaceToDepth(Slice(x, [0, 0], [8, 10], [2, 3]), blocksize=2); Trilu(x)
Trilu(x, constant(1, 7), upper=0)
OneHot(Cast(Abs(x), to=7), constant(5, 7), [0.0, 1.0]); ConstantOfShape([2, 3])
ScatterElements(x, constant_like_x(1), y, axis=1); ScatterND(x, [[0], [1]], y)
EyeLike(Reshape(x, [8, 99]))
NonZero(x); Compress(x, condition(1, 0, 1, 1), axis=1); Range(0.0, 5.0, 1.5)
ReverseSequence(x, [3, 2], batch_axis=0, time_axis=1); Unique(x)
CenterCropPad(x, [7, 13], axes=[2, 3])
"""

_PRODUCTS = """
MatMul(x, y); MatMul(x, weight(6, 5)); Gemm(Reshape(x, [15, 6]), weight(6, 4))
Gemm(Reshape(x, [15, 6]), weight(4, 6), weight(4), transB=1)
Gemm(Reshape(x, [15, 6]), weight(6, 4), weight(15, 1), alpha=0.5, beta=2.0)
Gemm(Reshape(x, [6, 15]), weight(6, 4), transA=1); Einsum(x, y, equation="bij,bjk->bik")
"""

_SAMPLING = ";".join(
    f'GridSample(x, y, mode="{mode}", padding_mode="{padding}", align_corners={corners})'
    for mode in ("linear", "nearest", "cubic")
    for padding in ("zeros", "border", "reflection")
    for corners in (0, 1)
)


def onnx_cases() -> list[Case]:
    """Every line of the table, in its order."""
    pair = {"x": IMAGE, "y": IMAGE}
    return [
        *cases_of("Resize", _RESIZE, {"x": IMAGE}),
        *cases_of("pooling", _POOLS, {"x": IMAGE}),
        *cases_of("convolutions", _CONVS, {"x": IMAGE}),
        *cases_of("pads", _PADS, {"x": IMAGE}),
        *cases_of("element by element", _ELEMENTWISE, pair),
        *cases_of("norms", _NORMS, {"x": IMAGE}),
        *cases_of("reductions", _REDUCTIONS, {"x": f"positive {IMAGE}"}),
        *cases_of("shapes and indices", _SHAPES, pair),
        *cases_of("products", _PRODUCTS, {"x": "3,5,6", "y": "3,6,4"}),
        *cases_of("sampling", _SAMPLING, {"x": "2,3,6,5", "y": "grid 2,4,7,2"}),
    ]
