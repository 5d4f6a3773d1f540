"""CPU seconds of compile + export, by stage, with an empty cache of machine code and a filled one.

    python -m benchmarks.compile_time --json benchmarks/results/compile_time.json

Every measurement is a process of its own, on one core, and checks what it compiled, as a user's
does. Networks are pruned as ``workloads.toml`` says, at F = 1. CPU seconds are much the same on a
machine that others use too; what differs between the rounds says how much.
"""

from __future__ import annotations

import compileall
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import torch
import typer

from . import device
from .compile_once import TOTAL
from .ours import pruned
from .results import write_text
from .session import run_main
from .workloads import load_workloads

NETWORKS = ("resnet50", "vgg16")
EMPTY, FILLED = "empty", "filled"


@dataclass(frozen=True)
class Row:
    """One network with one state of the cache.

    ``cpu_seconds`` are medians over the rounds, by stage; ``least`` and ``most`` are of all stages
    together.
    """

    network: str
    cache: str
    rounds: int
    cpu_seconds: dict[str, float]
    least: float
    most: float

    @classmethod
    def of(cls, network: str, cache: str, runs: Sequence[dict[str, float]]) -> Row:
        """From the stages of each round."""
        totals = [run[TOTAL] for run in runs]
        medians = {
            stage: round(statistics.median(run.get(stage, 0.0) for run in runs), 2)
            for stage in runs[0]
        }
        return cls(network, cache, len(runs), medians, round(min(totals), 2), round(max(totals), 2))


def _bytecode() -> None:
    """Translate our own modules, as an installation does, whatever the environment says."""
    root = Path(__file__).parents[1]
    for package in ("topi_kernels", "relay_passes", "tvm_pattern", "benchmarks"):
        compileall.compile_dir(root / package, quiet=1)


def run_once(network: str, weights: Path, folder: Path) -> dict[str, float]:
    """CPU seconds by stage in a new process, whose cache lies in ``folder``.

    Raises
    ------
    RuntimeError
        If the process fails.
    """
    command = [sys.executable, "-m", "benchmarks.compile_once", network, str(weights)]
    done = subprocess.run(
        [*command, str(folder / "network.so")],
        cwd=Path(__file__).parents[1],
        env={**os.environ, "TVM_PATTERN_CACHE": str(folder / "cache")},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no output"])[-1]
        raise RuntimeError(f"{network} in a process of its own: {last}")
    return {str(k): float(v) for k, v in json.loads(done.stdout.splitlines()[-1]).items()}


def measure(network: str, rounds: int) -> Iterator[Row]:
    """A network with an empty cache, and with what that left there."""
    spec = next(spec for spec in load_workloads()[1] if spec.name == network)
    runs: dict[str, list[dict[str, float]]] = {EMPTY: [], FILLED: []}
    with tempfile.TemporaryDirectory() as kept:
        weights = Path(kept) / "weights.pt"
        torch.save(pruned(spec.build(), spec, 1).state_dict(), weights)
        for _ in range(rounds):
            with tempfile.TemporaryDirectory() as folder:
                for state in (EMPTY, FILLED):
                    runs[state].append(run_once(network, weights, Path(folder)))
    for state, found in runs.items():
        yield Row.of(network, state, found)


def line(row: Row) -> str:
    """What is printed of a row."""
    stages = ", ".join(f"{name} {s:.2f}" for name, s in row.cpu_seconds.items() if name != TOTAL)
    total = f"{row.cpu_seconds[TOTAL]:.2f} ({row.least:.2f} to {row.most:.2f})"
    return f"{row.network}, {row.cache} cache: {total} CPU s: {stages}"


def main(
    json_path: Annotated[Path | None, typer.Option("--json", help="Result file.")] = None,
    only: Annotated[str, typer.Option(help="Networks, comma separated.")] = ",".join(NETWORKS),
    rounds: Annotated[int, typer.Option(min=1, help="Of each network.")] = 3,
) -> None:
    """Measure how long networks take to compile."""
    names = only.split(",")
    known = {spec.name for spec in load_workloads()[1]}
    if unknown := sorted(set(names) - known):
        raise ValueError(f"--only {', '.join(unknown)}: expected among {', '.join(sorted(known))}")
    cores = device.pin(1)
    _bytecode()
    rows = []
    for name in names:
        for row in measure(name, rounds):
            rows.append(row)
            typer.echo(line(row))
    if json_path is not None:
        facts = device.describe(1, cores, {})
        data = {"device": facts, "rows": [asdict(row) for row in rows]}
        write_text(json_path, json.dumps(data, indent=1) + "\n")


if __name__ == "__main__":
    run_main(main)
