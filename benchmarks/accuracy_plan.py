"""Planned per-layer rates against uniform ones: ``python -m benchmarks.accuracy_plan --json FILE``.

On the networks of :mod:`benchmarks.accuracy`, at the same budget of multiply-accumulates. The plan
sees validation images only; accuracies are on test images, one-shot after batch norm recalibration
and after retraining with fixed masks.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
from pathlib import Path
from typing import Any

import torch

from benchmarks import accuracy, digits
from benchmarks.accuracy_summary import mean_std
from tvm_pattern.pruning import LibrarySpec, PatternConfig, Pruner, plan

CALIBRATION_BATCH = 240
RATES = (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 12.0)


def measure(
    dense: torch.nn.Sequential,
    config: PatternConfig,
    data: digits.Digits,
    settings: accuracy.Settings,
    seed: int,
) -> dict[str, float]:
    """Test accuracy of one configuration before and after retraining."""
    model = copy.deepcopy(dense)
    optimizer = accuracy.make_sgd(model, settings)
    pruner = Pruner(model, config, "oneshot").attach(optimizer)
    pruner.freeze()
    size = settings.batch_size
    pruner.recalibrate_bn(data.bank[0].split(size), len(data.labels) // size)
    before = digits.accuracy(model, data.test)
    generator = torch.Generator().manual_seed(7 + seed)
    lr = accuracy.cosine(settings.lr, settings.epochs)
    accuracy.train(model, data, settings, optimizer, settings.epochs, lr, generator)
    pruner.finalize()
    return {
        "before_retraining": before,
        "test": digits.accuracy(model, data.test),
        "compression_rate": accuracy.compression_rate(model),
    }


def run_seed(seed: int, budget: float, settings: accuracy.Settings) -> dict[str, Any]:
    """Planned and uniform configuration of one seed."""
    data = digits.load(seed)
    dense = accuracy.pretrain(seed, data, settings)
    images, labels = data.validation
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    batches = [(images[i], labels[i]) for i in order.split(CALIBRATION_BATCH)]
    config = PatternConfig(library=LibrarySpec(size=8), first="skip")
    found = plan(dense, batches, budget, config=config, rates=RATES)
    if found.uniform is None:
        raise RuntimeError(f"no uniform rate of {RATES} meets the budget {budget}")
    return {
        "seed": seed,
        "planned": measure(dense, found.planned, data, settings, seed)
        | {"cost": found.planned_cost / found.dense_cost, "held_out_loss": found.planned_loss},
        "uniform": measure(dense, found.uniform, data, settings, seed)
        | {"cost": found.uniform_cost / found.dense_cost, "held_out_loss": found.uniform_loss},
        "rates": {r.name: r.connectivity for r in found.planned.rules},
    }


def main(arguments: list[str] | None = None) -> int:
    """Measure, print the means and write FILE."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--budget", type=float, default=0.15, help="part of the MACs that may stay")
    parser.add_argument("--quick", action="store_true", help="few epochs; the figures mean nothing")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    settings = accuracy.Settings()
    if options.quick:
        settings = accuracy.quick_settings(settings)
    rows = []
    for seed in range(options.seeds):
        rows.append(run_seed(seed, options.budget, settings))
        study = {"budget": options.budget, "rows": rows, "device": accuracy.device_facts()}
        options.json.write_text(json.dumps(study, indent=1))
        for key in ("before_retraining", "test"):
            gains = [r["planned"][key] - r["uniform"][key] for r in rows]
            mean, std = mean_std(gains)
            print(f"{len(rows)} seeds, {key}: planned - uniform {mean:+.2f} ± {std:.2f} points")
    return 0


if __name__ == "__main__":
    sys.exit(main())
