"""Training a batch of members: epochs, learning rate, evaluation, checkpoints."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from .data import DeviceData
from .model import Members, Sgd, predict, train_step
from .networks import Layout
from .operators import Operators
from .pruning import PruneSettings, Pruning


@dataclass(frozen=True)
class Settings:
    """Training, the same for every row.

    ``pretrain_epochs`` of dense training give the network that all rows of a seed start from; every
    row, dense too, then trains for ``epochs`` along the same learning rates: a linear warm-up and a
    cosine to zero. Methods that prune by and by do so in the first ``prune_epochs``.
    """

    pretrain_epochs: int = 16
    epochs: int = 20
    prune_epochs: int = 10
    batch_size: int = 512
    lr: float = 0.4
    warmup_epochs: float = 2.0
    momentum: float = 0.9
    weight_decay: float = 5e-4
    label_smoothing: float = 0.1
    admm_rho: tuple[float, ...] = (0.01, 0.02, 0.05, 0.1)
    admm_dual_step: float = 0.2

    def prune(self) -> PruneSettings:
        """Settings of the methods."""
        return PruneSettings(self.prune_epochs, rho=self.admm_rho, dual_step=self.admm_dual_step)

    def lr_at(self, epoch: float, epochs: int) -> float:
        """Learning rate at an epoch and its fraction."""
        warmup = min(self.warmup_epochs, epochs / 4)
        if epoch < warmup:
            return self.lr * (epoch + 1e-3) / warmup
        return self.lr * 0.5 * (1 + math.cos(math.pi * (epoch - warmup) / (epochs - warmup)))


FILLING = 8
"""Members up to which an epoch on a GPU takes hardly longer than that of one (H200: 2.9 s, twelve
3.9 s), so that what one takes says nothing of a further one."""


class OutOfTime(Exception):
    """The budget is spent; the checkpoint was written."""


@dataclass
class Trainer:
    """Trains members on a device and keeps its pace.

    By network, ``seconds`` holds the seconds per member and epoch last seen, ``shortest`` those of
    the shortest epoch of all members.
    """

    data: DeviceData
    settings: Settings
    operators: Operators
    deadline: float = math.inf
    checkpoint_seconds: float = 300.0
    clock: Callable[[], float] = time.monotonic
    seconds: dict[str, float] = field(default_factory=dict)
    shortest: dict[str, float] = field(default_factory=dict)

    def run(
        self,
        members: Members,
        seeds: Sequence[int],
        epochs: int,
        pruning: Pruning | None = None,
        checkpoint: Path | None = None,
        offset: int = 0,
    ) -> None:
        """Train all members; ``seeds[s]`` gives the images of member ``s``.

        Parameters
        ----------
        pruning : Pruning, optional
            Not yet started.
        checkpoint : Path, optional
            Resumed if present, written now and then, removed at the end.
        offset : int
            Epochs of the seeds' data already used.

        Raises
        ------
        OutOfTime
            At the deadline, between two epochs.
        """
        first = 0
        if checkpoint is not None and checkpoint.is_file():
            first = self._resume(checkpoint, members, pruning)
        elif pruning is not None:
            pruning.start()
        saved = self.clock()
        decayed = members.layout.decayed().to(members.parameters.device)
        for epoch in range(first, epochs):
            start = self.clock()
            self._epoch(members, seeds, epoch, epochs, offset, decayed)
            if pruning is not None:
                pruning.after_epoch()
            now = self.clock()
            name = members.layout.network.name
            filling = FILLING if self.data.device.type == "cuda" else 1
            self.seconds[name] = (now - start) / max(len(members), filling)
            self.shortest[name] = min(now - start, self.shortest.get(name, math.inf))
            late = now > self.deadline and epoch + 1 < epochs
            if checkpoint is not None and (late or now - saved > self.checkpoint_seconds):
                self._save(checkpoint, members, pruning, epoch + 1)
                saved = now
            if late:
                raise OutOfTime
        if checkpoint is not None:
            checkpoint.unlink(missing_ok=True)

    def _epoch(
        self,
        members: Members,
        seeds: Sequence[int],
        epoch: int,
        epochs: int,
        offset: int,
        decayed: torch.Tensor,
    ) -> None:
        settings, data = self.settings, self.data
        unique = sorted(set(seeds))
        plans = [data.epoch(seed, offset + epoch) for seed in unique]
        which = torch.tensor([unique.index(seed) for seed in seeds], device=data.device)
        size = min(settings.batch_size, len(data))
        steps = len(data) // size
        sgd = Sgd(settings.momentum, settings.weight_decay)
        for step in range(steps):
            batches = [data.batch(plan, step * size, size) for plan in plans]
            images = torch.stack([b[0] for b in batches])
            labels = torch.stack([b[1] for b in batches])
            if len(unique) > 1:
                images, labels = images[which], labels[which]
            lr = settings.lr_at(epoch + step / steps, epochs)
            train_step(
                members, self.operators, images, labels, lr, decayed, settings.label_smoothing, sgd
            )
        if data.device.type == "cuda":
            torch.cuda.synchronize()

    @torch.no_grad()
    def accuracy(self, members: Members, batch: int = 500) -> list[float]:
        """Percent of right answers on the test images, per member; NaN for a diverged one."""
        data = self.data
        right = torch.zeros(len(members), device=data.device)
        for start in range(0, len(data.test), batch):
            images = data.normalised(data.test[start : start + batch])[None]
            answers = predict(members, self.operators, images).argmax(-1)
            right += (answers == data.test_labels[start : start + batch]).sum(1)
        finite = torch.isfinite(members.parameters).all(1)
        percent = torch.where(finite, 100 * right / len(data.test), torch.nan)
        return [float(p) for p in percent]

    # Checkpoints --------------------------------------------------------------------------------

    def _save(self, path: Path, members: Members, pruning: Pruning | None, epoch: int) -> None:
        names = ("parameters", "momentum", "mask", "mean", "variance", "target", "penalty")
        state: dict[str, Any] = {
            "epoch": epoch,
            "members": {name: getattr(members, name) for name in names},
            "pruning": None if pruning is None else pruning.state(),
        }
        save_atomically(state, path)

    def _resume(self, path: Path, members: Members, pruning: Pruning | None) -> int:
        device = members.parameters.device
        state = torch.load(path, map_location=device, weights_only=True)
        for name, value in state["members"].items():
            setattr(members, name, value)
        if pruning is not None:
            pruning.restore(state["pruning"])
        return int(state["epoch"])


def save_atomically(state: Any, path: Path) -> None:
    """Write and rename, so that a kill or a full disk leaves the old file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".part")
    try:
        torch.save(state, partial)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def fresh(layout: Layout, seeds: Sequence[int], device: torch.device) -> Members:
    """Untrained members, one per seed."""
    return Members.start(layout, torch.stack([layout.initialise(s) for s in seeds]).to(device))


def copies(members: Members, sources: Sequence[int]) -> Members:
    """New members at rest with the weights and statistics of ``members[sources]``."""
    index = torch.tensor(list(sources), device=members.parameters.device)
    new = Members.start(members.layout, members.parameters[index])
    new.mean, new.variance = members.mean[index].clone(), members.variance[index].clone()
    return new
