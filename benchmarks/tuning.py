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
from tvm_pattern.tuning.measure import MeasureOptions
from tvm_pattern.tuning.plots import plot_search
from tvm_pattern.tuning.records import TuningLog
from tvm_pattern.tuning.session import Progress, TuneOptions, TuneResult

from .ours import pruned
from .workloads import load_workloads


def show(progress: Progress) -> None:
    """One line per batch."""
    state = progress.current
    task = state.weighted.task
    typer.echo(
        f"{progress.trials}/{progress.total_trials} {task.label}: best"
        f" {state.best_seconds * 1e3:.3f} ms"
        f" ({task.effective_flops / state.best_seconds / 1e9:.1f} effective GFLOP/s), network"
        f" {progress.network_seconds * 1e3:.2f} ms, {progress.failed} failed,"
        f" {progress.eta_seconds:.0f} s to go"
    )


def summarise(result: TuneResult) -> None:
    """Level 0 against the best found, per task and in sum."""
    for state in result.states:
        task = state.weighted.task
        gain = state.default_seconds / state.best_seconds - 1
        typer.echo(
            f"{task.label:28} x{state.weighted.count:<2} {state.trials:4} of {len(state.space)}"
            f" tried: level 0 {state.default_seconds * 1e3:.3f} ms, best"
            f" {state.best_seconds * 1e3:.3f} ms ({gain:+.1%})"
        )
    before, after = result.default_seconds, result.network_seconds
    typer.echo(
        f"tuned convolutions: {before * 1e3:.2f} ms at level 0, {after * 1e3:.2f} ms now"
        f" ({before / after - 1:+.1%}); {result.trials} trials, {result.failed} failed,"
        f" {result.overhead:.1%} of {result.seconds:.0f} s was not measuring"
    )


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
    target: Annotated[str, typer.Option(help="Target tag.")] = "pattern/native",
    trials: Annotated[int, typer.Option(help="Measurements in all.")] = 500,
    batch: Annotated[int, typer.Option(help="Measurements per round.")] = 16,
    tuner: Annotated[str, typer.Option(help="xgb, random, grid or genetic.")] = "xgb",
    threads: Annotated[int, typer.Option(help="Threads to tune for.")] = 1,
    tracker: Annotated[str | None, typer.Option(help="HOST:PORT of an RPC tracker.")] = None,
    key: Annotated[str | None, typer.Option(help="Key of the devices.")] = None,
    clock: Annotated[str, typer.Option(help="wall, or cpu on a shared machine.")] = "wall",
    cpu: Annotated[int | None, typer.Option(help="Core to measure on.")] = None,
    repeat: Annotated[int, typer.Option(help="Repeats of a measurement.")] = 8,
    min_repeat_ms: Annotated[int, typer.Option(help="Milliseconds of a repeat.")] = 10,
    runs: Annotated[int, typer.Option(help="Runs of the comparison; 0: none.")] = 20,
    plot: Annotated[Path | None, typer.Option(help="Image of the search curves.")] = None,
) -> None:
    """Tune one network."""
    spec = {s.name: s for s in load_workloads()[1]}[network]
    model, image = pruned(spec.build(), spec, group), spec.example()
    options = TuneOptions(
        trials=trials,
        batch=batch,
        tuner=tuner,
        resume=True,
        measure=MeasureOptions(
            repeat=repeat,
            min_repeat_ms=min_repeat_ms,
            clock=clock,
            cpu=cpu,
            tracker=tracker,
            key=key,
        ),
    )
    result = tvm_pattern.tune(model, image, target, log, options, threads, show)
    summarise(result)
    if plot is not None:
        plot_search(plot, result.states)
    if runs and tracker is None:
        compare(model, image, target, log, threads, runs)


if __name__ == "__main__":
    typer.run(main)
