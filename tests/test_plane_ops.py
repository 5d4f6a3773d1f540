"""Plane operators against torch, on odd sizes, tails, strides and every family's vector width."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import tvm
from families import PLANE_FAMILIES
from guards import run_guarded

from topi_kernels import plane_ops, plane_windows, vector_math
from topi_kernels.geometry import ConvGeometry
from topi_kernels.layout import PlaneLayout
from topi_kernels.plane_ops import PlaneTarget
from topi_kernels.plane_windows import DepthwiseConfig
from topi_kernels.workload import Epilogue

HOST = tvm.target.Target("llvm")
SIZES = [(1, 1), (5, 7), (14, 14), (3, 33), (9, 100), (17, 20)]


def run(primfunc, *args, out_shape):
    """Build for the host and run on storage full of NaN, so that unwritten elements show."""
    func = tvm.tirx.build(primfunc, target=HOST)
    return run_guarded(func, *args, np.full(out_shape, np.nan, "float32"))


def planes(x, layout):
    """Independent packer: place pixel by pixel as the layout's definition says."""
    out = np.zeros((*x.shape[:2], layout.size), "float32")
    for y in range(layout.height):
        for col in range(layout.width):
            out[:, :, layout.offset(y, col)] = x[:, :, y, col]
    return out


def random(*shape, seed=0, scale=3.0):
    return (np.random.default_rng(seed).standard_normal(shape) * scale).astype("float32")


@pytest.mark.parametrize("family", PLANE_FAMILIES)
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_pack_and_unpack(height, width, family):
    layout = PlaneLayout.make(height, width, 1, 16)
    x = random(2, 3, height, width)
    target = PlaneTarget(family, 2)
    packed = run(plane_ops.pack(2, 3, layout, target), x, out_shape=(2, 3, layout.size))
    np.testing.assert_array_equal(packed, planes(x, layout))
    unpacked = run(plane_ops.unpack(2, 3, layout, target), packed, out_shape=x.shape)
    np.testing.assert_array_equal(unpacked, x)


def test_layout_without_gap():
    """A row that ends where the next begins leaves nothing to fill between them."""
    layout = PlaneLayout(4, 8, 0, 8, 0, 32)
    x = random(1, 2, 4, 8)
    packed = run(plane_ops.pack(1, 2, layout, PlaneTarget("x86-avx2")), x, out_shape=(1, 2, 32))
    np.testing.assert_array_equal(packed, x.reshape(1, 2, 32))


ACTIVATIONS = {
    "none": lambda v: v,
    "relu": F.relu,
    "relu6": F.relu6,
    "clip": lambda v: v.clip(-1, 2),
    "hardswish": F.hardswish,
    "hardsigmoid": F.hardsigmoid,
    "silu": F.silu,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "gelu": F.gelu,
    "gelu_tanh": lambda v: F.gelu(v, approximate="tanh"),
    "mish": F.mish,
    "softplus": F.softplus,
    "elu": lambda v: F.elu(v, -1.0),
    "affine": lambda v: 2 - v,
    "leaky_relu": lambda v: F.leaky_relu(v, -1.0),
}


OPERATORS = [("add", name) for name in vector_math.ACTIVATIONS]
OPERATORS += [("multiply", name) for name in ("none", "relu", "affine")]


@pytest.mark.parametrize(("operator", "activation"), OPERATORS)
def test_elementwise(operator, activation):
    a, b = PlaneLayout.make(6, 21, 1), PlaneLayout.make(6, 21, 3)
    x, y = random(1, 3, 6, 21), random(1, 3, 6, 21, seed=1)
    func = plane_ops.elementwise(
        1, 3, (a, b), a, PlaneTarget("x86-avx512"), operator, activation, (-1.0, 2.0)
    )
    got = run(func, planes(x, a), planes(y, b), out_shape=(1, 3, a.size))
    joined = x + y if operator == "add" else x * y
    want = planes(ACTIVATIONS[activation](torch.tensor(joined)).numpy(), a)
    np.testing.assert_allclose(got, want, rtol=2e-6, atol=2e-6)


