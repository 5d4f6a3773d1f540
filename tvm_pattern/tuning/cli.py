"""``tvm-pattern tune``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.live import Live
from rich.table import Table

app = typer.Typer(add_completion=False)

_LOGS = Path("tuning_logs")


def default_log(target: str, model: str) -> Path:
    """``tuning_logs/<target>/<model>.jsonl``, from the tag's last part and the model's stem."""
    return _LOGS / target.rsplit("/", 1)[-1] / f"{Path(model.replace(':', '.')).stem}.jsonl"


def progress_table(progress: Any) -> Table:
    """The state of a search as a table."""
    state = progress.current
    task = state.weighted.task
    best = state.best_seconds
    gflops = task.effective_flops / best / 1e9 if best < float("inf") else 0.0
    table = Table(show_header=False, box=None)
    rows = {
        "task": f"{task.label} ({state.weighted.count} x), {state.trials} of {len(state.space)}",
        "best": f"{best * 1e3:.3f} ms, {gflops:.1f} effective GFLOP/s",
        "trials": f"{progress.trials} of {progress.total_trials}, {progress.failed} failed",
        "network": f"{progress.network_seconds * 1e3:.2f} ms in tuned convolutions",
        "time": f"{progress.seconds:.0f} s, about {progress.eta_seconds:.0f} s to go",
    }
    for name, value in rows.items():
        table.add_row(name, value)
    return table


@app.command()
def tune(
    model: Annotated[str, typer.Option(help="As for the command compile.")],
    target: Annotated[str, typer.Option(help="See the command targets.")] = "pattern/native",
    shape: Annotated[list[str] | None, typer.Option(help="Input shape, 1x3x224x224.")] = None,
    weights: Annotated[Path | None, typer.Option(help="Pruned weights (.safetensors).")] = None,
    connectivity: Annotated[
        float | None, typer.Option(help="Prune at once, without training, to this rate.")
    ] = None,
    connectivity_1x1: Annotated[float, typer.Option(help="The same for 1x1 kernels.")] = 1.0,
    group: Annotated[int, typer.Option(help="Filters sharing kernels, with --connectivity.")] = 1,
    log: Annotated[
        Path | None, typer.Option(help="Default: tuning_logs/TARGET/MODEL.jsonl")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the log.")] = False,
    tuner: Annotated[str, typer.Option(help="xgb, random, grid or genetic.")] = "xgb",
    trials: Annotated[int, typer.Option(min=1, help="Measurements over all layers.")] = 1000,
    batch: Annotated[int, typer.Option(min=1, help="Measurements per round.")] = 16,
    early_stop: Annotated[int, typer.Option(help="Trials of a layer without gain.")] = 150,
    seed: Annotated[int, typer.Option(help="Of the tuner.")] = 0,
    warm_start: Annotated[list[Path] | None, typer.Option(help="Logs to learn from.")] = None,
    threads: Annotated[int | None, typer.Option(help="Threads to tune for.")] = None,
    tracker: Annotated[str | None, typer.Option(help="HOST:PORT of an RPC tracker.")] = None,
    key: Annotated[str | None, typer.Option(help="Key of the devices.")] = None,
    min_repeat_ms: Annotated[int, typer.Option(help="Milliseconds of a repeat.")] = 10,
    repeat: Annotated[int, typer.Option(min=1, help="Repeats.")] = 8,
    run_timeout: Annotated[float, typer.Option(help="Seconds for one candidate.")] = 60.0,
    cooldown: Annotated[float, typer.Option(help="Seconds of rest per candidate.")] = 0.0,
    clock: Annotated[str, typer.Option(help="wall, or cpu on a shared machine.")] = "wall",
    cpu: Annotated[int | None, typer.Option(help="Core to measure on.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Save the search curves.")] = None,
) -> None:
    """Tune a model's convolutions by measuring, here or on devices over RPC."""
    from ..cli import _examples
    from ..sources import open_model
    from .measure import MeasureOptions
    from .plots import plot_search
    from .session import TuneOptions
    from .session import tune as run

    console = Console()
    measure = MeasureOptions(
        run_timeout=run_timeout,
        repeat=repeat,
        min_repeat_ms=min_repeat_ms,
        cooldown=cooldown,
        clock=clock,
        tracker=tracker,
        key=key,
        cpu=cpu,
    )
    options = TuneOptions(
        trials=trials,
        tuner=tuner,
        batch=batch,
        early_stop=early_stop or None,
        seed=seed,
        warm_start=tuple(warm_start or ()),
        resume=resume,
        measure=measure,
    )
    opened = open_model(model, weights)
    if connectivity is not None:
        from ..pruning import oneshot

        oneshot(opened, connectivity=connectivity, connectivity_1x1=connectivity_1x1, group=group)
    path = log or default_log(target, model)
    with Live(console=console, auto_refresh=False) as live:
        result = run(
            opened,
            _examples(shape),
            target,
            path,
            options,
            threads,
            lambda progress: live.update(progress_table(progress), refresh=True),
        )
    before, after = result.default_seconds, result.network_seconds
    console.print(
        f"{result.trials} trials ({result.failed} failed) in {result.seconds:.0f} s,"
        f" {result.overhead:.0%} of it not measuring; tuned convolutions {before * 1e3:.2f} ms at"
        f" level 0, {after * 1e3:.2f} ms now",
        soft_wrap=True,
    )
    console.print(f"records in {result.log}; use them by --tuning-log", soft_wrap=True)
    if plot is not None:
        plot_search(plot, result.states)
