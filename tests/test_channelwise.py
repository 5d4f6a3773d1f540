"""Gates, batch norms without a convolution and PReLU: on planes, elsewhere, and bad ones."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import tvm
from relax_oracle import check_against_torch, execute, import_torch
from test_islands import laid_out, marker_names, random_norm
from torch import nn

import tvm_pattern as tp
from relay_passes.report import ReportBuilder
from topi_kernels.backend import Backend
from topi_kernels.channelwise import ChannelTerms
from topi_kernels.layout import PlaneLayout
from tvm_pattern.frontend import import_model


def conv(stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(6, 6, 3, stride, 1)


class Between(nn.Module):
    """Something between two convolutions."""

    def __init__(self, middle: nn.Module) -> None:
        super().__init__()
        self.first, self.middle, self.last = conv(), middle, conv(2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.middle(self.first(x)))


class Gated(nn.Module):
    """Squeeze and excitation, the gate to the left."""

    def __init__(self) -> None:
        super().__init__()
        self.squeeze, self.norm = nn.Conv2d(6, 6, 1), random_norm(6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate = torch.sigmoid(self.squeeze(x.mean((2, 3), keepdim=True)))
        return nn.functional.relu(self.norm(gate * x))


class Shared(nn.Module):
    """A batch norm that two read, and one after an addition."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.other, self.branch = random_norm(6), random_norm(6), conv()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm(x)
        return nn.functional.hardswish(self.other(self.branch(y) + y + x))


def slopes(count: int) -> nn.PReLU:
    prelu = nn.PReLU(count)
    nn.init.uniform_(prelu.weight, -0.5, 1.5)
    return prelu


CASES = {
    "gate, norm and relu": (Gated(), 1),
    "norms": (Shared(), 2),
    "prelu": (slopes(6), 1),
    "norm after prelu": (nn.Sequential(slopes(6), random_norm(6)), 2),
    "prelu with one slope": (slopes(1), 0),
}


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> tuple[nn.Module, int]:
    torch.manual_seed(0)
    middle, count = CASES[request.param]
    return Between(middle).eval(), count


def test_they_stay_on_planes(case: tuple[nn.Module, int]) -> None:
    model, count = case
    mod = import_torch(model, torch.randn(2, 6, 9, 11))
    names = marker_names(laid_out(mod, Backend.named("x86-avx2"), ReportBuilder()))
    assert names.count("plane_channelwise") == count
    # In and out, and the mean of a gate.
    assert names.count("plane_unpack") == 1
    assert names.count("plane_pack") == 1 + names.count("plane_global_pool")


def test_they_compute_what_torch_does(case: tuple[nn.Module, int]) -> None:
    check_against_torch(case[0], torch.randn(2, 6, 9, 11))


class NoIsland(nn.Module):
    """No image of this network is one of a convolution, but for the gate."""

    def __init__(self) -> None:
        super().__init__()
        self.squeeze, self.norm, self.prelu = nn.Conv2d(6, 6, 1), random_norm(6), slopes(6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.prelu(self.norm(x)) + 1
        return torch.tanh(self.prelu(x * self.squeeze(x.mean((2, 3), keepdim=True)))).exp()


def test_outside_an_island_they_become_relax_operators_again() -> None:
    torch.manual_seed(0)
    model, x = NoIsland().eval(), torch.randn(2, 6, 5, 4)
    names = marker_names(
        laid_out(import_torch(model, x), Backend.named("x86-avx2"), ReportBuilder())
    )
    assert set(names) == {"plane_pack", "plane_conv2d", "plane_unpack"}
    check_against_torch(model, x)


def test_prelu_of_other_ranks() -> None:
    for shape in ((), (3,), (2, 6), (2, 6, 5)):
        model, x = slopes(6 if len(shape) > 1 else 1).eval(), torch.randn(shape)
        (got,) = execute(tvm.compile(import_model(model, x).mod, "llvm"), x.numpy())
        np.testing.assert_allclose(got, model(x).detach().numpy(), rtol=1e-6)


def test_a_gate_of_several_pixels_is_refused() -> None:
    with pytest.raises(ValueError, match="an image of one pixel, got 2x3; multiply images"):
        ChannelTerms(PlaneLayout.make(2, 3, 0))


def test_nan_comes_through() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(conv(), slopes(6)).eval(), torch.randn(1, 6, 4, 4)
    x[0, 0, 0, 0] = torch.nan
    want = model(x).detach().numpy()
    got = tp.compile(model, x, verify=False)(x.numpy())
    np.testing.assert_array_equal(np.isnan(got), np.isnan(want))