def test_exponential_range():
    x = np.linspace(-100, 100, 4001, dtype="float32").reshape(1, 1, 1, -1)
    layout = PlaneLayout.make(1, 4001, 0)
    for name, reference in [("sigmoid", torch.sigmoid), ("silu", F.silu)]:
        func = plane_ops.elementwise(
            1, 1, (layout,), layout, PlaneTarget("x86-avx512"), activation=name
        )
        got = run(func, planes(x, layout), out_shape=(1, 1, layout.size))
        want = planes(reference(torch.tensor(x)).numpy(), layout)
        np.testing.assert_allclose(got, want, rtol=5e-7, atol=1e-35)
        at_zero = got[0, 0, layout.offset(0, 2000)]
        assert at_zero == (0.5 if name == "sigmoid" else 0.0)


def test_tanh_of_small_and_large_values():
    x = np.concatenate([np.geomspace(1e-30, 1e-2, 500), np.linspace(0.01, 30, 3501)])
    x = np.concatenate([-x, x]).astype("float32").reshape(1, 1, 1, -1)
    layout = PlaneLayout.make(1, x.size, 0)
    func = plane_ops.elementwise(
        1, 1, (layout,), layout, PlaneTarget("x86-avx512"), activation="tanh"
    )
    got = run(func, planes(x, layout), out_shape=(1, 1, layout.size))
    want = planes(np.tanh(x.astype("float64")), layout)
    np.testing.assert_allclose(got, want, rtol=1e-6)
    assert abs(got).max() <= 1


# Largest error of x times the float32 error of a factor, so absolute up to 1 and relative above.
SMOOTH_ERRORS = {"gelu": 1e-6, "gelu_tanh": 1e-6, "mish": 1e-6, "softplus": 5e-7, "elu": 5e-7}


@pytest.mark.parametrize("name", SMOOTH_ERRORS)
def test_smooth_activations_in_double_precision(name):
    """Against torch in float64, tails included: nothing of what should vanish is left."""
    tails = np.geomspace(12, 1e4, 200)
    x = np.concatenate([np.linspace(-12, 12, 9601), tails, -tails]).astype("float32")
    layout = PlaneLayout.make(1, x.size, 0)
    func = plane_ops.elementwise(
        1, 1, (layout,), layout, PlaneTarget("x86-avx512"), activation=name, bounds=(-1.0, 0.0)
    )
    x = x.reshape(1, 1, 1, -1)
    got = run(func, planes(x, layout), out_shape=(1, 1, layout.size))
    want = planes(ACTIVATIONS[name](torch.tensor(x, dtype=torch.float64)).numpy(), layout)
    error = np.abs(got - want) / np.maximum(1, np.abs(want))
    assert error.max() < SMOOTH_ERRORS[name]
    if name != "elu":
        assert np.abs(got[planes(x, layout) < -100]).max() < 1e-35


def test_unknown_names():
    layout = PlaneLayout.make(2, 2, 0)
    with pytest.raises(ValueError, match="operator 'minus' is unknown"):
        plane_ops.elementwise(1, 1, (layout,), layout, PlaneTarget("x86-avx2"), "minus")
    with pytest.raises(ValueError, match="activation 'glue' is unknown"):
        vector_math.activate(tvm.tirx.FloatImm("float32", 0), "glue", 1)
    with pytest.raises(ValueError, match="unknown device 'pentium'; expected one of"):
        _ = PlaneTarget("pentium").lanes


@pytest.mark.parametrize(("height", "width"), SIZES)
@pytest.mark.parametrize("keep_dims", [True, False])
def test_global_avg_pool(height, width, keep_dims):
    layout = PlaneLayout.make(height, width, 1)
    x = random(2, 3, height, width)
    want = x.mean((2, 3), keepdims=keep_dims)
    func = plane_ops.global_avg_pool(2, 3, layout, PlaneTarget("x86-avx2"), keep_dims=keep_dims)
    got = run(func, planes(x, layout), out_shape=want.shape)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


