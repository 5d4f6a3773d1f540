"""``python -m tvm_pattern.demo``: the whole road in a few minutes.

1. Train a small CNN on scikit-learn's digits, prune it 8 times, retrain it with fixed masks,
   compile it, and classify the held-out images through the compiled library.
2. Prune ResNet-50 at once (random weights: this shows speed, not accuracy), compile it at 224x224
   and time it against torch's dense run, interleaved in one process, with the same threads.

Tables go to the terminal; a picture, the figures and both libraries go to ``build/demo/``.
"""

from __future__ import annotations

import json
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from torch import nn
from torch.nn import functional

from . import models
from .artifact import Library
from .atomic import write_file
from .compiler import compile as compile_library
from .demo_plot import LayerTime, save_picture
from .locks import locked_folder
from .pruning import PatternConfig, Pruner, PruneReport, oneshot
from .threads import check_num_threads

HELD_OUT = 360
DENSE_EPOCHS, RETRAIN_EPOCHS = 14, 14
BATCH = 32
# 9/4 by patterns times 3.6 by connectivity is 8.1 for the 3x3 layers of ResNet-50. The first layer
# of the digits network keeps every kernel, so the others have to give a little more for 8x in all.
DIGITS_CONNECTIVITY = 3.7
RESNET_CONNECTIVITY = 3.6
RESNET_GROUP = 4
# Lets the idle workers of the other engine fall asleep before a measurement.
PAUSE_SECONDS = 0.02
TOLERANCE = 1e-4


@dataclass(frozen=True)
class Latency:
    """Milliseconds of one engine."""

    engine: str
    median_ms: float
    p10_ms: float
    p90_ms: float


class DigitsNet(nn.Module):
    """A small VGG-like network for images ``[N, 1, 16, 16]``."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 1
        for width in (32, 64, None, 96, 96, None, 128):
            if width is None:
                layers.append(nn.MaxPool2d(2))
                continue
            layers += [
                nn.Conv2d(channels, width, 3, padding=1, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(),
            ]
            channels = width
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(channels, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.features(x).mean((2, 3)))


@dataclass(frozen=True)
class Digits:
    """Images ``[N, 1, 16, 16]`` in [0, 1] and labels; the test part is not used in training."""

    images: torch.Tensor
    labels: torch.Tensor
    test_images: torch.Tensor
    test_labels: torch.Tensor


def load_digits() -> Digits:
    """scikit-learn's 1,797 bundled 8x8 images, enlarged to 16x16.

    Raises
    ------
    ModuleNotFoundError
        If scikit-learn is missing.
    """
    try:
        from sklearn.datasets import load_digits as bundled
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "the demo needs scikit-learn for its images: pip install '.[demo]' in a clone"
        ) from error
    pixels, labels = bundled(return_X_y=True)
    images = torch.from_numpy(pixels.reshape(-1, 1, 8, 8).astype("float32") / 16)
    images = functional.interpolate(images, (16, 16), mode="bilinear")
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    images, labels = images[order], torch.from_numpy(labels)[order]
    return Digits(images[HELD_OUT:], labels[HELD_OUT:], images[:HELD_OUT], labels[:HELD_OUT])


def train(
    model: nn.Module,
    data: Digits,
    epochs: int,
    learning_rate: float,
    pruner: Pruner | None = None,
    on_epoch: Callable[[], None] = lambda: None,
) -> None:
    """Adam with a cosine learning rate and random shifts of the images by up to 2 pixels."""
    model.train()
    optimizer = torch.optim.Adam(model.parameters(), learning_rate, weight_decay=1e-4)
    if pruner is not None:
        pruner.attach(optimizer)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    generator = torch.Generator().manual_seed(1)
    for _ in range(epochs):
        for index in torch.randperm(len(data.images), generator=generator).split(BATCH):
            shift = torch.randint(-2, 3, (2,), generator=generator).tolist()
            batch = torch.roll(data.images[index], shift, (2, 3))
            optimizer.zero_grad()
            functional.cross_entropy(model(batch), data.labels[index]).backward()
            optimizer.step()
        schedule.step()
        on_epoch()
    model.eval()


@torch.no_grad()
def predict(model: nn.Module, images: torch.Tensor) -> np.ndarray:
    """Scores ``[N, 10]`` by torch."""
    return model(images).numpy()


def accuracy(scores: np.ndarray, labels: torch.Tensor) -> float:
    """Fraction of images whose highest score is at their label."""
    return float((scores.argmax(1) == labels.numpy()).mean())


def prune_digits(
    data: Digits, epochs: tuple[int, int], console: Console
) -> tuple[DigitsNet, PruneReport, list[tuple[str, float]]]:
    """Train, prune and retrain.

    Returns
    -------
    tuple
        The pruned network, the report of its pruning, and the accuracy on the held-out images after
        each stage.
    """
    torch.manual_seed(0)
    model = DigitsNet()
    stages: list[tuple[str, float]] = []

    def note(stage: str) -> None:
        stages.append((stage, accuracy(predict(model, data.test_images), data.test_labels)))

    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        dense = progress.add_task("training dense", total=epochs[0])
        train(model, data, epochs[0], 2e-3, on_epoch=lambda: progress.advance(dense))
        note("dense")
        pruner = Pruner(model, PatternConfig(connectivity=DIGITS_CONNECTIVITY), method="oneshot")
        pruner.freeze()
        note("pruned, not retrained")
        masked = progress.add_task("retraining pruned", total=epochs[1])
        train(model, data, epochs[1], 1e-3, pruner, lambda: progress.advance(masked))
        note("pruned and retrained")
    return model, pruner.finalize(), stages


def classify(library: Library, images: torch.Tensor) -> np.ndarray:
    """Scores ``[N, 10]`` by the compiled library, image by image."""
    return np.concatenate([library(image[None]) for image in images])


def dense_torch(model: nn.Module) -> nn.Module:
    """The torch baseline: batch norms folded into the convolutions."""
    from torch.fx.experimental.optimization import fuse

    return fuse(model)


def interleave(runs: dict[str, Callable[[], Any]], rounds: int) -> list[Latency]:
    """Time engines in turn; three rounds warm up."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for round_number in range(rounds + 3):
        for name, run in runs.items():
            time.sleep(PAUSE_SECONDS)
            start = time.perf_counter()
            run()
            elapsed = time.perf_counter() - start
            if round_number >= 3:
                times[name].append(elapsed * 1e3)
    return [
        Latency(name, *(float(np.quantile(values, q)) for q in (0.5, 0.1, 0.9)))
        for name, values in times.items()
    ]


