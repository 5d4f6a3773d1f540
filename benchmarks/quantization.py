"""Accuracy of int8: ``python -m benchmarks.quantization --json FILE``.

Networks of digits, dense and pruned, are quantised by 256 training images without their labels, and
fine-tuned with rounding for two epochs. The test images are those of :mod:`benchmarks.accuracy`.
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
from benchmarks.accuracy import cosine, device_facts
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


def tuned(model: nn.Module, data: Split, seed: int, size: int) -> QuantizedModel:
    """Fine-tuned with rounding, pruned weights kept at zero."""
    batches = list(data.bank[0][:CALIBRATION].split(64))
    network = finetuning(model, batches, data.test[0][:size], progress=False)
    optimizer = torch.optim.SGD(network.parameters(), lr=TUNING_RATE, momentum=0.9)
    lr_at = cosine(TUNING_RATE, TUNING_EPOCHS)
    generator = torch.Generator().manual_seed(seed)
    for epoch in range(TUNING_EPOCHS):
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


def row_of(kind: Kind, seed: int, model: nn.Module, data: Split, size: int) -> dict[str, Any]:
    """Accuracies of one network and its quantised forms."""
    row: dict[str, Any] = {"network": kind.name, "dense": kind.dense, "seed": seed}
    row["float32"] = accuracy(model, *data.test, size)
    for method in METHODS:
        network = calibrated(model, data, method, size)
        row[f"int8 {method}"] = accuracy(network.module(), *data.test, size)
    row["int8 tuned"] = accuracy(tuned(model, data, seed, size).module(), *data.test, size)
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


def write(path: Path, rows: list[dict[str, Any]], name: str = DIGITS.name) -> None:
    """The rows, and their table beside them."""
    facts = {"device": device_facts(), "calibration": CALIBRATION, "tuning_epochs": TUNING_EPOCHS}
    facts["images"] = name
    path.write_text(json.dumps({**facts, "rows": rows}, indent=1) + "\n")
    title = f"Accuracy on {name} in per cent, mean ± deviation; in brackets the change from float32"
    path.with_suffix(".md").write_text(f"{title}\n\n{table(rows)}")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, required=True, help="results, resumed if present")
    parser.add_argument("--work", type=Path, required=True, help="folder of trained networks")
    parser.add_argument("--cifar", type=Path, help="folder or tar file of CIFAR-10")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument(
        "--quick",
        action="store_true",
        help="one seed, an epoch, two networks (with --cifar: of noise)",
    )
    options = parser.parse_args(arguments)
    if options.seeds < 1:
        parser.error(f"--seeds must be at least 1, got {options.seeds}")
    torch.set_num_threads(1)
    options.work.mkdir(parents=True, exist_ok=True)
    subject, folder = DIGITS, options.work
    if options.cifar is not None:
        folder = options.work / "cifar"
        folder.mkdir(exist_ok=True)
        try:
            subject = quantization_cifar.opened(options.cifar, folder, quick=options.quick)
        except DataError as error:
            parser.error(str(error))
    kinds: tuple[Kind, ...] = KINDS
    settings, seeds = subject.settings, range(options.seeds)
    if options.quick:
        settings = replace(settings, pretrain_epochs=1, epochs=2, gradual_epochs=1, ramp_epochs=1)
        kinds, seeds = KINDS[:2], range(1)
    rows = json.loads(options.json.read_text())["rows"] if options.json.exists() else []
    done = {(row["network"], row["seed"]) for row in rows}
    console = Console(stderr=True)
    for seed in seeds:
        data = subject.load(seed)
        for kind, model in trained(subject, seed, data, folder, settings, kinds):
            if (kind.name, seed) in done:
                continue
            rows.append(row_of(kind, seed, model, data, subject.batch))
            write(options.json, rows, subject.name)
            console.print(rows[-1], highlight=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
