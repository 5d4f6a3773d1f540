"""``tvm-pattern device``: libraries on devices of a tracker."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console

app = typer.Typer(
    no_args_is_help=True, add_completion=False, help="Run libraries on devices over RPC."
)

Tracker = Annotated[str, typer.Option(help="HOST:PORT of the tracker.")]
Key = Annotated[str, typer.Option(help="Key of the devices; all of them are used.")]
Lib = Annotated[Path, typer.Option(help="Library for the devices (.so, its manifest beside it).")]


def run_on_devices(
    library: Path,
    tracker: str,
    key: str,
    *,
    inputs: list[Path] | None = None,
    expected: Path | None = None,
    json_output: bool = False,
    **options: Any,
) -> int:
    """Run ``library`` on all devices of ``key`` and print one row each.

    Returns
    -------
    int
        Devices that failed or whose outputs differ from ``expected``.
    """
    from ..artifact import Manifest, manifest_path
    from .farm import results_table, run_everywhere

    manifest = Manifest.read(manifest_path(library))
    if inputs:
        arrays = [np.load(path, allow_pickle=False) for path in inputs]
    else:
        rng = np.random.default_rng(0)
        arrays = [rng.standard_normal(s["shape"]).astype(s["dtype"]) for s in manifest.inputs]
    oracle = None
    if expected is not None:
        loaded = np.load(expected, allow_pickle=False)
        oracle = [loaded[name] for name in loaded.files] if hasattr(loaded, "files") else [loaded]
    results = run_everywhere(tracker, key, library, arrays, oracle, **options)
    if json_output:
        print(json.dumps([asdict(row) for row in results], indent=1))
    else:
        width = None if sys.stdout.isatty() else 200
        Console(width=width, highlight=False).print(results_table(results))
    return sum(1 for row in results if row.error or row.verified is False)


@app.command()
def run(
    lib: Lib,
    tracker: Tracker,
    key: Key,
    inputs: Annotated[
        list[Path] | None, typer.Option("--input", "-i", help="An .npy file; once per input.")
    ] = None,
    expected: Annotated[
        Path | None, typer.Option(help="Outputs to compare with (.npy or .npz).")
    ] = None,
    json_output: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Run a library once on every device of a key, and verify it if asked to."""
    failed = run_on_devices(
        lib, tracker, key, inputs=inputs, expected=expected, json_output=json_output, repeat=1
    )
    raise typer.Exit(1 if failed else 0)


@app.command()
def bench(
    lib: Lib,
    tracker: Tracker,
    key: Key,
    repeat: Annotated[int, typer.Option(min=1, help="Results per device.")] = 10,
    cool_down: Annotated[float, typer.Option(min=0, help="Seconds of rest before each.")] = 1.0,
    cluster: Annotated[str | None, typer.Option(help="Bind to big or little cores.")] = None,
    threads: Annotated[int, typer.Option(min=1, help="Threads, with --cluster.")] = 1,
    json_output: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Time a library on every device of a key."""
    failed = run_on_devices(
        lib,
        tracker,
        key,
        json_output=json_output,
        repeat=repeat,
        cool_down=cool_down,
        cluster=cluster,
        num_threads=threads,
    )
    raise typer.Exit(1 if failed else 0)
