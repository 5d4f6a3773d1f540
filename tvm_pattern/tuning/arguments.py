"""Command line options that ``tvm-pattern tune`` shares with the tuning scripts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Tuner = Annotated[str, typer.Option(help="xgb, random, grid or genetic.")]
Trials = Annotated[int, typer.Option(min=1, help="Measurements over all layers.")]
Batch = Annotated[int, typer.Option(min=1, help="Measurements per round.")]
Width = Annotated[str, typer.Option(help="Knobs to vary: schedule, default or wide.")]
Seed = Annotated[int, typer.Option(help="Of the tuner.")]
EarlyStop = Annotated[int, typer.Option(min=0, help="Trials of a layer without gain; 0: never.")]
WarmStart = Annotated[list[Path] | None, typer.Option(help="Logs to learn from.")]
Threads = Annotated[int | None, typer.Option(min=1, help="Threads to tune for.")]
Tracker = Annotated[str | None, typer.Option(help="HOST:PORT of an RPC tracker.")]
Key = Annotated[str | None, typer.Option(help="Key of the devices.")]
MinRepeat = Annotated[int, typer.Option(min=0, help="Milliseconds of a repeat.")]
Repeat = Annotated[int, typer.Option(min=1, help="Repeats.")]
RunTimeout = Annotated[float, typer.Option(help="Seconds for one candidate.")]
Cooldown = Annotated[float, typer.Option(min=0, help="Seconds of rest per candidate.")]
Clock = Annotated[str, typer.Option(help="wall, or cpu on a shared machine.")]
Cpu = Annotated[int | None, typer.Option(help="Core to measure on.")]
Plot = Annotated[Path | None, typer.Option(help="Save the search curves.")]
