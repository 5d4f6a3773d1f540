"""Callbacks of a tuner: records to a file, progress to the terminal."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..tuning.records import TuningLog
from .measure import MeasureInput, MeasureResult

if TYPE_CHECKING:
    from .tuner import Callback


def log_to_file(file_out: str | os.PathLike[str]) -> Callback:
    """Append every measurement to a log."""
    log = TuningLog(file_out)

    def write(_: Any, inputs: Sequence[MeasureInput], __: Sequence[MeasureResult]) -> None:
        for item in inputs:
            log.append(item.record)

    return write


def progress_bar(total: int, prefix: str = "") -> Callback:
    """A line on standard error after every batch: trials, failures, the best so far."""
    done = failed = 0

    def show(tuner: Any, _: Sequence[MeasureInput], results: Sequence[MeasureResult]) -> None:
        nonlocal done, failed
        done += len(results)
        failed += sum(result.error_no for result in results)
        best = tuner.best_seconds * 1e3
        print(
            f"{prefix}{done}/{total} trials, {failed} failed, best {best:.3f} ms,"
            f" {tuner.best_flops / 1e9:.1f} effective GFLOP/s",
            file=sys.stderr,
        )

    return show
