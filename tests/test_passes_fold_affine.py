"""FoldAffine: what becomes of constant factors and terms, and that nothing else changes."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from tvm import relax, transform

import tvm_pattern as tp
from relay_passes.fold_affine import affine_of
from relay_passes.pipeline import normalize_passes
from tvm_pattern.frontend import import_model


def operators(net: nn.Module, x: torch.Tensor) -> list[str]:
    """Operators of the normalised module, in order; activations by name."""
    module = transform.Sequential(normalize_passes())(import_model(net, x).mod)
    names = []

    def visit(expr):
        if isinstance(expr, relax.Call) and isinstance(expr.args[0], relax.ExternFunc):
            names.append(json.loads(expr.args[-1].value)["activation"])
        elif isinstance(expr, relax.Call):
            names.append(expr.op.name.removeprefix("relax."))

    relax.analysis.post_order_visit(module["main"], visit)
    return names


def check(net: nn.Module, x: torch.Tensor, tolerance: float = 2e-6) -> None:
    with torch.no_grad():
        want = net(x)
    got = tp.compile(net, x, num_threads=1, verify=False)(x.numpy())
    np.testing.assert_allclose(got, want.numpy(), atol=tolerance, rtol=tolerance)


class Chain(nn.Module):
    """A convolution, what follows it, and another one that pads its input with zeros."""

    def __init__(self, after, first: nn.Module | None = None) -> None:
        super().__init__()
        self.first = first or nn.Conv2d(3, 4, 3, padding=1)
        self.last = nn.Conv2d(4, 4, 3, padding=1)
        self.after = after

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.after(self.first(x)))


X = torch.randn(2, 3, 7, 9, generator=torch.Generator().manual_seed(0))
PER_CHANNEL = torch.linspace(-2, 3, 4).reshape(1, 4, 1, 1)
INTO_WEIGHTS = {
    "scalars": lambda v: 0.7 * v - 0.3,
    "per channel": lambda v: (1.5 - v) / PER_CHANNEL + PER_CHANNEL,
    "negative": lambda v: -v,
    "then an activation": lambda v: F.hardswish(v * 3 + PER_CHANNEL),
}


@pytest.mark.parametrize("name", INTO_WEIGHTS)
def test_factors_and_terms_go_into_the_weights(name):
    torch.manual_seed(0)
    net = Chain(INTO_WEIGHTS[name]).eval()
    rest = ["hardswish"] if "activation" in name else []
    assert operators(net, X) == ["nn.conv2d", "add", *rest, "nn.conv2d", "add"]
    check(net, X)


def test_transposed_and_unbiased_convolutions_take_factors():
    torch.manual_seed(0)
    net = Chain(lambda v: v * PER_CHANNEL, nn.ConvTranspose2d(3, 4, 2, 2, bias=False)).eval()
    assert operators(net, X) == ["nn.conv2d_transpose", "add", "nn.conv2d", "add"]
    check(net, X)


def test_behind_an_activation_it_is_one_operator_on_planes():
    """The learned factor and term of PP-LCNet: the next layer's padding stays zero."""
    torch.manual_seed(0)
    net = Chain(lambda v: 0.3 * F.hardswish(2 * v + 1) - 0.25).eval()
    want = ["nn.conv2d", "add", "hardswish", "affine", "nn.conv2d", "add"]
    assert operators(net, X) == want
    library = tp.compile(net, X, num_threads=1, verify=False)
    names = [step["op"] for step in library.manifest.steps]
    assert sum("unpack" in name for name in names) == 1  # the result
    check(net, X)


KEPT = {
    "a hardsigmoid's term": (lambda v: F.relu6(v + 3) / 6, ["add", "hardsigmoid"]),
    "a value used twice": (lambda v: v * 2 + F.relu(v), ["add", "relu", "affine", "add"]),
    "a factor per channel": (lambda v: F.relu(v) * PER_CHANNEL, ["add", "relu", "multiply"]),
    "a factor of zero": (lambda v: F.relu(v) * 0, ["add", "relu", "multiply"]),
}


@pytest.mark.parametrize("name", KEPT)
def test_what_is_not_folded(name):
    torch.manual_seed(0)
    after, want = KEPT[name]
    net = Chain(after).eval()
    assert sorted(operators(net, X)) == sorted(["nn.conv2d", *want, "nn.conv2d", "add"])
    check(net, X)


def test_pruned_weights_stay_zero():
    torch.manual_seed(0)
    net = Chain(lambda v: v / 3 + 1).eval()
    with torch.no_grad():
        net.first.weight[:, 1] = 0
    library = tp.compile(net, X, num_threads=1)
    assert library.report.rows[0].sparsity == pytest.approx(1 / 3)


def test_a_broadcast_image_is_no_chain():
    """A sum that makes the image larger is none of a convolution's terms."""

    class Wider(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 1, 3)
            self.register_buffer("term", torch.randn(1, 4, 1, 1))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.conv(x) + self.term

    torch.manual_seed(0)
    check(Wider().eval(), X)


def test_steps_that_are_no_factor():
    x = relax.Var("x", relax.TensorType((1, 2, 3, 3), "float32"))
    zero = relax.const(np.zeros((1, 2, 1, 1), "float32"))
    assert affine_of(relax.op.divide(x, zero), 2) is None
    assert affine_of(relax.op.maximum(x, zero), 2) is None
    assert affine_of(relax.op.add(x, x), 2) is None