def torch_layer_times(model: nn.Module, image: torch.Tensor, rounds: int) -> dict[str, float]:
    """Median milliseconds of each convolution in torch."""
    times: dict[str, list[float]] = defaultdict(list)
    started: dict[str, float] = {}
    handles = []
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):

            def before(_module: nn.Module, _inputs: Any, name: str = name) -> None:
                started[name] = time.perf_counter()

            def after(_module: nn.Module, _inputs: Any, _output: Any, name: str = name) -> None:
                times[name].append((time.perf_counter() - started[name]) * 1e3)

            handles.append(module.register_forward_pre_hook(before))
            handles.append(module.register_forward_hook(after))
    with torch.no_grad():
        for _ in range(rounds + 1):
            model(image)
    for handle in handles:
        handle.remove()
    return {name: statistics.median(values[1:]) for name, values in times.items()}


def library_layer_times(library: Library, image: torch.Tensor, rounds: int) -> dict[str, float]:
    """Median milliseconds of each convolution of a compiled network, epilogue included.

    A call in the library knows its channels but not its layer. Layers with equal channels depend on
    each other in a residual network, so they run in the order of the report.
    """
    calls: list[list[tuple[tuple[int, int], float]]] = []
    started: list[float] = []

    def watch(  # TVM calls it by position
        _function: Any,
        name: str,
        before: bool,  # noqa: FBT001
        _result: Any,
        *arguments: Any,
    ) -> int:
        if before:
            started.append(time.perf_counter())
        else:
            elapsed = (time.perf_counter() - started.pop()) * 1e3
            if "conv2d" in name:
                shapes = [a.shape for a in arguments if len(getattr(a, "shape", ())) == 3]
                calls[-1].append(((int(shapes[0][1]), int(shapes[-1][1])), elapsed))
        return 0

    library(image)
    library.vm.set_instrument(watch)
    for _ in range(rounds):
        calls.append([])
        library(image)
    library.vm.set_instrument(lambda *_: 0)
    waiting: dict[tuple[int, int], list[str]] = defaultdict(list)
    for row in library.report.rows:
        waiting[row.in_shape[1], row.out_shape[1]].append(row.layer)
    names = [waiting[channels].pop(0) for channels, _ in calls[0]]
    return {
        name: statistics.median(run[position][1] for run in calls)
        for position, name in enumerate(names)
    }


def digits_part(
    output: Path, epochs: tuple[int, int], console: Console
) -> tuple[dict[str, Any], PruneReport]:
    """First part of the demo; returns its figures and the pruning report."""
    console.rule("1. Digits: train, prune 8x, compile, classify")
    data = load_digits()
    model, report, stages = prune_digits(data, epochs, console)
    with console.status("compiling"):
        library = compile_library(model, data.test_images[:1])
        library.export(output / "digits.so")
    want = predict(model, data.test_images)
    got = classify(library, data.test_images)
    same = int((got.argmax(1) == want.argmax(1)).sum())
    error = float(np.abs(got - want).max())
    table = Table(title=f"Accuracy on {HELD_OUT} held-out images")
    table.add_column("stage")
    table.add_column("accuracy", justify="right")
    for stage, value in [*stages, ("compiled library", accuracy(got, data.test_labels))]:
        table.add_row(stage, f"{value:.1%}")
    console.print(table)
    console.print(
        f"convolutions pruned {report.compression_rate:.2f}x;"
        f" {same} of {HELD_OUT} predictions are torch's (largest difference of a score {error:.1e})"
    )
    figures = {
        "compression_rate": report.compression_rate,
        "accuracy": dict(stages),
        "compiled_accuracy": accuracy(got, data.test_labels),
        "same_predictions": same,
        "images": HELD_OUT,
        "max_abs_difference": error,
    }
    if same != HELD_OUT:
        raise RuntimeError(f"only {same} of {HELD_OUT} predictions agree with torch's")
    return figures, report


