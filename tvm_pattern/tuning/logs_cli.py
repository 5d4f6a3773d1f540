"""``tvm-pattern logs``: merge, best, check."""

from __future__ import annotations

import json
from collections import Counter
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
def merge(logs: Logs, output: Output, skip_bad: SkipBad = False, json_output: Json = False) -> None:
    """Write all records of several logs into one, each once.

    Example: tvm-pattern logs merge a.jsonl b.jsonl -o all.jsonl
    """
    from .records import TuningLog, merge

    records = merge(TuningLog(path).records(skip_bad=skip_bad) for path in logs)
    count = TuningLog(output).write(records)
    if json_output:
        print(json.dumps({"records": count, "output": str(output)}))
        return
    typer.echo(f"{count} records in {output}")


@app.command()
def best(
    logs: Logs,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Log to write.")] = None,
    keep: Annotated[int, typer.Option(min=1, help="Records to keep per task.")] = 1,
    skip_bad: SkipBad = False,
    json_output: Json = False,
) -> None:
    """Keep the fastest configurations of each task, device and number of threads.

    Example: tvm-pattern logs best all.jsonl -o best.jsonl
    """
    from topi_kernels.conv_task import ConvTask

    from .records import TuningLog, best_records

    records = best_records(
        [r for path in logs for r in TuningLog(path).records(skip_bad=skip_bad)], keep
    )
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


def _read(logs: list[Path]) -> int:
    """Name damaged lines, and count stale records; returns how many lines are damaged."""
    from .lookup import why_unusable
    from .records import TuningLog

    damaged = 0
    for path in logs:
        records, bad = TuningLog(path).read()
        failed = sum(not r.ok for r in records)
        stale = Counter(reason for r in records if r.ok and (reason := why_unusable(r)))
        typer.echo(
            f"{path}: {len(records)} records, {failed} of failed trials, {stale.total()} stale,"
            f" {len(bad)} bad lines"
        )
        for line in bad:
            typer.echo(f"  {line}")
        for reason, count in stale.most_common():
            typer.echo(f"  {count} stale, compile passes them over: {reason}")
        damaged += len(bad)
    return damaged


@app.command()
def check(
    logs: Annotated[
        list[Path] | None, typer.Argument(help="Tuning logs; default: the shipped ones.")
    ] = None,
    target: Annotated[
        list[str] | None, typer.Option(help="Of the shipped logs; default: all.")
    ] = None,
    network: Annotated[
        list[str] | None, typer.Option(help="Which the shipped logs shall serve; default: all.")
    ] = None,
    group: Annotated[list[int] | None, typer.Option(help="Default: 1 and 4.")] = None,
) -> None:
    """Name lines that cannot be read and records that are stale.

    Without logs: also whether the shipped ones serve every layer of the networks they are for,
    which takes a minute. Exit code 1 if lines are damaged or layers are not served.

    Example: tvm-pattern logs check net.jsonl
    """
    if logs:
        if _read(logs):
            raise typer.Exit(1)
        return
    from relay_passes.targets import resolve

    from .lookup import config_lookup, shipped_logs
    from .shipped import GROUPS, TARGETS, coverage, network_tasks, networks

    tags = target or list(TARGETS)
    wrong = sum(_read(shipped_logs(tag.rsplit("/", 1)[-1])) for tag in tags)
    resolved = [resolve(tag) for tag in tags]
    lookups = [config_lookup(None, t) for t in resolved]
    for chosen in networks(network):
        for filters in group or GROUPS:
            found = network_tasks(chosen, filters, resolved)
            for tag, lookup, tasks in zip(tags, lookups, found, strict=True):
                rows = coverage(tasks, lookup)
                states = Counter(row.state for row in rows)
                text = ", ".join(f"{n} {state}" for state, n in sorted(states.items()))
                typer.echo(f"{tag} {chosen.name} group {filters}: {len(rows)} layers: {text}")
                for row in rows:
                    if not row.served:
                        why = f": {row.reasons[0]}" if row.reasons else ""
                        typer.echo(f"  {row.state} {row.weighted.task.label}{why}")
                        wrong += 1
    if wrong:
        raise typer.Exit(1)
