"""``tvm-pattern logs``: merge, best, check."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Work with tuning logs.")

Logs = Annotated[list[Path], typer.Argument(help="Tuning logs.")]
Output = Annotated[Path, typer.Option("--output", "-o", help="Log to write.")]
SkipBad = Annotated[bool, typer.Option(help="Leave out lines that cannot be read.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


@app.command()
def merge(logs: Logs, output: Output, skip_bad: SkipBad = False) -> None:
    """Write all records of several logs into one, each once."""
    from .records import TuningLog, merge

    records = merge(TuningLog(path).records(skip_bad) for path in logs)
    count = TuningLog(output).write(records)
    typer.echo(f"{count} records in {output}")


@app.command()
def best(
    logs: Logs,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Log to write.")] = None,
    keep: Annotated[int, typer.Option(min=1, help="Records to keep per task.")] = 1,
    skip_bad: SkipBad = False,
    json_output: Json = False,
) -> None:
    """Keep the fastest configurations of each task, device and number of threads."""
    from relay_passes.conv_task import ConvTask

    from .records import TuningLog, best_records

    records = best_records([r for path in logs for r in TuningLog(path).records(skip_bad)], keep)
    if output is not None:
        TuningLog(output).write(records)
    if json_output:
        rows = [
            {"task": r.task_key, "seconds": r.seconds, "device": r.device, "config": r.config}
            for r in records
        ]
        print(json.dumps(rows, indent=1))
        return
    table = Table(title="Fastest configurations")
    for name in ("task", "density", "ms", "effective GFLOP/s", "threads", "device"):
        table.add_column(name)
    for record in records:
        task = ConvTask.from_dict(record.task)
        table.add_row(
            task.label,
            f"{task.density:.1%}",
            f"{record.seconds * 1e3:.3f}",
            f"{task.effective_flops / record.seconds / 1e9:.1f}",
            str(record.num_threads),
            record.device,
        )
    Console(width=140).print(table)


@app.command()
def check(logs: Logs) -> None:
    """Name the lines that cannot be read. Exit code 1 if there are any."""
    from .records import TuningLog

    damaged = 0
    for path in logs:
        records, bad = TuningLog(path).read()
        failed = sum(not r.ok for r in records)
        typer.echo(
            f"{path}: {len(records)} records, {failed} of failed trials, {len(bad)} bad lines"
        )
        for line in bad:
            typer.echo(f"  {line}")
        damaged += len(bad)
    if damaged:
        raise typer.Exit(1)
