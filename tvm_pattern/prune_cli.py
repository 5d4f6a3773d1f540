"""``tvm-pattern prune``: arguments to a run of :mod:`tvm_pattern.pruning.train`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from .locks import LockError
from .terminal import error_text

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


def _say_how_to_go_on(output: Path) -> None:
    from .pruning.train import CHECKPOINT

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
    import torch

    from .pruning import ConfigError, SparsityError
    from .pruning.command import run
    from .pruning.recipe import Recipe
    from .pruning.train import TrainingDiverged, distributed

    try:
        settings = Recipe.from_file(recipe, epochs)
        if device.startswith("cuda") and not torch.cuda.is_available():
            raise ConfigError("--device cuda: this machine has no CUDA device; use --device cpu")
        with distributed(device) as process:
            result = run(
                model,
                data,
                settings,
                weights,
                output,
                device,
                process,
                resume=resume,
                quiet=json_output,
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
