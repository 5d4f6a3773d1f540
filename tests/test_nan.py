"""NaN in, NaN out, and infinities right: every operator and whole networks against torch."""

from __future__ import annotations

import re

import families
import numpy as np
import pytest
import torch
import torch.nn.functional as F
import tvm
from conv_cases import HOST_TARGET, ConvCase, from_planes, pattern_weights, to_planes
from guards import run_guarded
from torch import nn

import tvm_pattern as tp
from topi_kernels import plane_ops, plane_windows
from topi_kernels.devices import DEVICES
from topi_kernels.geometry import ConvGeometry
from topi_kernels.layout import PlaneLayout
from topi_kernels.plane_ops import PlaneTarget

#: Maxima of the others are ARM's instruction, which this machine does not have; they are emulated
#: in ``tests/arm``.
FAMILIES = sorted(
    {
        DEVICES.facts(name).vector_width: name
        for name in families.FAMILIES[::-1]
        if not DEVICES.facts(name).nan_maximum
    }.values()
)
NAN, INF = float("nan"), float("inf")
SPECIALS = (NAN, INF, -INF, -0.0, 100.0, -100.0)
TARGETS = {
    "x86-avx512": {"kind": "llvm", "mcpu": "sapphirerapids"},
    "x86-avx2": {"kind": "llvm", "mcpu": "haswell"},
    "arm-neon": {"kind": "llvm", "mtriple": "aarch64-linux-gnu", "mcpu": "cortex-a76"},
    "armv7-neon": {
        "kind": "llvm",
        "mtriple": "armv7l-linux-gnueabihf",
        "mcpu": "cortex-a15",
        "mattr": ["+neon"],
        "mfloat-abi": "hard",
    },
}
BOUNDS = {
    "elu": (0.5, 0.0),
    "affine": (3.0, -0.5),
    "leaky_relu": (0.1, 0.0),
    "relu": (0.0, INF),
    "relu6": (0.0, 6.0),
    "clip": (-1.0, 2.0),
    "below": (-INF, 0.0),
}
ACTIVATIONS = {
    "relu": F.relu,
    "relu6": F.relu6,
    "clip": lambda v: v.clamp(-1, 2),
    "below": lambda v: v.clamp(max=0),
    "hardswish": F.hardswish,
    "hardsigmoid": F.hardsigmoid,
    "silu": F.silu,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    # Not F.gelu, which is NaN at infinity where oneDNN computes it.
    "gelu": lambda v: 0.5 * v * (1 + torch.erf(v * 0.5**0.5)),
    "gelu_tanh": lambda v: F.gelu(v, approximate="tanh"),
    "mish": F.mish,
    "softplus": F.softplus,
    "elu": lambda v: F.elu(v, 0.5),
    "affine": lambda v: v * 3 - 0.5,
    "leaky_relu": lambda v: F.leaky_relu(v, 0.1),
}


def special(*shape: int, seed: int = 0, share: float = 0.1, values=SPECIALS) -> np.ndarray:
    """Random numbers with ``values`` sprinkled in."""
    rng = np.random.default_rng(seed)
    x = (rng.standard_normal(shape) * 3).astype(np.float32)
    chosen = rng.random(shape) < share
    x[chosen] = rng.choice(np.array(values, np.float32), int(chosen.sum()))
    return x


def run(primfunc: tvm.tirx.PrimFunc, *arrays: np.ndarray) -> np.ndarray:
    """The last array is the output."""
    return run_guarded(tvm.tirx.build(primfunc, target=HOST_TARGET), *arrays)


def elementwise(
    family: str, layout: PlaneLayout, name: str, channels: int = 2
) -> tvm.tirx.PrimFunc:
    activation = "clip" if name == "below" else name
    return plane_ops.elementwise(
        1,
        channels,
        (layout,),
        layout,
        PlaneTarget(family),
        activation=activation,
        bounds=BOUNDS.get(name, (0.0, 0.0)),
    )


def assert_same(got: np.ndarray, want: np.ndarray, tolerance: float = 2e-6) -> None:
    """Equal within rounding, NaN and infinities at the same places."""
    np.testing.assert_array_equal(np.isnan(got), np.isnan(want))
    np.testing.assert_allclose(got, want, rtol=tolerance, atol=tolerance)


# What is one expression whatever the width is run at one width.
_ONCE = {"gelu", "gelu_tanh", "mish", "softplus", "elu"}
_CASES = [(f, n) for f in FAMILIES for n in ACTIVATIONS if f == FAMILIES[0] or n not in _ONCE]


