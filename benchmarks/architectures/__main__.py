"""``python -m benchmarks.architectures``: the table of public architectures, one process a row.

Rows are appended to a file as they come; what is there already is not run again, so a run that was
stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from .page import PAGE, render
from .process import row_in_process
from .row import CONNECTIVITY, time_kept
from .zoo import SIZE, ZOO, Architecture

RESULTS = Path(__file__).resolve().parents[1] / "results" / "architectures.jsonl"


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a file, the last of each architecture; half a line at the end is passed over."""
    rows: dict[str, dict[str, Any]] = {}
    if path.is_file():
        for line in path.read_text().splitlines():
            try:
                row = json.loads(line)
            except json.JSONDecodeError:
                continue
            rows[row["key"]] = row
    return list(rows.values())


def run_missing(
    wanted: Sequence[Architecture],
    path: Path,
    run: Callable[[Architecture], dict[str, Any]],
) -> int:
    """Run what the file does not hold yet, and append each row at once.

    Returns
    -------
    int
        Rows that were run.
    """
    known = {row["key"] for row in read_rows(path)}
    missing = [architecture for architecture in wanted if architecture.key not in known]
    if path.is_file() and missing:
        text = path.read_text()
        if text and not text.endswith("\n"):  # the line of a run that was killed
            path.write_text(text + "\n")
    for architecture in missing:
        row = run(architecture)
        with path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        dense = row.get("dense", {}).get("status", row.get("error", ""))
        print(f"{architecture.key}: {dense}, {row.get('pruned', {}).get('status', '')}", flush=True)
    return len(missing)


def time_missing(
    path: Path,
    keep: Path,
    rounds: int,
    time_of: Callable[[Path, int], dict[str, dict[str, float]]] = time_kept,
) -> int:
    """Time the rows without times of which a folder holds the libraries; each is written at once.

    Returns
    -------
    int
        Rows that were timed.
    """
    timed = 0
    for row in read_rows(path):
        folder = keep / row["key"].replace("/", "-")
        if "p10_ms" in row.get("dense", {}) or not (folder / "input.npy").is_file():
            continue
        for name, times in time_of(folder, rounds).items():
            row.setdefault(name, {}).update(times)
        with path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(f"{row['key']}: {row.get('dense')}, {row.get('pruned')}", flush=True)
        timed += 1
    return timed


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks.architectures", description=__doc__)
    parser.add_argument("--only", default="", help="Regular expression of architectures.")
    parser.add_argument("--size", type=int, default=SIZE, help="Height and width of images.")
    parser.add_argument("--rounds", type=int, default=15, help="Timed runs of each engine.")
    parser.add_argument("--seconds", type=int, default=1800, help="Limit of a row.")
    parser.add_argument("--memory-gb", type=int, default=16, help="Address space of a row.")
    parser.add_argument("--json", type=Path, default=RESULTS, help="File of the rows.")
    parser.add_argument("--keep", type=Path, help="Folder for what is compiled.")
    parser.add_argument(
        "--time", action="store_true", help="Only time what --keep holds, and no row has times of."
    )
    parser.add_argument("--write", action="store_true", help="Write the page, too.")
    parser.add_argument("--note", default="", help="A line for the page.")
    return parser.parse_args()


def main() -> None:
    options = _options()
    wanted = [a for a in ZOO if re.search(options.only, a.key)]

    def run(architecture: Architecture) -> dict[str, Any]:
        keep = None if options.keep is None else options.keep / architecture.key.replace("/", "-")
        if keep is not None:
            keep.mkdir(parents=True, exist_ok=True)
        return row_in_process(
            architecture, options.size, options.rounds, options.seconds, options.memory_gb, keep
        )

    if options.time:
        time_missing(options.json, options.keep, options.rounds)
    else:
        run_missing(wanted, options.json, run)
    if options.write:
        PAGE.write_text(
            render(read_rows(options.json), options.note, options.json.name, CONNECTIVITY)
        )
        print(f"wrote {PAGE}")


if __name__ == "__main__":
    main()
