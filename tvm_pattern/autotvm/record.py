"""Records of a log."""

from __future__ import annotations

import os
from collections.abc import Iterator

from ..tuning.records import Record, TuningLog, best_records


def load_from_file(filename: str | os.PathLike[str]) -> Iterator[Record]:
    """The records of a log, for ``tuner.load_history``; raises as :class:`TuningLog`."""
    yield from TuningLog(filename).records()


def pick_best(in_file: str | os.PathLike[str], out_file: str | os.PathLike[str]) -> None:
    """Write the fastest record of each task, device and number of threads."""
    TuningLog(out_file).write(best_records(TuningLog(in_file).records()))
