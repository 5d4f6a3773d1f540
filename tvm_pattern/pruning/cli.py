"""``tvm-pattern prune``: arguments to a run of :mod:`tvm_pattern.pruning.train`."""

from __future__ import annotations

import inspect
import json
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from torch import nn

from .. import models
from ..locks import LockError, locked_folder
from ..sources import import_factory
from ..terminal import error_text, is_quiet
from .assignment import SparsityError
from .checkpoint import load_weights
from .config import ConfigError
from .data import open_data
from .recipe import Recipe
from .train import CHECKPOINT, Process, Trainer, TrainingDiverged, distributed

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
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


def _run(
    model: str,
    data: str,
    recipe: Recipe,
    weights: Path | None,
    output: Path,
    device: str,
    resume: bool,
    process: Process,
    quiet: bool,
) -> dict[str, Any]:
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


def _say_how_to_go_on(output: Path) -> None:
    if (output / CHECKPOINT).is_file():
        typer.echo(
            f"{output} holds a checkpoint: the same command goes on from it (--resume, the"
            " default); --no-resume starts anew",
            err=True,
        )


@app.command()
def prune(
    model: Annotated[
        str, typer.Option(help="vgg16, vgg16_bn, resnet50, mobilenet_v2 or package.module:callable")
    ],
    data: Annotated[
        str,
        typer.Option(help="folder with train/ and val/ classes or CIFAR-10 binaries, or 'digits'"),
    ],
    recipe: Annotated[
        Path | None, typer.Option(help="YAML or JSON: patterns, method, train")
    ] = None,
    weights: Annotated[Path | None, typer.Option(help="safetensors to start from")] = None,
    epochs: Annotated[int | None, typer.Option(help="total epochs, over the recipe's")] = None,
    output: Annotated[
        Path, typer.Option(help="folder for checkpoint, weights, report, plots")
    ] = Path("pruned"),
    device: Annotated[str, typer.Option(help="cpu or cuda")] = "cpu",
    resume: Annotated[
        bool, typer.Option(help="continue from the checkpoint in the output folder")
    ] = True,
    json_output: Annotated[bool, typer.Option("--json", help="print the figures as JSON")] = False,
) -> None:
    """Train and prune a model by patterns and connectivity.

    Run it by torchrun for several processes. A run that was stopped goes on by the same command.
    Without training, by pictures alone: tvm-pattern posttrain, or prune --posttrain FOLDER, which
    takes the options of that command.

    Example: tvm-pattern prune --model vgg16_bn --data digits --epochs 20 --output pruned
    """
    try:
        settings = Recipe.from_file(recipe, epochs)
        if device.startswith("cuda") and not torch.cuda.is_available():
            raise ConfigError("--device cuda: this machine has no CUDA device; use --device cpu")
        with distributed(device) as process:
            result = _run(
                model, data, settings, weights, output, device, resume, process, json_output
            )
    except (ValueError, SparsityError, TrainingDiverged, LockError) as error:
        text = error_text(error, typer.main.get_command(app))
        Console(stderr=True).print(f"error: {text}", style="red", markup=False, highlight=False)
        _say_how_to_go_on(output)
        raise typer.Exit(1) from error
    except KeyboardInterrupt:
        _say_how_to_go_on(output)
        raise
    if process.is_main:
        typer.echo(json.dumps(result) if json_output else f"written to {result['output']}")