def pool_layouts(height, width, window, bottom_right, in_pad=None):
    reach, pad = window.reach, window.padding
    out_h = (height + pad[0] + bottom_right[0] - reach[0] - 1) // window.stride[0] + 1
    out_w = (width + pad[1] + bottom_right[1] - reach[1] - 1) // window.stride[1] + 1
    need = max(*pad, *bottom_right)
    return (
        PlaneLayout.make(height, width, need if in_pad is None else in_pad),
        PlaneLayout.make(out_h, out_w, 1),
    )


POOLS = [
    (ConvGeometry((2, 2), (2, 2), (0, 0)), (0, 0)),
    (ConvGeometry((3, 3), (2, 2), (1, 1)), (1, 1)),
    (ConvGeometry((3, 3), (1, 1), (1, 1)), (1, 1)),
    (ConvGeometry((3, 2), (2, 3), (1, 0)), (0, 1)),
    (ConvGeometry((5, 5), (1, 1), (2, 2)), (2, 2)),
]


@pytest.mark.parametrize("family", PLANE_FAMILIES)
@pytest.mark.parametrize(("window", "bottom_right"), POOLS)
@pytest.mark.parametrize(("height", "width"), [(4, 5), (14, 14), (9, 77), (7, 33)])
def test_max_pool(height, width, window, bottom_right, family):
    """All inputs negative: a zero of the padding would win every border window."""
    in_layout, out_layout = pool_layouts(height, width, window, bottom_right)
    x = -np.abs(random(1, 2, height, width)) - 1
    func = plane_windows.max_pool(1, 2, in_layout, out_layout, window, PlaneTarget(family))
    got = run(func, planes(x, in_layout), out_shape=(1, 2, out_layout.size))
    (t, le), (b, r) = window.padding, bottom_right
    padded = F.pad(torch.tensor(x), (le, r, t, b), value=float("-inf"))
    want = F.max_pool2d(padded, window.kernel_size, window.stride).numpy()
    np.testing.assert_array_equal(got, planes(want, out_layout))


