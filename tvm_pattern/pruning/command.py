"""What ``tvm-pattern prune`` does: a network by its name, and a run of :mod:`.train` on it."""

from __future__ import annotations

import inspect
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import nn

from .. import models
from ..locks import locked_folder
from ..sources import import_factory
from ..terminal import is_quiet
from .checkpoint import load_weights
from .config import ConfigError
from .data import open_data
from .recipe import Recipe
from .train import Process, Trainer

MODELS = ("vgg16", "vgg16_bn", "resnet50", "mobilenet_v2")


def build_model(name: str, num_classes: int) -> nn.Module:
    """A model of :mod:`tvm_pattern.models`, or any ``package.module:callable``.

    Raises
    ------
    ConfigError
        If there is no such model, or it is no ``nn.Module``.
    """
    builder: Any
    if name in MODELS:
        builder = getattr(models, name)
    elif ":" in name:
        try:
            builder = import_factory(name)
        except ValueError as error:
            raise ConfigError(str(error)) from error
        if not _takes_num_classes(builder):
            # As the command compile calls it.
            builder = partial(_without_num_classes, builder)
    else:
        raise ConfigError(
            f"unknown model {name!r}; expected {', '.join(MODELS)} or package.module:callable"
        )
    model = builder(num_classes=num_classes)
    if not isinstance(model, nn.Module):
        raise ConfigError(f"{name} gave a {type(model).__name__}, expected an nn.Module")
    return model


def _takes_num_classes(builder: Any) -> bool:
    try:
        parameters = inspect.signature(builder).parameters.values()
    except ValueError:  # what is written in C need not say what it takes
        return True
    return any(p.name == "num_classes" or p.kind is p.VAR_KEYWORD for p in parameters)


def _without_num_classes(builder: Any, num_classes: int) -> Any:
    del num_classes
    return builder()


def run(
    model: str,
    data: str,
    recipe: Recipe,
    weights: Path | None,
    output: Path,
    device: str,
    process: Process,
    *,
    resume: bool,
    quiet: bool,
) -> dict[str, Any]:
    """Train and prune, and what came out.

    Raises
    ------
    ConfigError, SparsityError, TrainingDiverged, LockError
        As :class:`Trainer`; if the network or its data are not there, or another run writes here.
    """
    train = recipe.train
    if train.distill and weights is None:
        raise ConfigError(
            "distill learns from the network as it was before the run, which has random weights"
            " here; name trained ones with --weights, or leave distill out"
        )
    torch.manual_seed(train.seed)
    datasets = open_data(data, image_size=train.image_size, seed=train.seed)
    network = build_model(model, len(datasets.classes))
    if weights is not None:
        load_weights(weights, network)
    if device.startswith("cuda"):
        device = f"cuda:{process.local_rank}"
    network.to(device)
    console = Console(quiet=quiet or is_quiet() or not process.is_main, stderr=True)
    console.print(f"{model} on {datasets.description}: {len(datasets.classes)} classes")
    with locked_folder(output, "pruning into") if process.is_main else nullcontext():
        trainer = Trainer(network, datasets, recipe, output, device, process, console)
        report = trainer.run(resume=resume)
    report.print(console)
    return {
        "output": str(output),
        "accuracy": trainer.epochs[-1]["accuracy"] if trainer.epochs else None,
        "top5": trainer.epochs[-1].get("top5") if trainer.epochs else None,
        "compression_rate": report.compression_rate,
        "compression_rate_pruned": report.compression_rate_pruned,
        "unreadable_images": len(trainer.unreadable),
    }
