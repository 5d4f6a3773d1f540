"""Operators on float16 are rounded as torch rounds them: once, at the end."""

from __future__ import annotations

import numpy as np
import torch
import tvm
from relax_oracle import execute
from torch import nn
from torch.nn import functional as F

from relay_passes import pipeline
from relay_passes.targets import resolve
from tvm_pattern.frontend import import_model


class Sums(nn.Module):
    """What overflows, or loses terms, if it is summed in float16."""

    def __init__(self) -> None:
        super().__init__()
        self.dense = nn.Linear(96, 4)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        long = x.flatten(2)[:, :, :800].reshape(1, -1)
        return (
            self.dense(x.mean((2, 3))),
            F.normalize(x, dim=1),
            long.softmax(1) * 1e4,
            x[0, :, 0] @ x[0, :, 0].T / 100,
            F.hardswish(x * 100),
        )


def test_equals_float64() -> None:
    torch.manual_seed(0)
    model, x = Sums().eval().half(), (200 + 3 * torch.randn(1, 96, 30, 40)).half()
    lowered, _ = pipeline.lower(import_model(model, x).mod, "pattern/x86-avx2")
    got = execute(tvm.compile(lowered, resolve("pattern/x86-avx2")), x.numpy())
    with torch.no_grad():
        wanted = model.double()(x.double())
    for place, (g, want) in enumerate(zip(got, wanted, strict=True)):
        assert g.dtype == np.float16
        # Half a unit of eleven bits, and twice that again for values between decomposed operators.
        np.testing.assert_allclose(g, want, rtol=3 * 2.0**-11, atol=1e-3, err_msg=str(place))
