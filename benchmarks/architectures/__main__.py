"""``python -m benchmarks.architectures``: the table of public architectures, one process a row.

Rows are appended to a file as they come; what is there already is not run again, so a run that was
stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import functools
import json
import multiprocessing
import re
import resource
import warnings
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from .page import PAGE, render
from .row import CONNECTIVITY, ERRORS, first_line, row_of
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


def run_row(architecture: Architecture, options: argparse.Namespace) -> dict[str, Any]:
    """The row of an architecture, from a process of its own with its limits."""
    failed = {"key": architecture.key, "size": architecture.size(options.size)}
    receiver, sender = _context().Pipe(duplex=False)
    arguments = (architecture, options.size, options.rounds, options.memory_gb << 30, sender)
    process = _context().Process(target=_send_row, args=arguments)
    process.start()
    sender.close()
    try:
        if not receiver.poll(options.seconds):
            return {**failed, "error": f"stopped after {options.seconds} s"}
        return receiver.recv()
    except EOFError:
        process.join()
        return {**failed, "error": f"its process ended with {process.exitcode}"}
    finally:
        process.kill()
        process.join()
        receiver.close()


@functools.cache
def _context() -> Any:
    """Processes that begin with the slow imports done."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "onnx", "onnxruntime", "tvm_pattern"])
    return context


def _send_row(
    architecture: Architecture, size: int, rounds: int, memory: int, sender: Connection
) -> None:
    """In the process of a row: its figures, or what stopped it, to ``sender``."""
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    warnings.simplefilter("ignore")
    try:
        row = row_of(architecture, size, rounds)
    except (*ERRORS, ImportError, MemoryError) as error:
        row = {"key": architecture.key, "size": architecture.size(size)}
        row["error"] = f"{type(error).__name__}: {first_line(error)}"
    sender.send(row)


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


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks.architectures", description=__doc__)
    parser.add_argument("--only", default="", help="Regular expression of architectures.")
    parser.add_argument("--size", type=int, default=SIZE, help="Height and width of images.")
    parser.add_argument("--rounds", type=int, default=15, help="Timed runs of each engine.")
    parser.add_argument("--seconds", type=int, default=900, help="Limit of a row.")
    parser.add_argument("--memory-gb", type=int, default=16, help="Address space of a row.")
    parser.add_argument("--json", type=Path, default=RESULTS, help="File of the rows.")
    parser.add_argument("--write", action="store_true", help="Write the page, too.")
    parser.add_argument("--note", default="", help="A line for the page.")
    return parser.parse_args()


def main() -> None:
    options = _options()
    wanted = [a for a in ZOO if re.search(options.only, a.key)]
    run_missing(wanted, options.json, lambda architecture: run_row(architecture, options))
    if options.write:
        PAGE.write_text(
            render(read_rows(options.json), options.note, options.json.name, CONNECTIVITY)
        )
        print(f"wrote {PAGE}")


if __name__ == "__main__":
    main()
