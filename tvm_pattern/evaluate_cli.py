"""``tvm-pattern evaluate``: arguments to :func:`tvm_pattern.evaluation.evaluate`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from .model_options import IMAGENET_MEAN, IMAGENET_STD
from .terminal import Json, escape, message, open_console, print_json, print_lines

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command("evaluate")
def evaluate(
    data: Annotated[
        str,
        typer.Option(
            help="Folder with val/<class>/ or <class>/ pictures, or with CIFAR-10's test_batch.bin,"
            " or 'digits'."
        ),
    ],
    model: Annotated[
        str | None,
        typer.Option(help="resnet50, ..., package.module:factory, or an .onnx file (dense)."),
    ] = None,
    weights: Annotated[Path | None, typer.Option(help="Weights before pruning.")] = None,
    pruned: Annotated[
        Path | None, typer.Option(help="Pruned weights of the network, or a pruned .onnx file.")
    ] = None,
    library: Annotated[
        Path | None, typer.Option("--lib", help="The pruned network compiled, of any batch.")
    ] = None,
    classes: Annotated[
        Path | None,
        typer.Option(
            help="Text file: the class folders' names in the order of the outputs, one a line."
            " Needed where the folder has not all of them."
        ),
    ] = None,
    image_size: Annotated[
        int | None, typer.Option(min=8, help="Height and width of the crops; else the library's.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Pictures at most.")] = None,
    batch: Annotated[int, typer.Option(min=1, help="Pictures at a time.")] = 32,
    workers: Annotated[int, typer.Option(min=0, help="Processes that read pictures.")] = 2,
    mean: Annotated[
        tuple[float, float, float], typer.Option(help="Of the pictures' colours, 0 to 1.")
    ] = IMAGENET_MEAN,
    std: Annotated[
        tuple[float, float, float], typer.Option(help="Their deviations.")
    ] = IMAGENET_STD,
    device: Annotated[str, typer.Option(help="Of the networks in torch: cpu or cuda.")] = "cpu",
    json_output: Json = False,
) -> None:
    """Compare the accuracy of a network before pruning, after it and compiled.

    Top-1 and top-5 over one set of pictures, and how often any two of them answer the same. Name
    what there is: weights before pruning, pruned weights, a library.

    Example: tvm-pattern evaluate --data photos --model resnet50 --weights w.pth --pruned p.st

    Example: tvm-pattern evaluate --data photos --lib r.so --classes names.txt --limit 1000
    """
    from rich.progress import track

    from .evaluation import EvaluationError
    from .evaluation import evaluate as evaluate_networks

    size, networks, pictures, names = _open(
        model, weights, pruned, library, data, classes, image_size, device
    )
    console = open_console(sys.stderr)
    try:
        found = evaluate_networks(
            networks,
            pictures,
            names,
            limit=limit,
            batch=batch,
            workers=workers,
            mean=mean,
            std=std,
            show=lambda batches: track(
                batches, "Evaluating", console=console, disable=not console.is_terminal
            ),
        )
    except RuntimeError as error:
        raise EvaluationError(f"a network refuses pictures of {size} x {size}: {error}") from error
    for name in found.unreadable:
        message(f"unreadable picture left out: {escape(name)}")
    if json_output:
        print_json({"image_size": size, **found.as_dict()})
        return
    _print(found)


def _open(
    model: str | None,
    weights: Path | None,
    pruned: Path | None,
    library: Path | None,
    data: str,
    classes: Path | None,
    image_size: int | None,
    device: str,
) -> tuple[int, dict[str, Any], Any, list[str]]:
    """Image size, networks by name, pictures, classes."""
    from .artifact import load
    from .evaluation import EvaluationError, of_library, of_module
    from .pruning.data import open_validation

    _check(model, weights, pruned, library)
    opened = None if library is None else load(library)
    if image_size is None and opened is not None:
        image_size = int(opened.inputs[0].shape[-1])
    pictures, names = open_validation(data, image_size=image_size, classes=_names(classes))
    size = int(pictures[0, 0][0].shape[-1])
    if image_size is not None and size != image_size:
        raise EvaluationError(
            f"{data} has pictures of {size} x {size}, expected {image_size}: leave --image-size out"
        )
    networks: dict[str, Any] = {}
    if weights is not None or (model is not None and model.endswith(".onnx")):
        networks["dense"] = of_module(_network(str(model), weights, len(names)), device)
    if pruned is not None:
        source = str(pruned) if pruned.suffix == ".onnx" else str(model)
        kept = None if pruned.suffix == ".onnx" else pruned
        networks["pruned"] = of_module(_network(source, kept, len(names)), device)
    if opened is not None:
        networks["compiled"] = of_library(opened, size)
    return size, networks, pictures, names


def _check(
    model: str | None, weights: Path | None, pruned: Path | None, library: Path | None
) -> None:
    is_file = model is not None and model.endswith(".onnx")
    if is_file and weights is not None:
        raise typer.BadParameter(f"{model} holds its own weights; leave out --weights")
    if weights is None and pruned is None and library is None and not is_file:
        raise typer.BadParameter("got no weights; name --weights, --pruned or --lib")
    of_network = weights is not None or (pruned is not None and pruned.suffix != ".onnx")
    if of_network and (model is None or is_file):
        raise typer.BadParameter("weights need their network: name it with --model")
    if model is not None and not is_file and not of_network:
        raise typer.BadParameter(f"--model {model} has no weights; name --weights or --pruned")


def _names(path: Path | None) -> list[str] | None:
    from .evaluation import EvaluationError

    if path is None:
        return None
    if not path.is_file():
        raise EvaluationError(f"--classes: no such file: {path}; expected one name a line")
    names = [line.strip() for line in path.read_text().splitlines() if line.strip()]
    if len(names) != len(set(names)) or not names:
        raise EvaluationError(
            f"{path} has {len(names)} names, {len(set(names))} of them different; expected each"
            " class once"
        )
    return names


def _network(source: str, weights: Path | None, classes: int) -> Any:
    from .pruning.checkpoint import load_weights
    from .pruning.command import build_model
    from .pruning.onnx_network import OnnxNetwork

    if weights is None:
        return OnnxNetwork(source)
    model = build_model(source, classes)
    load_weights(weights, model)
    return model


def _print(found: Any) -> None:
    table = Table(title=f"{found.pictures} pictures")
    for name in ("network", "top-1 %", "top-5 %", f"answers as {found.scores[0].name} %"):
        table.add_column(name, justify="left" if name == "network" else "right")
    alike = {a.second: a for a in found.agreements if a.first == found.scores[0].name}
    for score in found.scores:
        same = alike.get(score.name)
        table.add_row(
            score.name,
            f"{score.top1:.2f}",
            "" if score.top5 is None else f"{score.top5:.2f}",
            "" if same is None else f"{same.same_answer:.2f}",
        )
    open_console().print(table)
    for pair in found.agreements:
        if (pair.first, pair.second) == ("pruned", "compiled"):
            print_lines(
                f"compiled answers as pruned for {pair.same_answer:.2f} %; outputs differ by at"
                f" most {pair.max_abs_difference:.2e}"
            )
    if found.unreadable:
        print_lines(f"{len(found.unreadable)} pictures could not be read and are left out")
