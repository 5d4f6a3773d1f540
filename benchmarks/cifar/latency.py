"""Latency of the study's networks as this project compiles them, on this machine's CPU.

``python -m benchmarks.cifar.latency --json FILE``: networks pruned to the study's rates, and dense
ones of uniformly smaller widths, timed in turns in one process. The table tells how narrow a
network must be to be as fast as a pruned one, which is what filter pruning is compared at.

One thread, by its processor time, which other programs on the machine lengthen little. Weights are
untrained: what is measured depends on the number of kernels and on their patterns.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import tvm_pattern as tp
from benchmarks import device
from benchmarks.harness import Budget, Timing, interleave
from tvm_pattern.pruning import oneshot

from .networks import NETWORKS, Layout, Network, to_plain
from .rows import PATTERN_RATE, connectivity, thin

WORST = 1e-3
"""Largest error against torch, as a part of the largest logit."""

THREADS = 1  # the processor time of more says nothing about their latency
COMMAND = "python -m benchmarks.cifar.latency --json FILE"
WARM_UP = "two untimed calls of every network, and one before every turn of more than one call"
PATTERNS = ((PATTERN_RATE, 1), (4.0, 1), (8.0, 1), (12.0, 1), (8.0, 2), (8.0, 4), (8.0, 8))
STEPS = {
    "resnet20": (4, 5, 6, 7, 8, 9, 10, 11, 12, 14),
    "vgg": (4, 5, 5.5, 6, 6.5, 7, 8, 9, 9.5, 10, 11, 12, 14),
}
"""Sixteenths of the widths; finer where the wider network allows it and a pruned one is near."""


@dataclass(frozen=True)
class Variant:
    """One network to time: pruned (``rate``, ``group``) or of ``fraction`` of the widths."""

    network: str
    rate: float | None = None
    group: int | None = None
    fraction: float | None = None

    @property
    def name(self) -> str:
        if self.rate is None:
            return f"{self.network} width {self.fraction:g}"
        return f"{self.network} {self.rate:g}x F={self.group}"

    def file(self, folder: Path, threads: int) -> Path:
        """Where its compiled library is kept."""
        return folder / f"{self.name.replace(' ', '-')}-{threads}.so"

    def model(self, seed: int = 0) -> nn.Module:
        """Untrained module, pruned at once where asked."""
        if self.rate is None:
            return plain(thin(self.network, self.fraction or 1.0), seed)
        described = NETWORKS[self.network]()
        model = plain(described, seed)
        rate, group = connectivity(described, self.rate), self.group or 1
        oneshot(model, rate, group, "fixed8", first="skip")
        return model


def plain(described: Network, seed: int) -> nn.Module:
    """Module with initial weights and statistics at rest."""
    layout = Layout(described)
    still = torch.zeros(layout.statistics_size)
    return to_plain(layout, layout.initialise(seed), still, torch.ones_like(still))


def variants(network: str, quick: bool = False) -> list[Variant]:
    """All of a network; the first one is dense and of full width."""
    dense = Variant(network, fraction=1.0)
    if quick:
        return [dense, Variant(network, 8.0, 1), Variant(network, fraction=0.5)]
    narrow = [Variant(network, fraction=s / 16) for s in STEPS[network]]
    return [dense, *(Variant(network, rate, group) for rate, group in PATTERNS), *narrow]


def build(variant: Variant, threads: int, folder: Path) -> Callable[[], object]:
    """Compiled network as a call; its library is kept in ``folder`` and taken from there.

    Raises
    ------
    RuntimeError
        If its output is not torch's.
    """
    model = variant.model()
    image = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        reference = model(image).numpy()
    path = variant.file(folder, threads)
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        built = tp.compile(
            model, (image,), target="pattern/native", num_threads=threads, verify=False
        )
        built.export(str(path))
    library, numbers = tp.load(str(path)), image.numpy()
    output = np.asarray(library(numbers))
    error = float(np.abs(output - reference).max() / np.abs(reference).max())
    if not error <= WORST:
        raise RuntimeError(
            f"{variant.name} differs from torch by {error:.2g} of the largest logit, expected at"
            f" most {WORST}; it is not timed. Remove {path} if it is of an older build"
        )
    return lambda: library(numbers)


def ratios(mine: list[float], dense: list[float], rounds: int) -> np.ndarray:
    """Best call of each round over the best one of the dense network in the same round.

    Parameters
    ----------
    mine, dense : list of float
        Samples in the order taken, a whole number of calls per round.
    """
    best = [np.reshape(samples, (rounds, -1)).min(1) for samples in (mine, dense)]
    return best[0] / best[1]


def entry(timing: Timing, dense: Timing, rounds: int) -> dict[str, Any]:
    """Figures of one network; ``ratio`` is the median over rounds, beside its quartiles."""
    found = ratios(timing.samples_ms, dense.samples_ms, rounds)
    low, middle, high = np.percentile(found, (25, 50, 75))
    p10, median, p90 = np.percentile(timing.samples_ms, (10, 50, 90))
    return {
        "ratio": round(float(middle), 4),
        "ratio_quartiles": [round(float(low), 4), round(float(high), 4)],
        "milliseconds": round(float(median), 4),
        "p10_ms": round(float(p10), 4),
        "p90_ms": round(float(p90), 4),
        "min_ms": round(min(timing.samples_ms), 4),
        "runs": len(timing.samples_ms),
        "rounds": rounds,
    }


def compiled(every: list[Variant], threads: int, folder: Path) -> dict[str, Callable[[], object]]:
    """Calls by the variants' names."""
    calls = {}
    for variant in every:
        calls[variant.name] = build(variant, threads, folder)
        print(f"{variant.name} compiled", flush=True)
    return calls