@pytest.mark.parametrize(("family", "name"), _CASES)
def test_activation(family, name):
    layout = PlaneLayout.make(5, 37, 1)
    x = special(1, 2, 5, 37)
    out = np.zeros((1, 2, layout.size), np.float32)
    got = from_planes(run(elementwise(family, layout, name), to_planes(x, layout), out), layout)
    want = ACTIVATIONS[name](torch.from_numpy(x)).numpy()
    assert np.isnan(want).any()
    assert_same(got, want)
    if name in BOUNDS:
        known = ~np.isnan(want)
        np.testing.assert_array_equal(np.signbit(got)[known], np.signbit(want)[known])


POOLS = [((3, 3), (2, 2), 1), ((3, 3), (1, 1), 1), ((3, 2), (3, 3), 1)]


@pytest.mark.parametrize(("kernel", "stride", "padding"), POOLS)
@pytest.mark.parametrize("family", FAMILIES)
def test_pooling(family, kernel, stride, padding):
    """Windows of NaN and of -Inf only among them; padding wins no window."""
    x = special(1, 2, 13, 38, share=0.05)
    x[0, 0, :5, :6], x[0, 1, :5, -6:] = NAN, -INF
    pool = {"kernel_size": kernel, "stride": stride, "padding": padding}
    images = torch.from_numpy(x)
    window = ConvGeometry(kernel, stride, (padding, padding))
    in_layout = PlaneLayout.make(13, 38, max(1, padding))
    for want, emit, extra in (
        (F.max_pool2d(images, **pool), plane_windows.max_pool, {}),
        (F.avg_pool2d(images, **pool), plane_windows.avg_pool, {"count_include_pad": True}),
    ):
        layout = PlaneLayout.make(*want.shape[2:], 1)
        func = emit(1, 2, in_layout, layout, window, PlaneTarget(family), **extra)
        out = np.full((1, 2, layout.size), NAN, np.float32)
        planes = run(func, to_planes(x, in_layout), out)
        assert_same(from_planes(planes, layout), want.numpy(), 1e-5)
        outside = to_planes(np.ones(want.shape, np.float32), layout) == 0
        assert not planes[outside].any()


@pytest.mark.parametrize("family", FAMILIES)
def test_sums_on_planes(family):
    """Addition, multiplication and the global mean."""
    layout, target = PlaneLayout.make(6, 21, 1), PlaneTarget(family)
    x, y = special(1, 2, 6, 21, share=0.02), special(1, 2, 6, 21, seed=1)
    x[0, 1] = np.abs(x[0, 1])
    x[0, 0, 3, 3] = NAN
    planes = [to_planes(v, layout) for v in (x, y)]
    for operator, want in (("add", x + y), ("multiply", x * y)):
        func = plane_ops.elementwise(1, 2, (layout, layout), layout, target, operator, "relu")
        got = run(func, *planes, np.zeros((1, 2, layout.size), np.float32))
        assert_same(from_planes(got, layout), torch.relu(torch.from_numpy(want)).numpy())
    mean = run(
        plane_ops.global_avg_pool(1, 2, layout, target, keep_dims=False),
        planes[0],
        np.zeros((1, 2), np.float32),
    )
    assert_same(mean, x.mean((2, 3)), 1e-5)


@pytest.mark.parametrize(
    ("family", "group", "activation", "naive"),
    [
        ("x86-avx512", 1, "relu", False),
        ("x86-avx512", 4, "hardswish", False),
        ("x86-avx2", 1, "relu6", False),
        ("x86-avx2", 4, "silu", False),
        ("x86-avx512", 1, "relu6", True),
        ("x86-avx512", 1, "silu", True),
    ],
)
def test_convolution(family, group, activation, naive):
    """NaN reaches what a kept weight connects it to; a removed weight computes no 0 x NaN."""
    weight = pattern_weights(16, 8, group=group)
    case = ConvCase(9, 18, family=family, activation=activation)
    plan = case.plan(weight)
    w = plan.workload
    x = special(1, 8, 9, 18, share=0.01, values=(NAN,))
    bias = special(16, share=0)
    out = np.zeros((1, 16, w.out_layout.size), np.float32)
    primfunc = plan.naive_primfunc() if naive else plan.primfunc()
    planes = run(primfunc, to_planes(x, w.in_layout), *plan.arrays, bias, out)
    got = from_planes(planes, w.out_layout)
    touched = F.conv2d(
        torch.from_numpy(np.isnan(x).astype(np.float32)),
        torch.from_numpy((weight != 0).astype(np.float32)),
        padding=1,
    ).numpy()
    clean, values, offsets = map(torch.from_numpy, (np.nan_to_num(x), weight, bias))
    want = ACTIVATIONS[activation](F.conv2d(clean, values, offsets, padding=1)).numpy()
    want[touched > 0] = NAN
    assert np.isnan(want).any()
    assert not np.isnan(want).all()
    assert_same(got, want, 1e-4)


