"""Libraries on devices of a tracker: what ``run --tracker`` and ``bench --tracker`` do."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import typer
from rich.console import Console

from ..random_inputs import random_array


def run_on_devices(
    library: Path,
    tracker: str,
    key: str,
    *,
    inputs: list[Path] | None = None,
    expected: Path | None = None,
    json_output: bool = False,
    seed: int = 0,
    **options: Any,
) -> int:
    """Run ``library`` on all devices of ``key`` and print one row each.

    A library of several sizes has a row for each, on random inputs; given inputs choose one.

    Returns
    -------
    int
        Devices that failed or whose outputs differ from ``expected``.
    """
    from ..artifact import manifest_of
    from .farm import run_everywhere

    manifest = manifest_of(library)
    if inputs:
        batches = [[np.load(path, allow_pickle=False) for path in inputs]]
    else:
        rng = np.random.default_rng(seed)
        batches = [
            [random_array(rng, s["shape"], s["dtype"]) for s in size.inputs]
            for size in manifest.by_size
        ]
    oracle = None
    if expected is not None:
        loaded = np.load(expected, allow_pickle=False)
        oracle = [loaded[name] for name in loaded.files] if hasattr(loaded, "files") else [loaded]
    results = [
        _of_size(row, arrays, len(batches))
        for arrays in batches
        for row in run_everywhere(tracker, key, library, arrays, oracle, **options)
    ]
    print_results(results, json_output)
    return sum(1 for row in results if row.failed)


def bench_on_devices(
    library: Path,
    tracker: str,
    key: str,
    *,
    cluster: str | None,
    threads: int | None,
    **options: Any,
) -> int:
    """As :func:`run_on_devices`, bound to ``threads`` cores of a cluster.

    Raises
    ------
    typer.BadParameter
        If threads are given without a cluster.
    """
    if threads is not None and cluster is None:
        raise typer.BadParameter(
            f"got --threads {threads} without --cluster; a device is bound to big or little cores"
        )
    return run_on_devices(
        library, tracker, key, cluster=cluster, num_threads=threads or 1, **options
    )


def time_here(
    library: Path, *, repeat: int, cool_down: float, threads: int | None, profile: bool
) -> list[Any]:
    """Rows of this machine: ``library`` loaded and timed here at each size, on random inputs."""
    from ..artifact import load

    loaded = load(library, num_threads=threads)
    rng = np.random.default_rng(0)
    rows = []
    for size in loaded.sizes:
        arrays = [random_array(rng, s.shape, s.dtype) for s in size.inputs]
        row = _time_size(size, arrays, repeat, cool_down if profile else None)
        rows.append(_of_size(row, arrays, len(loaded.sizes)))
    return rows


def _time_size(size: Any, arrays: list[np.ndarray], repeat: int, cool_down: float | None) -> Any:
    """The row of one size; with its layers if there is a time to cool down between them."""
    from .device import Timing
    from .farm import DeviceResult

    timing = Timing(tuple(size.benchmark(*arrays, repeat=repeat).results))
    return DeviceResult(
        "this machine",
        timing.median_ms,
        timing.quantile_ms(0.1),
        timing.quantile_ms(0.9),
        profile=None if cool_down is None else size.profile(cool_down=cool_down),
    )


def _of_size(row: Any, arrays: Sequence[np.ndarray], count: int) -> Any:
    """The row of a library of ``count`` sizes, named after the one that was timed."""
    if count == 1:
        return row
    shapes = " ".join("x".join(map(str, array.shape)) for array in arrays)
    return replace(row, device=f"{row.device}, {shapes}")


def print_results(results: Sequence[Any], json_output: bool) -> None:
    """One row per device; below it one row per layer where layers were timed."""
    from ..profiling import profile_text
    from .farm import results_table

    if json_output:
        print(json.dumps([row.as_dict() for row in results], indent=1))
        return
    console = Console(width=None if sys.stdout.isatty() else 200, highlight=False)
    console.print(results_table(results))
    profiles = {row.device: row.profile for row in results if row.profile is not None}
    if profiles:
        print(profile_text(profiles, console.width))


def check_place(tracker: str | None, key: str | None) -> bool:
    """Whether the work is for devices of a tracker.

    Raises
    ------
    typer.BadParameter
        If only one of the two is given.
    """
    if (tracker is None) != (key is None):
        given, missing = ("--tracker", "--key") if key is None else ("--key", "--tracker")
        raise typer.BadParameter(
            f"got {given} without {missing}; give both to use devices, or none for this machine"
        )
    return tracker is not None
