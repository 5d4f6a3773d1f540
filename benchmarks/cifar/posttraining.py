"""Rows without training: the finished dense network is pruned by training images, labels unseen."""

from __future__ import annotations

from typing import Any

import torch

from tvm_pattern.posttrain import posttrain
from tvm_pattern.pruning import oneshot, recalibrate_bn

from .data import PADDING, DeviceData
from .networks import PlainNetwork
from .rows import Row, connectivity

IMAGES = 1024
"""Training images, not augmented, that the statistics come from."""
BLOCK_STEPS = 800
"""Steps for each block of ``posttrain-blocks``."""
_BATCH = 64


def calibration(data: DeviceData) -> list[torch.Tensor]:
    """Batches float32 ``[N, 3, H, W]`` of the first :data:`IMAGES` training images."""
    inside = slice(PADDING, PADDING + data.size)
    images = data.normalised(data.padded[:IMAGES, inside, inside]).float()
    return list(images[..., :3].permute(0, 3, 1, 2).contiguous().split(_BATCH))


def prune(module: PlainNetwork, row: Row, data: DeviceData) -> float:
    """Prune a trained network in place as ``row`` says; its compression rate over convolutions."""
    batches = calibration(data)
    settings: dict[str, Any] = {
        "connectivity": connectivity(module.network, row.rate),
        "group": row.group,
        "library": row.library,
        "sharing": "similar" if row.similar else "neighbours",
        "first": "skip",
    }
    if row.method == "projection":
        report = oneshot(module, **settings)
        recalibrate_bn(module, batches)
        return report.compression_rate
    steps = BLOCK_STEPS if row.method == "posttrain-blocks" else 0
    found = posttrain(module, batches, reconstruct=steps, progress=False, **settings)
    return found.pruning.compression_rate


@torch.no_grad()
def accuracy(module: PlainNetwork, data: DeviceData, batch: int = 500) -> float:
    """Percent of right answers on the test images."""
    right = 0
    for start in range(0, len(data.test), batch):
        images = data.normalised(data.test[start : start + batch]).float()
        answers = module(images[..., :3].permute(0, 3, 1, 2)).argmax(-1)
        right += int((answers == data.test_labels[start : start + batch]).sum())
    return 100 * right / len(data.test)
