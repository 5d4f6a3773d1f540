"""``tvm-pattern posttrain``: arguments to a run of :mod:`tvm_pattern.posttrain`."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from .atomic import write_file
from .locks import LockError, locked_folder
from .model_options import IMAGENET_MEAN, IMAGENET_STD
from .terminal import error_text, is_quiet

if TYPE_CHECKING:
    from torch import nn

    from .posttrain import PosttrainReport

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
_CHECKPOINT = "posttrain.pt"


def _table(report: PosttrainReport) -> Table:
    table = Table(title="Change of each layer's outputs, of their mean square")
    for name in ("layer", "largest weights kept", "chosen and solved for"):
        table.add_column(name)
    for layer in report.layers:
        table.add_row(layer.name, f"{100 * layer.projected:.1f} %", f"{100 * layer.fitted:.1f} %")
    return table


def _block_table(report: PosttrainReport) -> Table:
    table = Table(title="Change of each block's outputs, of their mean square")
    for name in ("block", "before", "tuned"):
        table.add_column(name)
    for block in report.blocks:
        table.add_row(block.name, f"{100 * block.before:.1f} %", f"{100 * block.after:.1f} %")
    return table


def _open(model: str, weights: Path | None, classes: int) -> nn.Module:
    """The trained network.

    Raises
    ------
    ValueError
        Without weights, with weights beside a file that has its own, or where one cannot be read.
    """
    if Path(model).suffix == ".onnx":
        from .pruning import OnnxNetwork

        if weights is not None:
            raise ValueError(f"got --weights {weights}, but {model} has its own; leave them out")
        return OnnxNetwork(model)
    if weights is None:
        raise ValueError(f"{model} is a network without weights; name them with --weights")
    import torch

    from .pruning import load_weights
    from .pruning.command import build_model

    torch.manual_seed(0)
    network = build_model(model, classes)
    load_weights(weights, network)
    return network.eval()


@app.command("posttrain")
def posttrain_command(
    model: Annotated[
        str,
        typer.Option(
            help="an .onnx file, vgg16, vgg16_bn, resnet50, mobilenet_v2 or package.module:callable"
        ),
    ],
    images: Annotated[Path, typer.Option(help="folder of pictures; labels are not needed")],
    weights: Annotated[
        Path | None,
        typer.Option(help="trained weights of a network: safetensors or a state dict"),
    ] = None,
    output: Annotated[Path, typer.Option(help="folder for weights and report")] = Path("pruned"),
    connectivity: Annotated[float, typer.Option(min=1, help="kernels before / after")] = 3.6,
    connectivity_1x1: Annotated[float, typer.Option(min=1, help="the same for 1x1 layers")] = 1.0,
    block_1x1: Annotated[
        int, typer.Option(min=1, help="in_channels of 1x1 layers that go together: 4 for int8")
    ] = 1,
    group: Annotated[int, typer.Option(min=1, help="filters that share kernels: alike ones")] = 1,
    library: Annotated[str, typer.Option(help="pattern set")] = "fixed8",
    reconstruct: Annotated[
        int,
        typer.Option(
            min=0, help="steps by which each block is tuned afterwards: some hundred at high rates"
        ),
    ] = 0,
    limit: Annotated[int, typer.Option(min=1, help="pictures at most")] = 256,
    batch: Annotated[int, typer.Option(min=1, help="pictures at a time")] = 16,
    image_size: Annotated[int, typer.Option(min=1, help="height and width of the crops")] = 224,
    mean: Annotated[
        tuple[float, float, float], typer.Option(help="of the pictures' colours, 0 to 1")
    ] = IMAGENET_MEAN,
    std: Annotated[
        tuple[float, float, float], typer.Option(help="their deviations; 1 1 1 with mean 0 0 0")
    ] = IMAGENET_STD,
    classes: Annotated[
        int, typer.Option(min=1, help="classes that the model was trained for")
    ] = 1000,
    json_output: Annotated[bool, typer.Option("--json", help="print the figures as JSON")] = False,
) -> None:
    """Prune a trained model by some pictures: no labels, no training. Goes on where it was
    stopped.

    Example: tvm-pattern posttrain --model yolo.onnx --images photos --image-size 640 --mean 0 0 0
    --std 1 1 1 --connectivity 1.8

    Example: tvm-pattern posttrain --model resnet50 --weights w.safetensors --images photos/
    """
    from .posttrain import calibration_batches, posttrain
    from .pruning import OnnxNetwork, save_pruned

    console = Console(stderr=True, quiet=json_output or is_quiet())
    try:
        batches = calibration_batches(
            images, size=image_size, batch=batch, limit=limit, mean=mean, std=std
        )
        network = _open(model, weights, classes)
        output.mkdir(parents=True, exist_ok=True)
        with locked_folder(output, "pruning into"):
            start = time.monotonic()
            report = posttrain(
                network,
                batches,
                connectivity,
                group,
                library,
                connectivity_1x1,
                block_1x1=block_1x1,
                reconstruct=reconstruct,
                checkpoint=output / _CHECKPOINT,
            )
            if isinstance(network, OnnxNetwork):
                network.save(output / "pruned.onnx")
            else:
                save_pruned(output / "pruned.safetensors", network, report.assignment)
            write_file(output / "report.json", json.dumps(report.to_dict(), indent=2).encode())
    except (ValueError, LockError) as error:
        text = error_text(error, typer.main.get_command(app))
        Console(stderr=True).print(f"error: {text}", style="red", markup=False, highlight=False)
        raise typer.Exit(1) from error
    console.print(_table(report))
    if report.blocks:
        console.print(_block_table(report))
    seconds = time.monotonic() - start
    if json_output:
        typer.echo(json.dumps(report.to_dict()))
    else:
        typer.echo(
            f"{report.pruning.compression_rate:.2f}x over all convolutions in {seconds:.0f} s;"
            f" written to {output}"
        )
