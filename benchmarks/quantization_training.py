"""The networks of the int8 study, trained and kept: dense, and pruned 8x with filters sharing.

Digits, as in :mod:`benchmarks.accuracy`, with fewer epochs: what is compared is a network with its
own quantised form, not one method with another. A second network, of bottlenecks, has 1x1 layers;
they are pruned kernel by kernel and in blocks of four in_channels.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from benchmarks import digits
from benchmarks.accuracy import (
    Settings,
    Trial,
    cosine,
    make_sgd,
    pattern_config,
    train,
)
from tvm_pattern.pruning import (
    Gradual,
    LibrarySpec,
    PatternConfig,
    Pruner,
    load_pruned,
    save_pruned,
)
from tvm_pattern.pruning.carried import carried_layers

RATE = 8
SETTINGS = replace(Settings(), pretrain_epochs=20, epochs=20, gradual_epochs=6, ramp_epochs=5)
CONNECTIVITY_1X1 = 3.6


@dataclass(frozen=True)
class Kind:
    """One network of the study.

    Parameters
    ----------
    name : str
    network : {"plain", "bottlenecks"}
    group : int
        Filters that share; 0 for the dense network.
    block : int
        in_channels of 1x1 layers that are kept together.
    """

    name: str
    network: str = "plain"
    group: int = 0
    block: int = 1

    @property
    def dense(self) -> str:
        """Name of the dense network that it is compared with."""
        return "dense" if self.network == "plain" else "bottlenecks dense"


KINDS = (
    Kind("dense"),
    Kind("pruned F=1", group=1),
    Kind("pruned F=2", group=2),
    Kind("pruned F=4", group=4),
    Kind("bottlenecks dense", "bottlenecks"),
    Kind("bottlenecks 1x1", "bottlenecks", group=1),
    Kind("bottlenecks 1x4", "bottlenecks", group=1, block=4),
)


def bottlenecks(in_channels: int = 1) -> nn.Sequential:
    """Each 3x3 layer between two 1x1 layers."""
    layers: list[nn.Module] = []
    width = in_channels
    for out, kernel in ((16, 3), (32, 1), (16, 3), (0, 0), (64, 1), (32, 3), (64, 1), (0, 0),
                        (32, 1), (64, 3), (128, 1)):  # fmt: skip
        if not out:
            layers.append(nn.MaxPool2d(2))
            continue
        layers += [
            nn.Conv2d(width, out, kernel, padding=kernel // 2, bias=False),
            nn.BatchNorm2d(out),
            nn.ReLU(inplace=True),
        ]
        width = out
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10)]
    return nn.Sequential(*layers).to(memory_format=torch.channels_last)


def fresh(kind: Kind) -> nn.Module:
    """The network of digits of a kind, untrained."""
    return digits.network() if kind.network == "plain" else bottlenecks()


def with_1x1(kind: Kind) -> PatternConfig:
    """How networks of bottlenecks are pruned."""
    return PatternConfig(
        library=LibrarySpec(size=8),
        group=kind.group,
        first="skip",
        connectivity_1x1=CONNECTIVITY_1X1,
        block_1x1=kind.block,
    )


def config(kind: Kind, settings: Settings) -> PatternConfig:
    """How the network of digits of a kind is pruned."""
    if kind.network != "plain":
        return with_1x1(kind)
    trial = Trial("gradual", RATE, group=kind.group, sharing="similar")
    return pattern_config(trial, settings)


@dataclass(frozen=True)
class Subject:
    """What the study is done on.

    Parameters
    ----------
    name : str
    load : callable
        Seed -> images.
    fresh : callable
        Kind -> its network, untrained.
    config : callable
        ``(kind, settings)`` -> how it is pruned.
    batch : int
        Images of an exported network; test images beyond whole batches are left out.
    settings : Settings
    """

    name: str
    load: Callable[[int], digits.Split]
    fresh: Callable[[Kind], nn.Module]
    config: Callable[[Kind, Settings], PatternConfig]
    batch: int
    settings: Settings


# 480 divides the test images.
DIGITS = Subject("digits", digits.load, fresh, config, 480, SETTINGS)


def _pretrained(
    subject: Subject, kind: Kind, seed: int, data: digits.Split, settings: Settings
) -> nn.Module:
    torch.manual_seed(seed)
    model = subject.fresh(kind)
    lr = cosine(settings.pretrain_lr, settings.pretrain_epochs)
    generator = torch.Generator().manual_seed(seed)
    optimizer = make_sgd(model, settings)
    train(model, data, settings, optimizer, settings.pretrain_epochs, lr, generator)
    return model


def _finished(
    subject: Subject,
    model: nn.Module,
    kind: Kind,
    seed: int,
    data: digits.Split,
    settings: Settings,
) -> nn.Module:
    """The rest of the epochs: as it is, or with patterns and fewer and fewer kernels."""
    generator = torch.Generator().manual_seed(7 + seed)
    torch.manual_seed(7 + seed)
    optimizer = make_sgd(model, settings)
    if not kind.group:
        lr = cosine(settings.lr, settings.epochs)
        train(model, data, settings, optimizer, settings.epochs, lr, generator)
        return model
    method = Gradual(steps=settings.ramp_epochs)
    pruner = Pruner(model, subject.config(kind, settings), method).attach(optimizer)
    before = settings.gradual_epochs
    train(model, data, settings, optimizer, before, lambda _: settings.lr, generator, pruner.step)
    pruner.freeze()
    after = settings.epochs - before
    train(model, data, settings, optimizer, after, cosine(settings.lr, after), generator)
    pruner.finalize()
    return model


def trained(
    subject: Subject,
    seed: int,
    data: digits.Split,
    folder: Path,
    settings: Settings | None = None,
    kinds: tuple[Kind, ...] = KINDS,
) -> Iterator[tuple[Kind, nn.Module]]:
    """The networks of a seed, from ``folder`` where they were trained before."""
    settings = settings or subject.settings
    starts: dict[str, nn.Module] = {}
    for kind in kinds:
        path = folder / f"{kind.name.replace(' ', '-')}-{seed}.safetensors"
        model = subject.fresh(kind)
        if path.exists():
            load_pruned(path, model)
        else:
            if kind.network not in starts:
                starts[kind.network] = _pretrained(subject, kind, seed, data, settings)
            start = copy.deepcopy(starts[kind.network])
            model = _finished(subject, start, kind, seed, data, settings)
            save_pruned(path, model, carried_layers(model))
        yield kind, model.eval()
