"""Operators on planes on OpenCL devices, against torch; halo and all."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conv_cases import to_planes
from torch.nn import functional

from topi_kernels.backend import Backend
from topi_kernels.channelwise import ChannelTerms
from topi_kernels.geometry import ConvGeometry
from topi_kernels.matvec import MatvecConfig, pack_columns
from topi_kernels.plane_operators import (
    avg_pool,
    channelwise,
    depthwise_conv,
    elementwise,
    global_avg_pool,
    matvec,
    max_pool,
    pack,
    unpack,
)
from topi_kernels.plane_ops import PlaneTarget
from topi_kernels.workload import Epilogue

from .gpu_cases import run

TARGET = PlaneTarget("mali")
SIZE = (9, 7)
RNG = np.random.default_rng(3)
IMAGES = RNG.standard_normal((2, 5, *SIZE)).astype(np.float32)


def layout_of(size: tuple[int, int], pad: int = 1):
    return Backend.named("mali").layout_for(*size, pad)


def nan(shape: tuple[int, ...]) -> np.ndarray:
    return np.full(shape, np.nan, np.float32)


def check(func, inputs: list[np.ndarray], expected: np.ndarray, folder) -> None:
    got = run(func, [*inputs, nan(expected.shape)], folder)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


def test_pack_and_unpack(device, tmp_path):
    layout = layout_of(SIZE, 2)
    planes = to_planes(IMAGES, layout)
    check(pack(2, 5, layout, TARGET), [IMAGES], planes, tmp_path)
    check(unpack(2, 5, layout, TARGET), [planes], IMAGES, tmp_path)


@pytest.mark.parametrize("operator", ["add", "multiply"])
def test_two_layouts_and_a_clip(device, tmp_path, operator):
    wide, narrow = layout_of(SIZE, 2), layout_of(SIZE, 0)
    func = elementwise(2, 5, (wide, narrow), narrow, TARGET, operator, "clip", (-0.5, float("inf")))
    other = IMAGES[::-1].copy()
    combined = IMAGES + other if operator == "add" else IMAGES * other
    expected = to_planes(np.maximum(combined, -0.5), narrow)
    inputs = [to_planes(IMAGES, wide), to_planes(other, narrow)]
    check(func, inputs, expected, tmp_path)


def test_an_unknown_operator_is_refused():
    layout = layout_of(SIZE)
    with pytest.raises(ValueError, match="operator 'divide' is unknown; expected one of"):
        elementwise(1, 1, (layout, layout), layout, TARGET, "divide")


@pytest.mark.parametrize("activation", ["sigmoid", "hardsigmoid", "tanh", "gelu", "mish"])
def test_activations_keep_nan(device, tmp_path, activation):
    layout = layout_of(SIZE)
    images = IMAGES.copy()
    images[0, 0, 0, 0] = np.nan
    function = getattr(functional, activation)
    expected = to_planes(function(torch.tensor(images)).numpy(), layout)
    func = elementwise(2, 5, (layout,), layout, TARGET, activation=activation)
    check(func, [to_planes(images, layout)], expected, tmp_path)


def test_channelwise(device, tmp_path):
    layout, gate_layout = layout_of(SIZE), layout_of((1, 1), 0)
    gate, constants = RNG.random((2, 5, 1, 1)), RNG.standard_normal((3, 5))
    value = torch.tensor(IMAGES * gate) * torch.tensor(constants[0, :, None, None])
    value = functional.prelu(
        value + torch.tensor(constants[1, :, None, None]), torch.tensor(constants[2])
    )
    terms = ChannelTerms(gate_layout, True, True, True, activation="clip", bounds=(-0.5, 1.0))
    func = channelwise(2, 5, layout, layout, terms, TARGET)
    inputs = [to_planes(IMAGES, layout), to_planes(gate.astype("float32"), gate_layout)]
    inputs += list(constants.astype("float32"))
    check(func, inputs, to_planes(value.clip(-0.5, 1).float().numpy(), layout), tmp_path)


@pytest.mark.parametrize(("kernel", "stride", "padding"), [(3, 2, 1), (2, 2, 0)])
def test_pools(device, tmp_path, kernel, stride, padding):
    images = IMAGES.copy()
    images[1, 2, 3, 3] = np.nan
    window = ConvGeometry((kernel, kernel), (stride, stride), (padding, padding))
    x = torch.tensor(images)
    largest = functional.max_pool2d(x, kernel, stride, padding)
    source, out = layout_of(SIZE), layout_of(tuple(largest.shape[2:]))
    planes = to_planes(images, source)
    func = max_pool(2, 5, source, out, window, TARGET)
    check(func, [planes], to_planes(largest.numpy(), out), tmp_path)
    for include in (True, False):
        mean = functional.avg_pool2d(x, kernel, stride, padding, count_include_pad=include)
        func = avg_pool(2, 5, source, out, window, TARGET, count_include_pad=include)
        check(func, [planes], to_planes(mean.numpy(), out), tmp_path)


def test_bad_pools():
    layout, window = layout_of((8, 8), 0), ConvGeometry((3, 3), padding=(1, 1))
    with pytest.raises(ValueError, match="padded by 0 rows, 1 are read"):
        avg_pool(1, 1, layout, layout, window, TARGET, count_include_pad=True)
    with pytest.raises(ValueError, match="max_pool takes no dilation"):
        max_pool(1, 1, layout, layout, ConvGeometry((3, 3), dilation=(2, 2)), TARGET)


@pytest.mark.parametrize("keep_dims", [True, False])
def test_global_mean(device, tmp_path, keep_dims):
    layout = layout_of(SIZE)
    expected = IMAGES.mean((2, 3), keepdims=keep_dims)
    func = global_avg_pool(2, 5, layout, TARGET, keep_dims=keep_dims)
    check(func, [to_planes(IMAGES, layout)], expected, tmp_path)


@pytest.mark.parametrize(
    ("kernel", "stride", "multiplier", "activation"),
    [(3, 1, 1, "relu6"), (3, 2, 2, "none"), (5, 1, 1, "hardswish")],
)
def test_depthwise(device, tmp_path, kernel, stride, multiplier, activation):
    pad, filters = kernel // 2, 5 * multiplier
    weight = RNG.standard_normal((filters, 1, kernel, kernel)).astype(np.float32)
    bias = RNG.standard_normal(filters).astype(np.float32)
    window = ConvGeometry((kernel, kernel), (stride, stride), (pad, pad))
    tensors = (torch.tensor(a) for a in (IMAGES, weight, bias))
    value = functional.conv2d(*tensors, stride, pad, groups=5)
    value = {"none": lambda v: v}.get(activation, getattr(functional, activation, None))(value)
    source, out = layout_of(SIZE, pad), layout_of(tuple(value.shape[2:]))
    func = depthwise_conv(
        2,
        filters,
        source,
        out,
        window,
        TARGET,
        Epilogue(bias=True, activation=activation),
        multiplier,
    )
    inputs = [to_planes(IMAGES, source), weight[:, 0], bias]
    check(func, inputs, to_planes(value.numpy(), out), tmp_path)


def test_depthwise_without_room_is_refused():
    layout, window = layout_of((8, 8), 0), ConvGeometry((5, 5), padding=(2, 2))
    with pytest.raises(ValueError, match="padded by 0 rows and 0 columns, which is less than"):
        depthwise_conv(1, 4, layout, layout, window, TARGET)
    with pytest.raises(ValueError, match="no multiple of the multiplier 3"):
        depthwise_conv(1, 4, layout, layout, ConvGeometry((1, 1)), TARGET, multiplier=3)


@pytest.mark.parametrize(("rows", "k", "n"), [(1, 70, 37), (3, 5, 16)])
def test_matvec(device, tmp_path, rows, k, n):
    x = RNG.standard_normal((rows, k)).astype(np.float32)
    matrix = RNG.standard_normal((k, n)).astype(np.float32)
    config = MatvecConfig()
    packed = pack_columns(matrix, config.vectors * TARGET.lanes)
    check(matvec(rows, k, n, TARGET, config), [x, packed], x @ matrix, tmp_path)
