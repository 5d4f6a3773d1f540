"""VGG-16 (Simonyan and Zisserman, ICLR'15, configuration D), with and without batch norm."""

from __future__ import annotations

import torch
from torch import nn

from .initialise import build

# out_channels of the 3x3 convolutions of each stage; a 2x2 max pool ends a stage.
_STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


class VGG(nn.Module):
    """VGG-16 for images ``[N, 3, H, W]`` with H, W >= 32.

    Parameters
    ----------
    num_classes : int
    batch_norm : bool
        Whether a batch norm follows each convolution.
    """

    def __init__(self, num_classes: int = 1000, *, batch_norm: bool = False) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for stage in _STAGES:
            for width in stage:
                layers.append(nn.Conv2d(channels, width, 3, padding=1))
                if batch_norm:
                    layers.append(nn.BatchNorm2d(width))
                layers.append(nn.ReLU(inplace=True))
                channels = width
            layers.append(nn.MaxPool2d(2, 2))
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d((7, 7))
        self.classifier = nn.Sequential(
            nn.Linear(512 * 7 * 7, 4096),
            nn.ReLU(inplace=True),
            nn.Dropout(),
            nn.Linear(4096, 4096),
            nn.ReLU(inplace=True),
            nn.Dropout(),
            nn.Linear(4096, num_classes),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.avgpool(self.features(x))
        return self.classifier(torch.flatten(x, 1))


def vgg16(num_classes: int = 1000, *, batch_norm: bool = False, seed: int = 0) -> VGG:
    """VGG-16 in evaluation mode with deterministic random weights.

    Parameters
    ----------
    num_classes : int
    batch_norm : bool
        True gives torchvision's ``vgg16_bn``.
    seed : int
        Equal seeds give equal weights.
    """
    return build(lambda: VGG(num_classes, batch_norm=batch_norm), seed)


def vgg16_bn(num_classes: int = 1000, seed: int = 0) -> VGG:
    """:func:`vgg16` with batch norm."""
    return vgg16(num_classes, batch_norm=True, seed=seed)