def resnet_part(
    output: Path, size: int, rounds: int, threads: int, console: Console
) -> tuple[dict[str, Any], list[LayerTime]]:
    """Second part of the demo; returns its figures and the times of the layers."""
    console.rule(f"2. ResNet-50 at {size}x{size}: pruned and compiled against torch dense")
    torch.set_num_threads(threads)
    image = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    dense = dense_torch(models.resnet50())
    model = models.resnet50()
    pruning = oneshot(
        model,
        connectivity=RESNET_CONNECTIVITY,
        group=RESNET_GROUP,
        connectivity_1x1=RESNET_CONNECTIVITY,
    )
    with console.status("compiling ResNet-50"):
        start = time.perf_counter()
        library = compile_library(model, image, num_threads=threads)
        library.export(output / "resnet50.so")
        seconds = time.perf_counter() - start
    with torch.no_grad():
        want = model(image).numpy()
        difference = float(np.abs(library(image.numpy()) - want).max() / np.abs(want).max())
        if difference > TOLERANCE:
            raise RuntimeError(f"differs from torch by {difference:.1e} of the output's scale")
        array = image.numpy()
        with console.status("timing, interleaved"):
            latencies = interleave(
                {"torch dense": lambda: dense(image), "tvm-pattern pruned": lambda: library(array)},
                rounds,
            )
    times = torch_layer_times(dense, image, rounds)
    ours = library_layer_times(library, image, rounds)
    layers = [LayerTime(name, times[name], ours[name]) for name in times if name in ours]
    _print_latencies(console, latencies, threads, rounds)
    console.print(
        f"convolutions pruned {pruning.compression_rate:.2f}x in all (3x3 layers 8.1x);"
        f" {len(library.report.taken)} of {len(library.report)} taken;"
        f" output within {difference:.1e} of torch's (same pruned weights);"
        f" compiled and written in {seconds:.0f} s"
    )
    figures = {
        "threads": threads,
        "compression_rate": pruning.compression_rate,
        "relative_difference": difference,
        "latency": [asdict(latency) for latency in latencies],
        "layers": [asdict(layer) for layer in layers],
    }
    return figures, layers


def _print_latencies(
    console: Console, latencies: Sequence[Latency], threads: int, rounds: int
) -> None:
    table = Table(title=f"Latency, {threads} thread(s), {rounds} interleaved runs")
    for name in ("engine", "median ms", "p10", "p90", "speed-up"):
        table.add_column(name, justify="left" if name == "engine" else "right")
    for row in latencies:
        numbers = (f"{v:.1f}" for v in (row.median_ms, row.p10_ms, row.p90_ms))
        speed_up = f"{latencies[0].median_ms / row.median_ms:.2f}x"
        table.add_row(row.engine, *numbers, speed_up)
    console.print(table)


def run_demo(
    output: Path,
    threads: int | None = None,
    *,
    quick: bool = False,
    console: Console | None = None,
) -> Path:
    """Both parts, the picture ``demo.png`` and the figures ``demo.json`` in ``output``.

    Parameters
    ----------
    output : pathlib.Path
        Created if missing.
    threads : int, optional
        Of the ResNet-50 part, for both engines.
    quick : bool
        Few epochs, a small image and few runs: shows that all parts work, figures mean little.
    console : rich.console.Console, optional

    Returns
    -------
    pathlib.Path
        The picture.

    Raises
    ------
    LockError
        If another run writes into ``output``.
    """
    with locked_folder(output, "writing into"):
        return _run_demo(output, threads, console or Console(), quick=quick)


def _run_demo(output: Path, threads: int | None, console: Console, *, quick: bool) -> Path:
    threads = check_num_threads(threads)
    start = time.perf_counter()
    epochs = (2, 1) if quick else (DENSE_EPOCHS, RETRAIN_EPOCHS)
    digits, report = digits_part(output, epochs, console)
    size, rounds = (64, 3) if quick else (224, 15)
    resnet, layers = resnet_part(output, size, rounds, threads, console)
    picture = output / "demo.png"
    save_picture(picture, report, layers)
    figures = {"digits": digits, "resnet50": resnet}
    write_file(output / "demo.json", (json.dumps(figures, indent=1) + "\n").encode())
    console.print(f"picture: {picture}   figures: {output / 'demo.json'}")
    console.print(f"done in {time.perf_counter() - start:.0f} s")
    return picture


def main(
    output: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("build/demo"),
    threads: Annotated[int | None, typer.Option(help="For ResNet-50, in both engines.")] = None,
    *,
    quick: Annotated[bool, typer.Option(help="Show only that every part works.")] = False,
) -> None:
    """Train, prune, compile and classify digits; then time pruned ResNet-50 against torch."""
    run_demo(output, threads, quick=quick)


if __name__ == "__main__":
    typer.run(main)
