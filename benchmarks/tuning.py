"""Tune a network, compile it with the records, and compare with level 0.

    python -m benchmarks.tuning resnet50 --group 4 --trials 500 --log resnet50.jsonl

Over RPC, add ``--target pattern/cortex-a76 --tracker HOST:PORT --key phone``; the comparison is
then left to the sum of the tuned convolutions, since the library does not run here.
"""

from __future__ import annotations

import os

os.environ.setdefault("TVM_NUM_THREADS", "1")

import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

import tvm_pattern
from topi_kernels.schedules.config import knobs_of
from tvm_pattern import model_options
from tvm_pattern.tuning import arguments as args
from tvm_pattern.tuning.measure import MeasureOptions
from tvm_pattern.tuning.records import TuningLog
from tvm_pattern.tuning.session import TuneOptions
from tvm_pattern.tuning.show import tune_shown

from .ours import pruned
from .workloads import load_workloads


def compare(model: Any, image: Any, target: str, log: Path, threads: int, runs: int) -> None:
    """Interleaved runs of the network at level 0 and with the records, wall clock."""
    empty = log.with_suffix(".level0")
    TuningLog(empty).write([])
    try:
        libraries = {
            name: tvm_pattern.compile(model, image, target, tuning_log=path, num_threads=threads)
            for name, path in (("level 0", empty), ("tuned", log))
        }
    finally:
        empty.unlink()
    times: dict[str, list[float]] = {name: [] for name in libraries}
    for _ in range(runs):
        for name, library in libraries.items():
            start = time.perf_counter()
            library(image)
            times[name].append(time.perf_counter() - start)
    for name, values in times.items():
        low, middle, high = np.quantile(np.array(values[1:]) * 1e3, (0.1, 0.5, 0.9))
        typer.echo(f"{name}: median {middle:.2f} ms (p10 {low:.2f}, p90 {high:.2f})")


def main(
    network: Annotated[str, typer.Argument(help="A network of workloads.toml.")],
    log: Annotated[Path, typer.Option(help="Records; continued if the file exists.")],
    group: Annotated[int, typer.Option(help="Filters that share kernels and patterns.")] = 1,
    target: model_options.Target = "pattern/native",
    trials: args.Trials = 500,
    batch: args.Batch = 8,
    tuner: args.Tuner = "xgb",
    space: args.Width = "default",
    threads: Annotated[int, typer.Option(help="Threads to tune for.")] = 1,
    tracker: args.Tracker = None,
    key: args.Key = None,
    clock: args.Clock = "wall",
    cpu: args.Cpu = None,
    repeat: args.Repeat = 8,
    min_repeat_ms: args.MinRepeat = 10,
    runs: Annotated[int, typer.Option(help="Runs of the comparison; 0: none.")] = 20,
    plot: args.Plot = None,
) -> None:
    """Tune one network."""
    spec = {s.name: s for s in load_workloads()[1]}[network]
    model, image = pruned(spec.build(), spec, group), spec.example()
    options = TuneOptions(
        trials=trials,
        batch=batch,
        tuner=tuner,
        resume=True,
        extra_knobs=knobs_of(space),
        measure=MeasureOptions(
            repeat=repeat,
            min_repeat_ms=min_repeat_ms,
            clock=clock,
            cpu=cpu,
            tracker=tracker,
            key=key,
        ),
    )
    tune_shown(model, image, target, log, options, threads, plot)
    if runs and tracker is None:
        compare(model, image, target, log, threads, runs)


if __name__ == "__main__":
    typer.run(main)
