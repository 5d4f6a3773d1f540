"""What a device is worth to the study, in a minute: ``python -m benchmarks.cifar --probe``."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from .model import Members, Sgd, train_step
from .networks import NETWORKS, Layout
from .operators import FusedOperators, Operators, PlainOperators
from .study import device_facts
from .training import Trainer, fresh

MEMBERS = 16


def _step_seconds(
    trainer: Trainer, operators: Operators, layout: Layout, members: int, steps: int = 4
) -> float:
    """Seconds of a training step per member, after two steps."""
    data, settings = trainer.data, trainer.settings
    size = min(settings.batch_size, len(data))
    batch = fresh(layout, range(members), data.device)
    decayed = layout.decayed().to(data.device)
    plan = data.epoch(0, 0)
    start = 0.0
    for step in range(steps + 2):
        if step == 2:
            _wait(data.device)
            start = time.monotonic()
        images, labels = data.batch(plan, step * size % max(1, len(data) - size), size)
        images = images[None, ..., : max(3, operators.image_channels)]
        train_step(
            batch, operators, images, labels[None], 0.1, decayed, settings.label_smoothing, Sgd()
        )
    _wait(data.device)
    return (time.monotonic() - start) / steps / members


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def _gradients(trainer: Trainer, layout: Layout, operators: Operators) -> torch.Tensor:
    """Momentum after one step of two members: the gradients of every layer."""
    data = trainer.data
    members: Members = fresh(layout, (0, 1), data.device)
    images, labels = data.batch(data.epoch(0, 0), 0, min(128, len(data)))
    images = images[None, ..., : max(3, operators.image_channels)]
    decayed = layout.decayed().to(data.device)
    train_step(members, operators, images, labels[None], 0.1, decayed, 0.1, Sgd())
    return members.momentum


def likeness(trainer: Trainer, layout: Layout) -> float:
    """Cosine between the gradients of the fused and of the plain operators: about 1 if right.

    Both round to the activations' type in other places, which twenty batch norms amplify.
    """
    fused = _gradients(trainer, layout, trainer.operators)
    plain = _gradients(trainer, layout, PlainOperators())
    return float(torch.nn.functional.cosine_similarity(fused, plain).min())


def verify(trainer: Trainer, names: Iterable[str]) -> None:
    """Refuse to go on with kernels that are wrong on this device.

    Raises
    ------
    RuntimeError
        Naming the network and the likeness.
    """
    for name in names:
        found = likeness(trainer, Layout(NETWORKS[name]()))
        if not found > 0.9:
            raise RuntimeError(
                f"the fused operators are wrong on this device: {name} has gradients of likeness"
                f" {found:.3f} to the plain ones, expected above 0.9; use --operators plain"
            )


def _profile(trainer: Trainer, layout: Layout) -> list[str]:
    """Where the GPU's time of a step goes: the longest kernels."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as record:
        _step_seconds(trainer, trainer.operators, layout, MEMBERS, 1)
    events = sorted(record.key_averages(), key=lambda e: -e.self_device_time_total)
    return [
        f"{e.self_device_time_total / 3e3:8.3f} ms {e.count:5d} {e.key[:90]}" for e in events[:16]
    ]


def probe(trainer: Trainer, path: Path) -> None:
    """Compare and time the operators, train an epoch, print everything and write ``path``."""
    device = trainer.data.device
    report: dict[str, Any] = dict(device_facts(device))
    print(report, flush=True)
    plain = PlainOperators()
    ways: dict[str, Operators] = {"chosen": trainer.operators, "plain": plain}
    for name, build in NETWORKS.items():
        layout = Layout(build())
        entry: dict[str, Any] = {}
        if isinstance(trainer.operators, FusedOperators):
            entry["likeness"] = likeness(trainer, layout)
        for way, operators in ways.items():
            for members in (4, MEMBERS) if way == "chosen" else (2,):
                began = time.monotonic()
                seconds = _step_seconds(trainer, operators, layout, members)
                steps = len(trainer.data) // trainer.settings.batch_size
                entry[f"{way} x{members}"] = {
                    "ms_per_member_step": round(1e3 * seconds, 4),
                    "seconds_per_member_epoch": round(seconds * steps, 4),
                    "seconds_here": round(time.monotonic() - began, 2),
                }
        if device.type == "cuda":
            print(name, "a step of", MEMBERS, *_profile(trainer, layout), sep="\n", flush=True)
        report[name] = entry
        print(name, json.dumps(entry, indent=1), flush=True)
    if isinstance(trainer.operators, FusedOperators):
        report["choices"] = _choices(trainer.operators)
        report["notes"] = trainer.operators.engine.notes
        print(json.dumps(report["choices"], indent=0), *report["notes"], sep="\n", flush=True)
    trained = fresh(Layout(NETWORKS["resnet20"]()), range(4), device)
    began = time.monotonic()
    trainer.run(trained, [0, 0, 1, 1], 2)
    report["two_epochs_seconds"] = time.monotonic() - began
    report["two_epochs_accuracy"] = trainer.accuracy(trained)
    if device.type == "cuda":
        report["peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
    print({k: report[k] for k in report if k.startswith(("two", "peak"))}, flush=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=1))


def _choices(operators: FusedOperators) -> dict[str, str]:
    lines = {}
    for key, options in operators.engine.measured.items():
        if key[1][0] == MEMBERS or key[2][0] == MEMBERS:
            times = sorted(options, key=lambda o: o.milliseconds)
            lines[str(key)] = "; ".join(
                f"{'library' if o.tile is None else o.tile} {o.milliseconds:.3f}"
                for o in times
                if not math.isnan(o.milliseconds)
            )
    return lines
