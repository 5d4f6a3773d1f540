"""One run at a time in a place: a lock that says who holds it and ends with its process.

The lock is the kernel's (``flock``), so that a process that dies, by whatever signal, leaves none
behind; the file beside the place only tells others who it is. Reading needs no lock.

On NFS ``flock`` holds between hosts from Linux 2.6.12 on, if the server's lock service runs; where
it does not, the file system refuses the lock and the run goes on with a warning.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import socket
import time
from collections.abc import Iterator
from importlib import import_module, util
from pathlib import Path
from typing import Any

# Windows has none.
fcntl: Any = import_module("fcntl") if util.find_spec("fcntl") else None

logger = logging.getLogger(__name__)

_HELD = (errno.EACCES, errno.EAGAIN)
_UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


class LockError(RuntimeError):
    """Someone else is at work in the same place."""


def lock_path(place: Path) -> Path:
    """The lock file of a file, beside it, or of a folder, in it."""
    return place / ".lock" if place.is_dir() else place.with_name(f".{place.name}.lock")


def _holder(file: int) -> str:
    """Who holds a lock, as its file says."""
    try:
        data = json.loads(os.pread(file, 4096, 0))
        return f"process {data['pid']} on {data['host']} since {data['since']}"
    except (ValueError, KeyError, TypeError):
        return "another process"


@contextlib.contextmanager
def locked(place: str | os.PathLike, work: str) -> Iterator[None]:
    """Hold the lock of a file or folder.

    Parameters
    ----------
    place : str or os.PathLike
        A folder that exists, or a file that need not.
    work : str
        What is done there, for the error of others: "tuning into".

    Raises
    ------
    LockError
        If another run holds it; it says who and since when.
    """
    path = lock_path(Path(place))
    if fcntl is None:
        logger.warning("no locks on this system: two runs in %s are not noticed", place)
        yield
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise LockError(f"cannot lock {place}: {error.strerror}; check the path") from error
    try:
        _take(file, place, work)
        yield
    finally:
        # The file stays: removing it would let a third run lock a new one beside a waiting second.
        os.close(file)


@contextlib.contextmanager
def locked_folder(folder: str | os.PathLike, work: str) -> Iterator[None]:
    """As :func:`locked` for a folder that is made if it is missing."""
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise LockError(f"cannot make {folder}: {error.strerror}; check the path") from error
    with locked(folder, work):
        yield


def _take(file: int, place: str | os.PathLike, work: str) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _HELD:
            raise LockError(
                f"{_holder(file)} is {work} {place}; wait for its end, or choose another place"
            ) from error
        if error.errno not in _UNSUPPORTED:
            raise LockError(f"cannot lock {place}: {error.strerror}; check the path") from error
        logger.warning(
            "the file system of %s takes no locks: two runs there are not noticed", place
        )
        return
    holder = {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "since": time.strftime("%Y-%m-%d %H:%M:%S"),
    }
    with contextlib.suppress(OSError):  # A full disk: the lock holds, only its words are missing.
        os.ftruncate(file, 0)
        os.pwrite(file, json.dumps(holder).encode(), 0)
