"""Quantising is torchao's work, which `make` installs; reading quantised networks needs none."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tvm_pattern.pruning import oneshot


class Residual(nn.Module):
    """A stem, a residual block with a projection, a concatenation, a head."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8))
        self.body = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8))
        self.project = nn.Conv2d(8, 8, 1, bias=False)
        self.head = nn.Linear(16, 5)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias)
                nn.init.normal_(module.running_mean)
                nn.init.uniform_(module.running_var, 0.5, 1.5)
        self.eval()

    def forward(self, x):
        y = torch.relu(self.stem(x))
        y = nn.functional.max_pool2d(torch.relu(self.body(y) + self.project(y)), 2)
        y = torch.cat([y, torch.relu(self.project(y))], 1)
        return self.head(y.mean((2, 3)))


@pytest.fixture(scope="module")
def batches() -> list[torch.Tensor]:
    return list(torch.randn(12, 3, 8, 8, generator=torch.Generator().manual_seed(1)).split(4))


@pytest.fixture(scope="module")
def pruned() -> Residual:
    model = Residual()
    oneshot(model, connectivity=1.5, group=2)
    return model


@pytest.fixture(scope="module")
def quantized(pruned, batches):
    pytest.importorskip("torchao")
    from tvm_pattern.quantization import quantize

    return quantize(pruned, batches)
