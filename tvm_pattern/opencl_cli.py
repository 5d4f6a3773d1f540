"""``tvm-pattern opencl``: the OpenCL devices of this computer."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

app = typer.Typer(add_completion=False)


@app.command()
def opencl(
    json_output: Annotated[
        bool, typer.Option("--json", help="Print JSON instead of a table.")
    ] = False,
) -> None:
    """List the OpenCL devices of this computer and what they can do.

    Libraries for pattern/mali and pattern/adreno with --host native run on the first. Exit code 1
    if there is none.

    Example: tvm-pattern opencl --json
    """
    from .opencl.facts import devices, why_none

    found = devices()
    if json_output:
        print(json.dumps([asdict(facts) for facts in found], indent=1))
    elif found:
        console = Console(width=None if sys.stdout.isatty() else 200, highlight=False)
        console.print(_table(found))
    if not found:
        print(why_none(), file=sys.stderr)
        raise typer.Exit(1)


def _table(found: list) -> Table:
    table = Table(title="OpenCL devices")
    names = ("device", "name", "platform", "kind", "float16", "images")
    for name in (*names, "work-group", "local memory", "memory"):
        table.add_column(name)
    for number, facts in enumerate(found):
        table.add_row(
            str(number),
            facts.name,
            facts.platform,
            facts.kind,
            "yes" if facts.float16 else "no",
            f"{facts.image_width}x{facts.image_height}" if facts.images else "no",
            f"{facts.max_work_group} ({'x'.join(map(str, facts.max_work_items))})",
            f"{facts.local_memory >> 10} KiB"
            + (", emulated" if facts.local_memory_kind == "global" else ""),
            f"{facts.global_memory / 2**30:.1f} GiB",
        )
    return table
