"""``with apply_history_best(log):`` around ``relay.build``."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

_LOG: ContextVar[str | os.PathLike[str] | None] = ContextVar("tuning_log", default=None)


@contextmanager
def apply_history_best(records: str | os.PathLike[str]) -> Iterator[None]:
    """Let every ``relay.build`` inside use the best records of a log.

    Parameters
    ----------
    records : str or os.PathLike
        Log of :func:`tvm_pattern.autotvm.callback.log_to_file`.

    Raises
    ------
    ValueError
        If there is no such file.
    """
    if not Path(records).is_file():
        raise ValueError(f"no such tuning log: {records}; expected one written by log_to_file")
    token = _LOG.set(records)
    try:
        yield
    finally:
        _LOG.reset(token)


def current_log() -> str | os.PathLike[str] | None:
    """The log of the innermost :func:`apply_history_best`."""
    return _LOG.get()
