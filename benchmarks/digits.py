"""Augmented digits and the networks of the accuracy study: small enough for one core.

scikit-learn's 1797 bundled 8x8 digits, turned, scaled, shifted and noised to 12x12, are hard enough
that pruning methods differ. Images are split first and augmented afterwards. The test images are
the same for every seed, so that nothing chosen on validation images of any seed has seen them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn

SIZE = 12
BANK = 20
EVALUATION_COPIES = 8
CHANNELS = (16, 16, 0, 32, 32, 0, 64, 64)
"""Filters of each 3x3 convolution; 0 is a max pooling."""


@dataclass(frozen=True)
class Split:
    """Images of one seed: a bank of augmented training sets, their labels, a test set."""

    bank: Sequence[Any]
    labels: torch.Tensor
    test: tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class Digits(Split):
    """Tensors of one seed; images for choices beside those for training and for the result."""

    validation: tuple[torch.Tensor, torch.Tensor]


def augment(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Random rotation (25 degrees), scale (0.7 to 1.05), shift (1/8 of the width) and noise."""
    count = len(images)
    angle = (torch.rand(count, generator=generator) * 2 - 1) * math.radians(25)
    zoom = 1 / (0.7 + 0.35 * torch.rand(count, generator=generator))
    shift = (torch.rand(count, 2, generator=generator) * 2 - 1) * 0.25
    cos, sin = zoom * angle.cos(), zoom * angle.sin()
    rows = torch.stack([cos, -sin, shift[:, 0], sin, cos, shift[:, 1]], 1)
    grid = F.affine_grid(rows.view(count, 2, 3), [count, 1, SIZE, SIZE], align_corners=False)
    warped = F.grid_sample(images, grid, align_corners=False)
    noise = 0.2 * torch.randn(warped.shape, generator=generator)
    return (warped + noise - 0.3) / 0.4


def load(seed: int) -> Digits:
    """Data of one seed: 60 % training, 20 % validation, 20 % test (the same for all seeds)."""
    raw = load_digits()
    images = torch.tensor(raw.images / 16.0, dtype=torch.float32)[:, None]
    labels = torch.tensor(raw.target)
    index = np.arange(len(labels))
    rest, test = train_test_split(index, test_size=0.2, stratify=raw.target, random_state=0)
    train, validation = train_test_split(
        rest, test_size=0.25, stratify=raw.target[rest], random_state=seed
    )
    generator = torch.Generator().manual_seed(1000 + seed)

    def several(rows: np.ndarray, source: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        copies = [augment(images[rows], source) for _ in range(EVALUATION_COPIES)]
        return torch.cat(copies), labels[rows].repeat(EVALUATION_COPIES)

    return Digits(
        bank=[augment(images[train], generator) for _ in range(BANK)],
        labels=labels[train],
        validation=several(validation, generator),
        test=several(test, torch.Generator().manual_seed(999)),
    )


def network(channels: tuple[int, ...] = CHANNELS) -> nn.Sequential:
    """VGG-like network of 3x3 convolutions with batch norm; ``channels`` as :data:`CHANNELS`."""
    layers: list[nn.Module] = []
    width = 1
    for out in channels:
        if out == 0:
            layers.append(nn.MaxPool2d(2))
            continue
        layers += [
            nn.Conv2d(width, out, 3, padding=1, bias=False),
            nn.BatchNorm2d(out),
            nn.ReLU(inplace=True),
        ]
        width = out
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10)]
    return nn.Sequential(*layers).to(memory_format=torch.channels_last)


@torch.no_grad()
def accuracy(model: nn.Module, data: tuple[torch.Tensor, torch.Tensor]) -> float:
    """Percent of right answers, in evaluation mode."""
    mode = model.training
    model.eval()
    right = sum(
        int((model(x).argmax(1) == y).sum())
        for x, y in zip(data[0].split(512), data[1].split(512), strict=True)
    )
    model.train(mode)
    return 100.0 * right / len(data[1])
