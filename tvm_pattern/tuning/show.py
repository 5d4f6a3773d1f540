"""A search as people see it: live progress, and what came out."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table

from ..terminal import is_quiet
from .plots import check_plot_path, plot_search
from .scheduler import NetworkEstimate
from .session import Plan, Progress, TuneOptions, TuneResult, tune

# Layers of a task that the plan names.
_NAMED = 3


def _network(network: NetworkEstimate, tasks: int) -> str:
    text = f"{network.seconds * 1e3:.2f} ms in tuned convolutions"
    if not network.estimated:
        return text
    return f"about {text}, {network.estimated} of {tasks} layers estimated"


def _rows(progress: Progress) -> dict[str, str]:
    state = progress.current
    task, best = state.weighted.task, "none worked so far"
    if state.measured:
        gflops = task.effective_flops / state.best_seconds / 1e9
        best = f"{state.best_seconds * 1e3:.3f} ms, {gflops:.1f} effective GFLOP/s"
    return {
        "task": f"{task.label} ({state.weighted.count} x), {state.trials} of {len(state.space)}",
        "structure": f"{task.structure}, up to {task.max_group} filters share; known from"
        f" {state.weighted.source}",
        "best": best,
        "trials": f"{progress.trials} of {progress.total_trials}, {progress.failed} failed",
        "network": _network(progress.network, len(progress.states)),
        "time": f"{progress.seconds:.0f} s, about {progress.eta_seconds:.0f} s to go",
    }


def progress_table(progress: Progress) -> Table:
    """The state of a search as a table."""
    table = Table(show_header=False, box=None)
    for name, value in _rows(progress).items():
        table.add_row(name, value)
    return table


def plan_lines(plan: Plan) -> list[str]:
    """What is about to be tuned, a line per task, and about how long that takes."""
    lines = []
    for state in plan.states:
        layers = state.weighted.layers
        more = f" and {len(layers) - _NAMED} more" if len(layers) > _NAMED else ""
        lines.append(
            f"{state.weighted.task.label:28} x{len(layers):<2} {len(state.space):5} configs:"
            f" {', '.join(layers[:_NAMED])}{more}"
        )
    spaces = sum(len(state.space) for state in plan.states)
    on = f" on {plan.devices} devices" if plan.devices > 1 else ""
    return [
        *lines,
        f"{len(plan.states)} tasks, {plan.trials} trials of {spaces} configs{on}: about"
        f" {_duration(plan.seconds)}; {plan.sensible_trials} trials are sensible here (--trials)",
    ]


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def summary(result: TuneResult) -> list[str]:
    """Level 0 against the best found, a line per task and one of the sums."""
    lines = []
    for state in result.states:
        found = "none worked" if state.trials else "left at level 0"
        if state.measured:
            before, after = state.default_seconds, state.best_seconds
            gain = f"{before / after - 1:+.1%}" if before < float("inf") else "level 0 failed"
            found = f"level 0 {before * 1e3:.3f} ms, best {after * 1e3:.3f} ms ({gain})"
        lines.append(
            f"{state.weighted.task.label:28} x{state.weighted.count:<2} {state.trials:4} of"
            f" {len(state.space)} tried: {found}"
        )
    network = result.network
    about = f", {network.estimated} layers estimated" if network.estimated else ""
    before, after = network.default_seconds, network.seconds
    return [
        *lines,
        f"tuned convolutions: {before * 1e3:.2f} ms at level 0, {after * 1e3:.2f} ms now"
        f" ({before / after - 1:+.1%}){about}; {result.trials} trials, {result.failed} failed,"
        f" {result.overhead:.1%} of {result.seconds:.0f} s was not measuring",
    ]


def tune_shown(
    model: Any,
    example_inputs: Any,
    target: Any,
    log: Path,
    options: TuneOptions,
    num_threads: int | None = None,
    plot: Path | None = None,
    *,
    json_output: bool = False,
    interleaved_lanes: bool | None = None,
) -> TuneResult:
    """:func:`tvm_pattern.tune` with live progress, a summary and, if wanted, search curves.

    Where there is no terminal, every batch becomes a line. With ``json_output`` all of that goes to
    standard error, and the figures to standard output.
    """
    if plot is not None:
        check_plot_path(plot)
    console = Console(soft_wrap=True, highlight=False, stderr=json_output)
    progress = Console(soft_wrap=True, highlight=False, stderr=json_output, quiet=is_quiet())

    def show_plan(plan: Plan) -> None:
        for line in plan_lines(plan):
            progress.print(line, markup=False)

    def run(callback: Callable[[Progress], None]) -> TuneResult:
        return tune(
            model,
            example_inputs,
            target,
            log,
            options,
            num_threads,
            callback,
            interleaved_lanes=interleaved_lanes,
            on_plan=show_plan,
        )

    if console.is_terminal and not is_quiet():
        with Live(console=console, auto_refresh=False) as live:

            def update(progress: Progress) -> None:
                live.update(progress_table(progress), refresh=True)

            result = run(update)
    else:

        def write(state: Progress) -> None:
            progress.print("; ".join(_rows(state).values()))

        result = run(write)
    for line in summary(result):
        console.print(line)
    console.print(f"records in {result.log}; use them by --tuning-log")
    if plot is not None:
        plot_search(plot, result.states)
    if json_output:
        print(json.dumps(_figures(result), indent=1))
    return result


def _figures(result: TuneResult) -> dict[str, Any]:
    return {
        "log": str(result.log),
        "trials": result.trials,
        "failed": result.failed,
        "seconds": result.seconds,
        "level_0_ms": result.network.default_seconds * 1e3,
        "tuned_ms": result.network.seconds * 1e3,
        "layers_estimated": result.network.estimated,
    }
