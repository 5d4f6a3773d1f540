"""Accuracy of linear layers pruned by 1xN blocks, on the digits of the accuracy study.

Run as ``python -m benchmarks.accuracy_linear --json FILE``. A network with two linear layers that
matter (288 -> 256 -> 128) is trained dense; then they alone are pruned, gradually, and retrained.
The dense network gets the same epochs.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tvm_pattern.pruning import PatternConfig, Pruner, Rule

from . import accuracy, digits
from .accuracy_summary import mean_std

CONVOLUTIONS = (16, 16, 0, 32, 32, 0)
RATES = (4.0, 8.0)
GROUPS = (1, 4, 8, 16)


def network() -> nn.Sequential:
    """The convolutions of the study's network, with three linear layers behind them."""
    convolutions = list(digits.network(CONVOLUTIONS).children())[:-3]
    return nn.Sequential(
        *convolutions,
        nn.Flatten(),
        nn.Linear(288, 256),
        nn.ReLU(),
        nn.Linear(256, 128),
        nn.ReLU(),
        nn.Linear(128, 10),
    )


def config_of(rate: float, group: int) -> PatternConfig:
    """Both wide linear layers at a rate, all else dense."""
    return PatternConfig(
        rules=(
            Rule(name="*", skip=True),
            Rule(type="linear", regex="15|17", skip=False, connectivity=rate, group=group),
        )
    )


def retrained(
    dense: nn.Module,
    config: PatternConfig | None,
    data: digits.Digits,
    settings: accuracy.Settings,
    seed: int,
) -> float:
    """Test accuracy after as many epochs again, pruned by ``config`` or dense."""
    model = copy.deepcopy(dense)
    optimizer = accuracy.make_sgd(model, settings)
    generator = torch.Generator().manual_seed(7 + seed)
    constant, lr = (lambda _: settings.lr / 2), accuracy.cosine(settings.lr, settings.epochs)
    steps = settings.gradual_epochs
    if config is None:
        accuracy.train(model, data, settings, optimizer, steps, constant, generator)
        accuracy.train(model, data, settings, optimizer, settings.epochs, lr, generator)
        return digits.accuracy(model, data.test)
    method = {"name": "gradual", "steps": steps}
    pruner = Pruner(model, config, method).attach(optimizer)
    accuracy.train(model, data, settings, optimizer, steps, constant, generator, pruner.step)
    pruner.freeze()
    accuracy.train(model, data, settings, optimizer, settings.epochs, lr, generator)
    pruner.finalize()
    return digits.accuracy(model, data.test)


def run_seed(seed: int, settings: accuracy.Settings) -> dict[str, Any]:
    """Every configuration of one seed: ``rate/group`` -> test accuracy in percent."""
    data = digits.load(seed)
    torch.manual_seed(seed)
    dense = network()
    lr = accuracy.cosine(settings.pretrain_lr, settings.pretrain_epochs)
    optimizer, generator = accuracy.make_sgd(dense, settings), torch.Generator().manual_seed(seed)
    accuracy.train(dense, data, settings, optimizer, settings.pretrain_epochs, lr, generator)
    row: dict[str, Any] = {"seed": seed, "dense": retrained(dense, None, data, settings, seed)}
    for rate in RATES:
        for group in GROUPS:
            config = config_of(rate, group)
            row[f"{rate:g}x/{group}"] = retrained(dense, config, data, settings, seed)
    return row


def main(arguments: list[str] | None = None) -> int:
    """Measure, print mean differences to dense, and write FILE."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="few epochs; the figures mean nothing")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    settings = replace(accuracy.Settings(), pretrain_epochs=10, epochs=8, gradual_epochs=5, lr=0.05)
    if options.quick:
        settings = accuracy.quick_settings(settings)
    rows: list[dict[str, Any]] = []
    for seed in range(options.seeds):
        rows.append(run_seed(seed, settings))
        study = {"rows": rows, "device": accuracy.device_facts()}
        options.json.write_text(json.dumps(study, indent=1))
    for name in (key for key in rows[0] if key not in ("seed", "dense")):
        mean, std = mean_std([row[name] - row["dense"] for row in rows])
        print(f"{len(rows)} seeds, {name}: {mean:+.2f} ± {std:.2f} points against dense")
    return 0


if __name__ == "__main__":
    sys.exit(main())
