"""MobileNet-V2 (Sandler et al., CVPR'18, table 2), width 1.0."""

from __future__ import annotations

import torch
from torch import nn

from .initialise import build

# (expansion, out_channels, blocks, stride of the first block) of each stage.
_STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


class ConvNormActivation(nn.Sequential):
    """Convolution, batch norm and ReLU6."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel: int, stride: int = 1, groups: int = 1
    ) -> None:
        super().__init__(
            nn.Conv2d(
                in_channels,
                out_channels,
                kernel,
                stride,
                padding=(kernel - 1) // 2,
                groups=groups,
                bias=False,
            ),
            nn.BatchNorm2d(out_channels),
            nn.ReLU6(inplace=True),
        )


class InvertedResidual(nn.Module):
    """1x1 expand, 3x3 depthwise, 1x1 project without activation; added to its input if it fits."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = in_channels * expansion
        self.use_shortcut = stride == 1 and in_channels == out_channels
        layers: list[nn.Module] = []
        if expansion != 1:
            layers.append(ConvNormActivation(in_channels, hidden, 1))
            # Its input comes from a linear projection: no ReLU halved its second moment.
            layers[0][0].init_gain = 1.0
        project = nn.BatchNorm2d(out_channels)
        project.init_scale = 0.5 if self.use_shortcut else 1.0
        layers += [
            ConvNormActivation(hidden, hidden, 3, stride, groups=hidden),
            nn.Conv2d(hidden, out_channels, 1, bias=False),
            project,
        ]
        self.conv = nn.Sequential(*layers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.conv(x) if self.use_shortcut else self.conv(x)


class MobileNetV2(nn.Module):
    """MobileNet-V2 for images ``[N, 3, H, W]``.

    Parameters
    ----------
    num_classes : int
    """

    def __init__(self, num_classes: int = 1000) -> None:
        super().__init__()
        layers: list[nn.Module] = [ConvNormActivation(3, 32, 3, 2)]
        channels = 32
        for expansion, width, blocks, stride in _STAGES:
            for position in range(blocks):
                layers.append(
                    InvertedResidual(channels, width, stride if position == 0 else 1, expansion)
                )
                channels = width
        layers.append(ConvNormActivation(channels, 1280, 1))
        layers[-1][0].init_gain = 1.0
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(1280, num_classes))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = nn.functional.adaptive_avg_pool2d(self.features(x), (1, 1))
        return self.classifier(torch.flatten(x, 1))


def mobilenet_v2(num_classes: int = 1000, seed: int = 0) -> MobileNetV2:
    """MobileNet-V2 in evaluation mode with deterministic random weights.

    Parameters
    ----------
    num_classes : int
    seed : int
        Equal seeds give equal weights.
    """
    return build(lambda: MobileNetV2(num_classes), seed)
