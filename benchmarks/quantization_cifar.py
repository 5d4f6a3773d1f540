"""CIFAR-10 for the int8 study: ResNet-20, and a network of bottlenecks with 1x1 layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.accuracy import Settings
from benchmarks.cifar import data
from benchmarks.cifar.networks import PlainNetwork, resnet20
from benchmarks.cifar.rows import connectivity
from benchmarks.digits import Split
from benchmarks.quantization_training import RATE, Kind, Subject, bottlenecks, with_1x1
from tvm_pattern.pruning import PatternConfig

SETTINGS = replace(
    Settings(), pretrain_epochs=30, epochs=30, gradual_epochs=10, ramp_epochs=8, pretrain_lr=0.1
)
#: Epochs that are cut and flipped differently.
EPOCHS = 10_000
# Divides the test images.
BATCH = 500


class Epoch(Sequence[Any]):
    """Training images, cut and flipped as one epoch has them, made when they are asked for."""

    def __init__(self, images: data.DeviceData, seed: int, number: int) -> None:
        self.images = images
        plan = images.epoch(seed, number)
        self.plan = {**plan, "order": torch.arange(len(images))}

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: Any) -> torch.Tensor:
        """float32 ``[n, 3, h, w]`` of a slice or of indices."""
        plan = {name: values[index] for name, values in self.plan.items()}
        batch, _ = self.images.batch(plan, 0, len(plan["order"]))
        return batch.permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)


class Epochs(Sequence[Epoch]):
    """All epochs of a seed."""

    def __init__(self, images: data.DeviceData, seed: int) -> None:
        self.images, self.seed = images, seed

    def __len__(self) -> int:
        return EPOCHS

    def __getitem__(self, number: Any) -> Any:
        return Epoch(self.images, self.seed, number)


def fresh(kind: Kind) -> nn.Module:
    """The network of a kind, untrained."""
    if kind.network == "plain":
        return PlainNetwork(resnet20()).to(memory_format=torch.channels_last)
    return bottlenecks(in_channels=3)


def config(kind: Kind, _settings: Settings) -> PatternConfig:
    """How the network of a kind is pruned."""
    if kind.network != "plain":
        return with_1x1(kind)
    rate = connectivity(resnet20(), RATE)
    return PatternConfig(connectivity=rate, group=kind.group, sharing="similar", first="skip")


def subject(arrays: data.Arrays) -> Subject:
    """The study on these images; a seed changes training, never the test images."""
    images = data.DeviceData(arrays, torch.device("cpu"), torch.float32, 3)
    shown = images.normalised(images.test).permute(0, 3, 1, 2).contiguous()

    def load(seed: int) -> Split:
        return Split(Epochs(images, seed), images.labels, (shown, images.test_labels))

    batch = min(BATCH, len(shown))
    return Subject("CIFAR-10", load, fresh, config, batch, SETTINGS)


def part(arrays: data.Arrays, images: int, seed: int = 0) -> data.Arrays:
    """Some training images, drawn at random; all test images."""
    chosen = np.random.default_rng(seed).permutation(len(arrays.train))[:images]
    return replace(arrays, train=arrays.train[chosen], train_labels=arrays.train_labels[chosen])


def opened(
    source: Path | None, work: Path, *, images: int | None = None, quick: bool = False
) -> Subject:
    """The study on CIFAR-10 of a folder or tar file, decoded once into ``work``.

    Parameters
    ----------
    images : int, optional
        Training images that are used, drawn at random; all if None.

    Raises
    ------
    benchmarks.cifar.data.DataError
        If it holds no CIFAR-10.
    """
    if quick or source is None:
        return subject(data.synthetic(80, 40))
    arrays = data.load(source, work / "images.npz")
    return subject(arrays if images is None else part(arrays, images))
