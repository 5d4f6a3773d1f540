"""Accuracy of int8: ``python -m benchmarks.quantization --json FILE``.

Networks of digits, dense and pruned, are quantised by 256 training images without their labels, and
fine-tuned with rounding for some epochs. The test images are those of :mod:`benchmarks.accuracy`.
With ``--cifar PATH``, a folder or tar file of CIFAR-10, the networks are a ResNet-20 and one of
bottlenecks on its images. Beside FILE, the same name with ``.md`` has the table. Trained networks
are kept in ``--work``, a folder for each kind of images.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from rich.console import Console
from torch import nn

from benchmarks import quantization_cifar
from benchmarks.accuracy import Settings, cosine, device_facts
from benchmarks.cifar.data import DataError
from benchmarks.digits import Split
from benchmarks.quantization_training import DIGITS, KINDS, Kind, trained
from tvm_pattern.quantization import QuantizedModel, finetuning, quantize

CALIBRATION = 256
TUNING_EPOCHS = 2
TUNING_RATE = 1e-4
METHODS = ("minmax", "percentile", "mse")

Run = Callable[[torch.Tensor], torch.Tensor]


@torch.no_grad()
def accuracy(run: Run, images: torch.Tensor, labels: torch.Tensor, size: int) -> float:
    """Percent of right answers over whole batches of ``size``."""
    parts = zip(images.split(size), labels.split(size), strict=True)
    whole = [(x, y) for x, y in parts if len(x) == size]
    right = sum(int((run(x).argmax(1) == y).sum()) for x, y in whole)
    return 100.0 * right / (size * len(whole))


def calibrated(model: nn.Module, data: Split, method: Any, size: int) -> QuantizedModel:
    """Quantised by some training images."""
    batches = list(data.bank[0][:CALIBRATION].split(64))
    return quantize(model, batches, data.test[0][:size], method=method, progress=False)


def tuned(
    model: nn.Module, data: Split, seed: int, size: int, epochs: int = TUNING_EPOCHS
) -> QuantizedModel:
    """Fine-tuned with rounding, pruned weights kept at zero."""
    batches = list(data.bank[0][:CALIBRATION].split(64))
    network = finetuning(model, batches, data.test[0][:size], progress=False)
    optimizer = torch.optim.SGD(network.parameters(), lr=TUNING_RATE, momentum=0.9)
    lr_at = cosine(TUNING_RATE, epochs)
    generator = torch.Generator().manual_seed(seed)
    for epoch in range(epochs):
        images = data.bank[epoch % len(data.bank)]
        order = torch.randperm(len(images), generator=generator).split(64)
        for step, batch in enumerate(order):
            for group in optimizer.param_groups:
                group["lr"] = lr_at(epoch + step / len(order))
            loss = F.cross_entropy(network(images[batch]), data.labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return network.finish()


def row_of(
    kind: Kind,
    seed: int,
    model: nn.Module,
    data: Split,
    size: int,
    epochs: int = TUNING_EPOCHS,
) -> dict[str, Any]:
    """Accuracies of one network and its quantised forms."""
    row: dict[str, Any] = {"network": kind.name, "dense": kind.dense, "seed": seed}
    row["float32"] = accuracy(model, *data.test, size)
    for method in METHODS:
        network = calibrated(model, data, method, size)
        row[f"int8 {method}"] = accuracy(network.module(), *data.test, size)
    row["int8 tuned"] = accuracy(tuned(model, data, seed, size, epochs).module(), *data.test, size)
    return row


def table(rows: list[dict[str, Any]]) -> str:
    """Means and deviations over the seeds, and the paired change from float32."""
    head = ["network", "seeds", "float32", *(f"int8 {m}" for m in METHODS), "int8 tuned"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for name in dict.fromkeys(row["network"] for row in rows):
        mine = [row for row in rows if row["network"] == name]
        float32 = np.array([row["float32"] for row in mine])
        cells = [name, str(len(mine)), _spread(float32)]
        for column in head[3:]:
            values = np.array([row[column] for row in mine])
            cells.append(f"{values.mean():.2f} ({_spread(values - float32, signed=True)})")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _spread(values: np.ndarray, *, signed: bool = False) -> str:
    deviation = values.std(ddof=1) if len(values) > 1 else 0.0
    return f"{values.mean():{'+' if signed else ''}.2f} ± {deviation:.2f}"


def shortened(settings: Settings, epochs: int) -> Settings:
    """The same study with other epochs, a third of them for pruning little by little."""
    third = max(1, epochs // 3)
    return replace(
        settings,
        pretrain_epochs=epochs,
        epochs=epochs,
        gradual_epochs=third,
        ramp_epochs=max(1, third - 1),
    )


def write(path: Path, rows: list[dict[str, Any]], name: str, schedule: dict[str, int]) -> None:
    """The rows, and their table beside them."""
    facts = {"device": device_facts(), "images": name, "calibration": CALIBRATION, **schedule}
    path.write_text(json.dumps({**facts, "rows": rows}, indent=1) + "\n")
    title = (
        f"Accuracy on {name} in per cent, mean ± deviation over seeds; in brackets the change from"
        f" float32. {schedule['training_images']} training images;"
        f" {schedule['pretrain_epochs']} epochs of a dense network, then {schedule['epochs']} of"
        f" each network made from it, {schedule['tuning_epochs']} with rounding."
    )
    path.with_suffix(".md").write_text(f"{title}\n\n{table(rows)}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, required=True, help="results, resumed if present")
    parser.add_argument("--work", type=Path, required=True, help="folder of trained networks")
    parser.add_argument("--cifar", type=Path, help="folder or tar file of CIFAR-10")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument(
        "--epochs",
        type=int,
        metavar="N",
        help="of a dense network, and as many again of each network made from it; a third of these"
        " prune little by little (default: 20 for digits, 30 for CIFAR-10)",
    )
    parser.add_argument(
        "--tuning-epochs",
        type=int,
        metavar="N",
        default=TUNING_EPOCHS,
        help="with rounding, after the others (default: %(default)s)",
    )
    parser.add_argument(
        "--images", type=int, metavar="N", help="training images of CIFAR-10 (default: all)"
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="one seed, an epoch, two networks (with --cifar: of noise)",
    )
    return parser


def kept(path: Path, schedule: dict[str, int]) -> list[dict[str, Any]]:
    """Rows of an earlier run.

    Raises
    ------
    ValueError
        If they were made by another schedule.
    """
    if not path.exists():
        return []
    facts = json.loads(path.read_text())
    found = {name: facts.get(name) for name in schedule}
    if found != schedule:
        raise ValueError(
            f"{path} has rows of another schedule: got {found}, expected {schedule}; name another"
            " --json and --work, or give the options of that run"
        )
    return list(facts["rows"])


def main(arguments: list[str] | None = None) -> int:
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.seeds < 1:
        parser.error(f"--seeds must be at least 1, got {options.seeds}")
    if options.epochs is not None and options.epochs < 2:
        parser.error(f"--epochs must be at least 2, got {options.epochs}")
    if options.images is not None and (options.cifar is None or options.images < CALIBRATION):
        parser.error(f"--images goes with --cifar and is at least {CALIBRATION}")
    torch.set_num_threads(1)
    options.work.mkdir(parents=True, exist_ok=True)
    subject, folder = DIGITS, options.work
    if options.cifar is not None:
        folder = options.work / "cifar"
        if options.images or options.epochs:
            folder = folder / f"{options.images or 'all'}-images-{options.epochs or 'all'}-epochs"
        folder.mkdir(parents=True, exist_ok=True)
        try:
            subject = quantization_cifar.opened(
                options.cifar, folder, images=options.images, quick=options.quick
            )
        except DataError as error:
            parser.error(str(error))
    kinds: tuple[Kind, ...] = KINDS
    settings, seeds = subject.settings, range(options.seeds)
    if options.epochs is not None:
        settings = shortened(settings, options.epochs)
    if options.quick:
        settings = replace(settings, pretrain_epochs=1, epochs=2, gradual_epochs=1, ramp_epochs=1)
        kinds, seeds = KINDS[:2], range(1)
    console = Console(stderr=True)
    rows: list[dict[str, Any]] = []
    for seed in seeds:
        data = subject.load(seed)
        schedule = {
            "training_images": len(data.bank[0]),
            "pretrain_epochs": settings.pretrain_epochs,
            "epochs": settings.epochs,
            "tuning_epochs": options.tuning_epochs,
        }
        try:
            rows = kept(options.json, schedule)
        except ValueError as error:
            parser.error(str(error))
        done = {(row["network"], row["seed"]) for row in rows}
        for kind, model in trained(subject, seed, data, folder, settings, kinds):
            if (kind.name, seed) in done:
                continue
            rows.append(row_of(kind, seed, model, data, subject.batch, options.tuning_epochs))
            write(options.json, rows, subject.name, schedule)
            console.print(rows[-1], highlight=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