@pytest.mark.parametrize("include_pad", [True, False])
@pytest.mark.parametrize(("window", "bottom_right"), POOLS)
@pytest.mark.parametrize(("height", "width"), [(4, 5), (14, 14), (9, 77)])
def test_avg_pool(height, width, window, bottom_right, include_pad):
    in_layout, out_layout = pool_layouts(height, width, window, bottom_right)
    x = random(2, 2, height, width)
    target = PlaneTarget("x86-avx512")
    func = plane_windows.avg_pool(
        2, 2, in_layout, out_layout, window, target, count_include_pad=include_pad
    )
    got = run(func, planes(x, in_layout), out_shape=(2, 2, out_layout.size))
    (t, le), (b, r) = window.padding, bottom_right
    kh, kw = window.kernel_size

    def window_sum(v):
        padded = F.pad(torch.tensor(v), (le, r, t, b))
        return F.avg_pool2d(padded, (kh, kw), window.stride).numpy() * (kh * kw)

    want = window_sum(x) / (kh * kw if include_pad else window_sum(np.ones_like(x)))
    np.testing.assert_allclose(got, planes(want, out_layout), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", PLANE_FAMILIES)
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize(("height", "width"), [(1, 1), (7, 7), (14, 14), (9, 37), (5, 112)])
def test_depthwise(height, width, stride, family):
    window = ConvGeometry((3, 3), (stride, stride), (1, 1))
    in_layout, out_layout = pool_layouts(height, width, window, (1, 1))
    x, w, b = random(2, 3, height, width), random(3, 1, 3, 3, seed=1), random(3, seed=2)
    epilogue = Epilogue(bias=True, activation="relu6")
    func = plane_windows.depthwise_conv(
        2, 3, in_layout, out_layout, window, PlaneTarget(family), epilogue
    )
    got = run(func, planes(x, in_layout), w[:, 0], b, out_shape=(2, 3, out_layout.size))
    want = F.relu6(
        F.conv2d(*map(torch.tensor, (x, w, b)), stride=stride, padding=1, groups=3)
    ).numpy()
    np.testing.assert_allclose(got, planes(want, out_layout), rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("rows", [1, 3, 8])
def test_depthwise_dilated_5x5_with_multiplier(rows):
    window = ConvGeometry((5, 5), (1, 1), (4, 4), (2, 2))
    in_layout, out_layout = pool_layouts(11, 13, window, (4, 4))
    x, w = random(1, 2, 11, 13), random(4, 1, 5, 5, seed=1)
    func = plane_windows.depthwise_conv(
        1,
        4,
        in_layout,
        out_layout,
        window,
        PlaneTarget("x86-avx2", 2),
        multiplier=2,
        config=DepthwiseConfig(rows),
    )
    got = run(func, planes(x, in_layout), w[:, 0], out_shape=(1, 4, out_layout.size))
    want = F.conv2d(torch.tensor(x), torch.tensor(w), padding=4, dilation=2, groups=2).numpy()
    np.testing.assert_allclose(got, planes(want, out_layout), rtol=1e-5, atol=1e-4)


def test_tight_layouts_narrow_the_vectors():
    """Planes without slack: no load may leave the plane, so the vectors become narrower."""
    window = ConvGeometry((2, 2), (2, 2), (0, 0))
    in_layout, out_layout = PlaneLayout(6, 6, 0, 6, 0, 36), PlaneLayout(3, 3, 0, 3, 0, 9)
    x = random(1, 1, 6, 6)
    func = plane_windows.max_pool(1, 1, in_layout, out_layout, window, PlaneTarget("x86-avx512"))
    got = run(func, x.reshape(1, 1, 36), out_shape=(1, 1, 9))
    want = F.max_pool2d(torch.tensor(x), 2).numpy().reshape(1, 1, 9)
    np.testing.assert_array_equal(got, want)


def test_window_errors():
    bare, target = PlaneLayout.make(8, 8, 0), PlaneTarget("x86-avx2")
    window = ConvGeometry((3, 3), (1, 1), (1, 1))
    with pytest.raises(ValueError, match="padded by 0 rows, 1 are read"):
        plane_windows.avg_pool(1, 1, bare, bare, window, target, count_include_pad=True)
    with pytest.raises(ValueError, match="padded by 0 rows, 1 are read"):
        plane_windows.depthwise_conv(1, 1, bare, bare, window, target)
    tall = PlaneLayout(8, 8, 1, 8, 8, 80)
    with pytest.raises(ValueError, match="padded by 0 columns, 1 are read"):
        plane_windows.depthwise_conv(1, 1, tall, tall, window, target)
    padded = PlaneLayout.make(8, 8, 1)
    with pytest.raises(ValueError, match="3 out_channels are no multiple"):
        plane_windows.depthwise_conv(1, 3, padded, padded, window, target, multiplier=2)
    with pytest.raises(ValueError, match="see no pixel"):
        plane_windows.max_pool(
            1, 1, padded, PlaneLayout.make(8, 12, 0), ConvGeometry((1, 1), (1, 1), (0, 0)), target
        )
    dilated = ConvGeometry((3, 3), (1, 1), (1, 1), (2, 2))
    with pytest.raises(ValueError, match="max_pool takes no dilation"):
        plane_windows.max_pool(1, 1, padded, padded, dilated, target)
    with pytest.raises(ValueError, match="a geometry needs positive"):
        ConvGeometry((3, 3), (0, 1), (1, 1))
    with pytest.raises(ValueError, match=r"rows must be in 1\.\.8"):
        DepthwiseConfig(9)
