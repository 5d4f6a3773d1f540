"""Operators on rows: their PrimFuncs and the pass that uses them, against torch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import tvm
from conv_cases import HOST_TARGET
from torch import nn

import tvm_pattern as tp
from relay_passes.pipeline import lower
from topi_kernels import row_ops
from topi_kernels.plane_ops import PlaneTarget
from tvm_pattern.frontend import import_model

NAN, INF = float("nan"), float("inf")


def run(func: tvm.tirx.PrimFunc, *arrays: np.ndarray) -> np.ndarray:
    out = tvm.runtime.tensor(np.full(arrays[0].shape, 7, arrays[0].dtype))
    tensors = [tvm.runtime.tensor(a) for a in arrays]
    tvm.tirx.build(func, target=HOST_TARGET)(*tensors, out)
    return out.numpy()


def rows_with_specials(n: int) -> np.ndarray:
    x = (np.random.default_rng(n).standard_normal((6, n)) * 3).astype("float32")
    x[1] += 1e3
    x[2, -1], x[3, 0], x[4, n // 2] = NAN, -INF, INF
    return x


@pytest.mark.parametrize(("family", "n"), [("x86-avx512", 1), ("x86-avx512", 37), ("x86-avx2", 16)])
def test_softmax_and_layer_norm(family, n):
    x, target = rows_with_specials(n), PlaneTarget(family)
    got = run(row_ops.softmax(6, n, target), x)
    want = torch.softmax(torch.tensor(x, dtype=torch.float64), 1).numpy()
    np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-7)
    gamma, beta = np.random.default_rng(0).standard_normal((2, n)).astype("float32")
    got = run(row_ops.layer_norm(6, n, target, 1e-5), x, gamma, beta)
    double = (torch.tensor(v, dtype=torch.float64) for v in (x, gamma, beta))
    values, scale, shift = double
    want = F.layer_norm(values, (n,), scale, shift).numpy()
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("n", [5, 40])
def test_masked_places_have_no_share(n):
    """Zero and not the smallest number; a row in which all are masked is NaN, as in torch."""
    x = rows_with_specials(n)
    x[0, ::2], x[1, 1:], x[5], x[3, 1] = -INF, -200.0, -INF, -1e9
    got = run(row_ops.softmax(6, n, PlaneTarget("x86-avx2")), x)
    want = torch.softmax(torch.tensor(x), 1).numpy()
    np.testing.assert_array_equal(got == 0, want == 0)
    np.testing.assert_array_equal(np.isnan(got), np.isnan(want))
    np.testing.assert_allclose(got, want, rtol=2e-6)


@pytest.mark.parametrize("n", [5, 40])
def test_an_activation_of_rows_and_a_bias(n):
    x = np.random.default_rng(n).standard_normal((6, n)).astype("float32")
    bias = np.random.default_rng(0).standard_normal(n).astype("float32")
    func = row_ops.row_activation(6, n, PlaneTarget("x86-avx512"), "gelu", bias=True)
    want = F.gelu(torch.tensor(x + bias)).numpy()
    np.testing.assert_allclose(run(func, x, bias), want, rtol=1e-6, atol=1e-6)


class Block(nn.Module):
    """A block of a vision transformer behind a convolution, as ConvNeXt and MobileViT have it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 24, 4, stride=4)
        self.norm = nn.LayerNorm(24)
        self.up, self.down = nn.Linear(24, 48), nn.Linear(48, 24)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x).permute(0, 2, 3, 1)
        y = self.down(F.gelu(self.up(self.norm(x))))
        rows = torch.tanh(x + y).flatten(1, 2)
        weights = torch.softmax(rows @ rows.transpose(1, 2), -1)
        return F.mish(weights @ rows)


@pytest.fixture(scope="module")
def block() -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    return Block().eval(), torch.randn(1, 3, 28, 28)


def test_a_block_of_rows(block):
    model, x = block
    library = tp.compile(model, (x,), num_threads=1)
    with torch.no_grad():
        np.testing.assert_allclose(library(x.numpy()), model(x).numpy(), rtol=1e-5, atol=1e-5)


def test_no_scalar_function_is_left(block):
    model, x = block
    mod, _ = lower(import_model(model, (x,)).mod, "pattern/x86-avx2", num_threads=1)
    names = {str(gv.name_hint) for gv in mod.functions}
    expected = ("row_gelu", "row_tanh", "row_mish", "row_softmax", "row_layer_norm")
    assert {name for name in expected if name in names} == set(expected)
    text = mod.script()
    for function in ("T.erf", "T.exp", "T.tanh", "T.log"):
        assert f"{function}(" not in text
