"""Accuracy of int8: ``python -m benchmarks.quantization --json FILE``.

Networks of digits, dense and pruned, are quantised by 256 training images without their labels, and
fine-tuned with rounding for two epochs. The test images are those of :mod:`benchmarks.accuracy`.
Beside FILE, the same name with ``.md`` has the table. Trained networks are kept in ``--work``.
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

from benchmarks import digits
from benchmarks.accuracy import cosine, device_facts
from benchmarks.quantization_training import KINDS, SETTINGS, Kind, trained
from tvm_pattern.quantization import QuantizedModel, finetuning, quantize

CALIBRATION = 256
TUNING_EPOCHS = 2
TUNING_RATE = 1e-4
# Divides the test images, so that one exported batch size covers them.
BATCH = 480
METHODS = ("minmax", "percentile", "mse")

Run = Callable[[torch.Tensor], torch.Tensor]


@torch.no_grad()
def accuracy(run: Run, images: torch.Tensor, labels: torch.Tensor) -> float:
    """Percent of right answers over whole batches of :data:`BATCH`."""
    parts = zip(images.split(BATCH), labels.split(BATCH), strict=True)
    whole = [(x, y) for x, y in parts if len(x) == BATCH]
    right = sum(int((run(x).argmax(1) == y).sum()) for x, y in whole)
    return 100.0 * right / (BATCH * len(whole))


def calibrated(model: nn.Module, data: digits.Digits, method: Any) -> QuantizedModel:
    """Quantised by some training images."""
    batches = list(data.bank[0][:CALIBRATION].split(64))
    return quantize(model, batches, data.test[0][:BATCH], method=method, progress=False)


def tuned(model: nn.Module, data: digits.Digits, seed: int) -> QuantizedModel:
    """Fine-tuned with rounding, pruned weights kept at zero."""
    batches = list(data.bank[0][:CALIBRATION].split(64))
    network = finetuning(model, batches, data.test[0][:BATCH], progress=False)
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


def row_of(kind: Kind, seed: int, model: nn.Module, data: digits.Digits) -> dict[str, Any]:
    """Accuracies of one network and its quantised forms."""
    row: dict[str, Any] = {"network": kind.name, "dense": kind.dense, "seed": seed}
    row["float32"] = accuracy(model, *data.test)
    for method in METHODS:
        row[f"int8 {method}"] = accuracy(calibrated(model, data, method).module(), *data.test)
    row["int8 tuned"] = accuracy(tuned(model, data, seed).module(), *data.test)
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


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    """The rows, and their table beside them."""
    facts = {"device": device_facts(), "calibration": CALIBRATION, "tuning_epochs": TUNING_EPOCHS}
    path.write_text(json.dumps({**facts, "rows": rows}, indent=1) + "\n")
    title = "Accuracy on digits in per cent, mean ± deviation; in brackets the change from float32"
    path.with_suffix(".md").write_text(f"{title}\n\n{table(rows)}")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, required=True, help="results, resumed if present")
    parser.add_argument("--work", type=Path, required=True, help="folder of trained networks")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="one seed, one epoch, two networks")
    options = parser.parse_args(arguments)
    if options.seeds < 1:
        parser.error(f"--seeds must be at least 1, got {options.seeds}")
    torch.set_num_threads(1)
    options.work.mkdir(parents=True, exist_ok=True)
    settings, seeds = SETTINGS, range(options.seeds)
    kinds: tuple[Kind, ...] = KINDS
    if options.quick:
        settings = replace(settings, pretrain_epochs=1, epochs=2, gradual_epochs=1, ramp_epochs=1)
        kinds, seeds = KINDS[:2], range(1)
    rows = json.loads(options.json.read_text())["rows"] if options.json.exists() else []
    done = {(row["network"], row["seed"]) for row in rows}
    console = Console(stderr=True)
    for seed in seeds:
        data = digits.load(seed)
        for kind, model in trained(seed, data, options.work, settings, kinds):
            if (kind.name, seed) in done:
                continue
            rows.append(row_of(kind, seed, model, data))
            write(options.json, rows)
            console.print(rows[-1], highlight=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
