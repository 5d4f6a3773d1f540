"""``tvm-pattern tune``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .. import model_options as options
from ..lanes import Lanes, LanesOption
from ..terminal import escape, message
from . import arguments as args

app = typer.Typer(add_completion=False)

_LOGS = Path("tuning_logs")


def default_log(target: str, model: str) -> Path:
    """``tuning_logs/<target>/<model>.jsonl``, from the tag's last part and the model's stem."""
    return _LOGS / target.rsplit("/", 1)[-1] / f"{Path(model.replace(':', '.')).stem}.jsonl"


@app.command()
def tune(
    model: Annotated[str, typer.Option(help="As for the command compile.")],
    target: options.Target = "pattern/native",
    host: options.Host = None,
    shape: Annotated[list[str] | None, typer.Option(help="Input shape, 1x3x224x224.")] = None,
    weights: options.Weights = None,
    connectivity: options.Connectivity = None,
    connectivity_1x1: options.Connectivity1x1 = None,
    group: options.Group = None,
    lanes: LanesOption = Lanes.AUTO,
    log: Annotated[
        Path | None, typer.Option(help="Default: tuning_logs/TARGET/MODEL.jsonl")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the log.")] = False,
    tuner: args.Tuner = "xgb",
    trials: args.Trials = 1000,
    batch: args.Batch = 8,
    space: args.Width = "default",
    early_stop: args.EarlyStop = 150,
    seed: args.Seed = 0,
    warm_start: args.WarmStart = None,
    threads: args.Threads = None,
    tracker: args.Tracker = None,
    key: args.Key = None,
    min_repeat_ms: args.MinRepeat = 10,
    repeat: args.Repeat = 8,
    run_timeout: args.RunTimeout = 60.0,
    cooldown: args.Cooldown = 0.0,
    clock: args.Clock = "wall",
    cpu: args.Cpu = None,
    plot: args.Plot = None,
    trust: Annotated[
        bool, typer.Option("--trust", help="Let code that a .pt2 file holds run.")
    ] = False,
    json_output: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    """Tune a model's convolutions by measuring, here or on devices over RPC.

    Example: tvm-pattern tune --model resnet50 --shape 1x3x224x224 --connectivity 3.6 --trials 200
    """
    message(f"tuning {escape(model)} for {escape(target)}: opening it")
    from relay_passes.targets import resolve
    from topi_kernels.schedules.config import knobs_of

    from ..deploy.cli import check_place
    from ..sources import examples_of, open_model, pruned_at_once
    from .measure import MeasureOptions
    from .session import TuneOptions
    from .show import tune_shown

    check_place(tracker, key)
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
    settings = TuneOptions(
        trials=trials,
        tuner=tuner,
        batch=batch,
        early_stop=early_stop or None,
        seed=seed,
        warm_start=tuple(warm_start or ()),
        resume=resume,
        extra_knobs=knobs_of(space),
        measure=measure,
    )
    opened = open_model(model, weights, trust=trust)
    opened = pruned_at_once(opened, connectivity, connectivity_1x1, group)
    path = log or default_log(target, model)
    resolved = resolve(target, host)
    examples = examples_of(shape, opened)
    try:
        tune_shown(
            opened,
            examples,
            resolved,
            path,
            settings,
            threads,
            plot,
            json_output=json_output,
            interleaved_lanes=lanes.choice,
        )
    except (KeyboardInterrupt, RuntimeError, OSError):
        if path.exists():
            typer.echo(
                f"what was measured so far is in {path}; the same command with --resume goes on",
                err=True,
            )
        raise
