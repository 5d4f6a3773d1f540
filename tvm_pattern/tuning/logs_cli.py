"""``tvm-pattern logs``: merge, best, check."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

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
    from topi_kernels.task import task_from_dict

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
        task = task_from_dict(record.task)
        table.add_row(
            task.label,
            f"{task.density:.1%}",
            f"{record.seconds * 1e3:.3f}",
            f"{task.effective_flops / record.seconds / 1e9:.1f}",
            str(record.num_threads),
            record.device,
        )
    Console(width=140).print(table)


def _read(logs: list[Path]) -> list[dict[str, Any]]:
    """Of each log: records, those of failed trials, stale ones by their reason, bad lines."""
    from .lookup import why_unusable
    from .records import TuningLog

    found = []
    for path in logs:
        records, bad = TuningLog(path).read()
        stale = Counter(reason for r in records if r.ok and (reason := why_unusable(r)))
        found.append(
            {
                "log": str(path),
                "records": len(records),
                "failed": sum(not r.ok for r in records),
                "stale": dict(stale.most_common()),
                "bad_lines": [str(line) for line in bad],
            }
        )
    return found


def _print_logs(found: list[dict[str, Any]]) -> None:
    for log in found:
        typer.echo(
            f"{log['log']}: {log['records']} records, {log['failed']} of failed trials,"
            f" {sum(log['stale'].values())} stale, {len(log['bad_lines'])} bad lines"
        )
        for line in log["bad_lines"]:
            typer.echo(f"  {line}")
        for reason, count in log["stale"].items():
            typer.echo(f"  {count} stale, compile passes them over: {reason}")


def _served(
    tags: list[str], network: list[str] | None, group: list[int] | None
) -> Iterator[dict[str, Any]]:
    """For each shipped log, network and number of filters that share: layers by their state."""
    from relay_passes.targets import resolve

    from .lookup import config_lookup
    from .shipped import GROUPS, coverage, network_tasks, networks

    resolved = [resolve(tag) for tag in tags]
    lookups = [config_lookup(None, t) for t in resolved]
    for chosen in networks(network):
        for filters in group or GROUPS:
            found = network_tasks(chosen, filters, resolved)
            for tag, lookup, tasks in zip(tags, lookups, found, strict=True):
                rows = coverage(tasks, lookup)
                yield {
                    "target": tag,
                    "network": chosen.name,
                    "group": filters,
                    "layers": dict(sorted(Counter(row.state for row in rows).items())),
                    "not_served": [
                        {
                            "state": row.state,
                            "task": row.weighted.task.label,
                            "reasons": list(row.reasons),
                        }
                        for row in rows
                        if not row.served
                    ],
                }


def _print_served(found: dict[str, Any]) -> None:
    count = sum(found["layers"].values())
    text = ", ".join(f"{n} {state}" for state, n in found["layers"].items())
    typer.echo(
        f"{found['target']} {found['network']} group {found['group']}: {count} layers: {text}"
    )
    for row in found["not_served"]:
        why = f": {row['reasons'][0]}" if row["reasons"] else ""
        typer.echo(f"  {row['state']} {row['task']}{why}")


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
    json_output: Json = False,
) -> None:
    """Name lines that cannot be read and records that are stale.

    Without logs: also whether the shipped ones serve every layer of the networks they are for,
    which takes a minute. Exit code 1 if lines are damaged or layers are not served.

    Example: tvm-pattern logs check net.jsonl
    """
    from relay_passes.targets import resolve
    from topi_kernels.devices import DEVICES

    from .lookup import shipped_logs
    from .shipped import TARGETS

    tags = target or list(TARGETS)
    paths = logs or [path for tag in tags for path in shipped_logs(DEVICES.of(resolve(tag)).name)]
    read = _read(paths)
    if not json_output:
        _print_logs(read)
    served = []
    for row in () if logs else _served(tags, network, group):
        served.append(row)
        if not json_output:
            _print_served(row)
    if json_output:
        print(json.dumps({"logs": read, "served": served}, indent=1))
    if any(log["bad_lines"] for log in read) or any(row["not_served"] for row in served):
        raise typer.Exit(1)
