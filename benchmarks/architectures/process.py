"""A row in a process of its own, which may crash, run for ever or ask for all memory."""

from __future__ import annotations

import functools
import multiprocessing
import resource
import warnings
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from .row import ERRORS, first_line, row_of
from .zoo import Architecture


def row_in_process(
    architecture: Architecture,
    size: int,
    rounds: int,
    seconds: int,
    memory_gb: int,
    keep: Path | None = None,
) -> dict[str, Any]:
    """The row of an architecture, from a process of its own with its limits."""
    failed = {"key": architecture.key, "size": architecture.size(size)}
    receiver, sender = _context().Pipe(duplex=False)
    arguments = (architecture, size, rounds, memory_gb << 30, keep, sender)
    process = _context().Process(target=_send_row, args=arguments)
    process.start()
    sender.close()
    try:
        if not receiver.poll(seconds):
            return {**failed, "error": f"stopped after {seconds} s"}
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
    context.set_forkserver_preload(
        ["torch", "onnx", "onnxruntime", "tvm_pattern", "benchmarks.architectures.preloaded"]
    )
    return context


def _send_row(
    architecture: Architecture,
    size: int,
    rounds: int,
    memory: int,
    keep: Path | None,
    sender: Connection,
) -> None:
    """In the process of a row: its figures, or what stopped it, to ``sender``."""
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    warnings.simplefilter("ignore")
    try:
        row = row_of(architecture, size, rounds, keep)
    except (*ERRORS, ImportError, MemoryError) as error:
        row = {"key": architecture.key, "size": architecture.size(size)}
        row["error"] = f"{type(error).__name__}: {first_line(error)}"
    sender.send(row)