def measure(
    every: list[Variant], calls: dict[str, Callable[[], object]], budget: Budget
) -> dict[str, Any]:
    """Time all variants of a network, the dense one of full width first."""
    rounds = 0

    def count() -> None:
        nonlocal rounds
        rounds += 1

    timings = interleave(calls, budget, each_round=count, clock=time.process_time)
    table: dict[str, Any] = {"pattern": [], "thin": []}
    for variant in every:
        figures = entry(timings[variant.name], timings[every[0].name], rounds)
        print(f"{variant.name}: {figures['ratio']:.3f} of dense", flush=True)
        if variant.rate is None:
            table["thin"].append({"fraction": variant.fraction, **figures})
        else:
            table["pattern"].append({"rate": variant.rate, "group": variant.group, **figures})
    return table


def main(values: list[str] | None = None) -> int:
    """Write the table."""
    parser = argparse.ArgumentParser(prog="benchmarks.cifar.latency")
    parser.add_argument("--json", type=Path, required=True, help="table to write")
    parser.add_argument("--seconds", type=float, default=60.0, help="of processor time per network")
    parser.add_argument("--network", action="append", choices=list(NETWORKS), help="default: all")
    parser.add_argument("--quick", action="store_true", help="three variants, no time")
    parser.add_argument("--libraries", type=Path, help="folder that keeps what was compiled")
    parser.add_argument("--compile-only", action="store_true", help="fill --libraries and stop")
    options = parser.parse_args(values)
    if options.compile_only and options.libraries is None:
        parser.error("--compile-only needs --libraries: the folder to fill")
    try:
        cores = device.pin(THREADS)
    except ValueError as error:
        parser.error(str(error))
    seconds = 0.5 if options.quick else options.seconds
    budget = Budget(seconds, min_rounds=3 if options.quick else 30)
    networks = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.libraries or Path(temporary)
        for network in options.network or list(NETWORKS):
            every = variants(network, options.quick)
            calls = compiled(every, THREADS, folder)
            if not options.compile_only:
                networks[network] = measure(every, calls, budget)
    if options.compile_only:
        return 0
    table = {
        "device": device.describe(THREADS, cores, {}) | {"command": COMMAND},
        "clock": "processor time of one thread",
        "warm_up": WARM_UP,
        "batch": 1,
        "networks": networks,
    }
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(table, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
