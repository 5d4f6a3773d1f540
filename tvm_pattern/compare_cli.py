"""``tvm-pattern compare``: arguments to :func:`tvm_pattern.comparison.compare`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from .terminal import Json, escape, open_console, print_json, print_lines

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command("compare")
def compare(
    first: Annotated[Path, typer.Argument(help="A library written by the command compile.")],
    second: Annotated[Path, typer.Argument(help="Another one of the same model.")],
    repeat: Annotated[int, typer.Option(min=2, help="Rounds; each runs both once.")] = 30,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Instead of the compiled numbers.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the random inputs.")] = 0,
    json_output: Json = False,
) -> None:
    """Compare two libraries of one model: their outputs, and their times in turns.

    Example: tvm-pattern compare level0.so tuned.so --repeat 50
    """
    from .artifact import load
    from .comparison import compare as compare_libraries

    libraries = [load(path, num_threads=threads) for path in (first, second)]
    found = compare_libraries(*libraries, repeat=repeat, seed=seed)
    if json_output:
        print_json({**asdict(found), "verdict": found.verdict})
        return
    table = Table(title=f"{repeat} rounds in turns")
    for name in ("library", "min ms", "p50", "p90", "p99"):
        table.add_column(name, justify="left" if name == "library" else "right")
    for path, row in ((first, found.first), (second, found.second)):
        figures = (row[name] for name in ("min_ms", "median_ms", "p90_ms", "p99_ms"))
        table.add_row(escape(str(path)), *(f"{value:.3f}" for value in figures))
    open_console().print(table)
    print_lines(
        f"second / first: {found.ratio:.3f} (p10 {found.ratio_p10:.3f}, p90 {found.ratio_p90:.3f});"
        f" {found.verdict}\noutputs differ by at most {found.max_abs_error:.2e}, the largest is"
        f" {found.scale:.3g}"
    )