INSTRUCTION = {
    "x86-avx512": "vmaxps",
    "x86-avx2": "vmaxps",
    "arm-neon": "fmax",
    "armv7-neon": "vmax.f32",
}
COMPARES = re.compile(r"cmp.*ps|cmunord|blend|fcm|bsl|bif|bit$|vcgt|vclt|fcsel|nm$")


@pytest.mark.parametrize(("name", "limits"), [("relu", 1), ("clip", 2), ("below", 1)])
@pytest.mark.parametrize("family", TARGETS)
def test_a_bound_is_one_instruction(family, name, limits):
    """As many maxima and minima as vectors and bounds, and nothing beside them."""
    target = PlaneTarget(family)
    layout = PlaneLayout.make(1, 2 * target.lanes, 1)
    module = tvm.tirx.build(
        elementwise(family, layout, name, 1), target=tvm.target.Target(TARGETS[family])
    )
    mnemonics = re.findall(r"^\t([a-z][a-z0-9.]*)", module.inspect_source("asm"), re.M)
    maximum = INSTRUCTION[family]
    found = [m for m in mnemonics if m in (maximum, maximum.replace("max", "min"))]
    assert len(found) == 2 * limits
    assert not [m for m in mnemonics if COMPARES.search(m)]


class Network(nn.Module):
    """Every kind of layer that lives on planes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU6())
        self.down = nn.Conv2d(8, 16, 3, stride=2, padding=1)
        self.block = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.Hardswish())
        self.depthwise = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.gate = nn.Sequential(nn.Conv2d(16, 16, 1), nn.SiLU())
        self.point = nn.Conv2d(16, 24, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.down(self.stem(x)))
        x = torch.relu(self.block(x) + x)
        x = F.max_pool2d(torch.relu(self.depthwise(x)), 3, 2, 1)
        x = F.avg_pool2d(self.gate(x), 2)
        return F.hardtanh(self.point(x))


@pytest.fixture(scope="module")
def compiled():
    torch.manual_seed(0)
    model, image = Network().eval(), torch.zeros(1, 3, 64, 60)
    # Winograd's filtering spreads what is not finite over its tiles, see test_gemm_conv.py.
    return model, {
        target: tp.compile(model, image, target=target, num_threads=1, winograd=False)
        for target in ("pattern/native", "pattern/x86-avx2")
    }


@pytest.mark.parametrize("target", ["pattern/native", "pattern/x86-avx2"])
@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_network(compiled, target, value):
    """One pixel at the edge, one inside, and none: torch's answer, NaN at the same places."""
    model, libraries = compiled
    for pixels in ([], [(0, 0)], [(31, 17)], [(63, 59), (5, 40)]):
        x = torch.randn(1, 3, 64, 60)
        for y, column in pixels:
            x[0, 1, y, column] = value
        with torch.no_grad():
            want = model(x).numpy()
        got = np.asarray(libraries[target](x.numpy()))
        assert np.isnan(want).any() == (bool(pixels) and np.isnan(value)) or not np.isnan(value)
        assert_same(got, want, 1e-4)


OUTSIDE = {
    "relu": F.relu,
    "relu6": F.relu6,
    "clamp": lambda v: v.clamp(-1, 2),
    "hardswish": F.hardswish,
    "hardsigmoid": F.hardsigmoid,
    "silu": F.silu,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "leaky_relu": F.leaky_relu,
    "elu": F.elu,
    "softplus": F.softplus,
    "softmax": lambda v: torch.softmax(v, -1),
    "maximum": lambda v: torch.maximum(v, v.flip(-1)),
    "minimum": lambda v: torch.minimum(v, v.flip(-1)),
}
WINDOWS = {
    "max_pool2d": lambda v: F.max_pool2d(v, 3, 2, 1),
    "dilated max_pool2d": lambda v: F.max_pool2d(v, 3, 1, dilation=2),
    "avg_pool2d": lambda v: F.avg_pool2d(v, 2),
}


class Calls(nn.Module):
    """A function of three axes, and a pooling, all outside of islands."""

    def __init__(self, functions) -> None:
        super().__init__()
        self.functions = functions

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(function(x) for function in self.functions)


@pytest.mark.parametrize("functions", [OUTSIDE, WINDOWS], ids=["dense", "windows"])
def test_operators_that_tvm_compiles(functions):
    shape = (2, 3, 24) if functions is OUTSIDE else (1, 2, 12, 15)
    x = special(*shape)
    x[0, 1] = -INF
    model = Calls(list(functions.values())).eval()
    library = tp.compile(model, torch.zeros(shape), num_threads=1)
    for name, got, want in zip(functions, library(x), model(torch.from_numpy(x)), strict=True):
        assert np.isnan(want.numpy()).any(), name
        try:
            assert_same(np.asarray(got), want.numpy(), 1e-5)
        except AssertionError as error:
            raise AssertionError(f"{name}: {error}") from error
