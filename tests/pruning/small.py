"""Small models and loops that the pruning tests share."""

from __future__ import annotations

import os

import torch
import torch.nn.functional as F
from torch import nn

from tvm_pattern.pruning import PatternConfig

CONFIG = PatternConfig(connectivity=2.0, library="fixed8", first="skip")
#: Set by ``make test-trainers``: a trainer that is not installed is a failure, not a skipped test.
TRAINERS = bool(os.environ.get("TVM_PATTERN_TRAINERS"))


def make_net(seed: int = 0, width: int = 8) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, width, 3, padding=1),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.Conv2d(width, 2 * width, 3, padding=1, bias=False),
        nn.BatchNorm2d(2 * width),
        nn.ReLU(),
        nn.Conv2d(2 * width, width, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(width, 4),
    )


def batch(step: int, size: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    images = torch.randn(size, 3, 6, 6, generator=generator)
    return images, torch.randint(0, 4, (size,), generator=generator)


def train_step(model, optimizer, step, scaler=None, accumulate=1):
    optimizer.zero_grad()
    for part in range(accumulate):
        x, y = batch(step * 100 + part)
        loss = F.cross_entropy(model(x), y) / accumulate
        if scaler is None:
            loss.backward()
        else:
            scaler.scale(loss).backward()
    if scaler is None:
        optimizer.step()
    else:
        scaler.step(optimizer)
        scaler.update()


def run(model, optimizer, pruner, start, stop, freeze_at, every=4, early=False, **kwargs):
    """Steps ``start`` to ``stop``; an update every few, the freeze after step ``freeze_at``."""
    for step in range(start, stop):
        train_step(model, optimizer, step, **kwargs)
        if pruner.phase == "training" and step % every == every - 1:
            pruner.step()
        if step == freeze_at:
            pruner.freeze(early=early)


def sgd(model, **kwargs):
    options = {"momentum": 0.9, "weight_decay": 5e-4, **kwargs}
    return torch.optim.SGD(model.parameters(), 0.05, **options)
