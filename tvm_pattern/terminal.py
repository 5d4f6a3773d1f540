"""What commands print: tables, lines, messages and JSON."""

from __future__ import annotations

import json
import sys
from typing import Annotated, Any

import typer
from rich.console import Console

Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]


def print_report(console: Console, report: Any, *, by_cost: bool = False) -> None:
    """Table, sums, notes and warning of a report of what became of each convolution."""
    console.print(report.table(console.width, by_cost=by_cost))
    _print_summary(console, report)
    print_lines("\n".join(report.lines()))
    if report.warning:
        message(f"[bold yellow]warning:[/] {escape(report.warning)}")


def print_lines(text: str) -> None:
    """Text as it is: no markup, no folding."""
    if text:
        print(text)


def _print_summary(console: Console, report: Any) -> None:
    dense = sum(row.dense_equivalent_gflop for row in report.rows)
    effective = sum(row.effective_gflop for row in report.rows)
    console.print(
        f"{len(report.taken)} of {len(report.rows)} convolutions taken;"
        f" {dense:.2f} dense-equivalent GFLOP, {effective:.2f} effective GFLOP"
    )


def open_console(file: Any = None) -> Console:
    """For tables, on standard output by default."""
    file = file or sys.stdout
    # Tables that are piped keep their columns instead of folding at 80.
    return Console(file=file, width=None if file.isatty() else 200)


def message(text: str) -> None:
    """A line of markup on standard error."""
    Console(file=sys.stderr, soft_wrap=True).print(text, highlight=False)


def escape(text: str) -> str:
    """Text that is no markup."""
    return text.replace("[", r"\[")


def error_text(error: BaseException) -> str:
    """What an error says, or its kind."""
    if isinstance(error, KeyError) and error.args:
        return str(error.args[0])
    return str(error).strip() or type(error).__name__


def print_json(data: Any) -> None:
    """Data on standard output."""
    print(json.dumps(data, indent=1))
