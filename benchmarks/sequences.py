"""Networks of 1-D convolutions, as audio and time series have them."""

from __future__ import annotations

import torch
from torch import nn


class _Gated(nn.Module):
    """WaveNet's layer: a dilated 1x3 convolution, gated, with a residual and a skip output."""

    def __init__(self, channels: int, dilation: int) -> None:
        super().__init__()
        self.filter = nn.Conv1d(channels, channels, 3, padding=dilation, dilation=dilation)
        self.gate = nn.Conv1d(channels, channels, 3, padding=dilation, dilation=dilation)
        self.residual = nn.Conv1d(channels, channels, 1)
        self.skip = nn.Conv1d(channels, channels, 1)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y = torch.tanh(self.filter(x)) * torch.sigmoid(self.gate(x))
        return x + self.residual(y), self.skip(y)


class WaveNet(nn.Module):
    """Ten gated layers of 64 channels with dilations 1 to 512, as WaveNet stacks them.

    Input ``[n, 1, samples]``, output ``[n, 256, samples]``.
    """

    def __init__(self, channels: int = 64, layers: int = 10) -> None:
        super().__init__()
        self.stem = nn.Conv1d(1, channels, 3, padding=1)
        self.layers = nn.ModuleList(_Gated(channels, 2**i) for i in range(layers))
        self.head = nn.Sequential(
            nn.ReLU(),
            nn.Conv1d(channels, channels, 1),
            nn.ReLU(),
            nn.Conv1d(channels, 256, 1),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        total = None
        for layer in self.layers:
            x, skip = layer(x)
            total = skip if total is None else total + skip
        result: torch.Tensor = self.head(total)
        return result


class _Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv1d(inputs, outputs, width, stride=2, padding=width // 2, bias=False),
            nn.BatchNorm1d(outputs),
            nn.ReLU(),
            nn.Conv1d(outputs, outputs, width, padding=width // 2, bias=False),
            nn.BatchNorm1d(outputs),
        )
        self.short = nn.Sequential(
            nn.Conv1d(inputs, outputs, 1, stride=2, bias=False), nn.BatchNorm1d(outputs)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.body(x) + self.short(x))


def wavenet() -> nn.Module:
    """:class:`WaveNet` with random weights."""
    torch.manual_seed(0)
    return WaveNet()


def keyword_spotting() -> nn.Module:
    """A temporal residual network on 40 filter banks (TC-ResNet): kernels of 1x3 to 1x7.

    Input ``[n, 40, frames]``, output ``[n, 12]``.
    """
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv1d(40, 64, 3, padding=1, bias=False),
        nn.BatchNorm1d(64),
        nn.ReLU(),
        _Block(64, 96, 5),
        _Block(96, 128, 7),
        _Block(128, 192, 7),
        nn.AdaptiveAvgPool1d(1),
        nn.Flatten(),
        nn.Linear(192, 12),
    )
