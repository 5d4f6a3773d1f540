"""Files that appear whole or not at all, whatever stops the writer.

A file is written beside its destination under another name, brought to the disk, and renamed. Who
reads meanwhile, or after a crash, finds the old file or the new one.
"""

from __future__ import annotations

import contextlib
import io
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.figure import Figure

if os.name == "posix":
    import fcntl


@contextlib.contextmanager
def new_file(destination: Path, mode: int = 0o666) -> Iterator[tuple[BinaryIO, Path]]:
    """A file beside ``destination`` to write to and to rename; gone afterwards if it was not.

    Parameters
    ----------
    destination : pathlib.Path
        The file that it will replace.
    mode : int
        Permissions, less the umask.

    Yields
    ------
    tuple of (binary file, pathlib.Path)
        The open file and its name. Call :func:`sync` before renaming it.
    """
    temporary = destination.with_name(f".{destination.name}.{os.getpid()}-{secrets.token_hex(4)}")
    try:
        descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    except OSError as error:  # nobody knows the temporary name
        raise type(error)(error.errno, error.strerror, str(destination)) from None
    try:
        with os.fdopen(descriptor, "w+b") as file:
            yield file, temporary
    finally:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()


def sync(file: BinaryIO) -> None:
    """Bring what was written to ``file`` to the disk."""
    file.flush()
    os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Bring renames in ``folder`` to the disk, where the system can."""
    with _open_folder(folder) as descriptor, contextlib.suppress(OSError):
        os.fsync(descriptor)


@contextlib.contextmanager
def locked_folder(folder: Path) -> Iterator[None]:
    """Let only one writer at a time rename several files in ``folder``."""
    with _open_folder(folder) as descriptor:
        if os.name == "posix":
            # Some network file systems have no locks; the rename is whole there too.
            with contextlib.suppress(OSError):
                fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield


def write_file(destination: Path, content: bytes) -> None:
    """Replace ``destination`` by ``content``; a failure leaves the old file as it was.

    Raises
    ------
    OSError
        If the folder cannot be written or the disk is full.
    """
    with new_file(destination) as (file, temporary):
        file.write(content)
        sync(file)
        os.replace(temporary, destination)
    sync_folder(destination.parent)


def write_figure(figure: Figure, destination: Path, **options: Any) -> None:
    """:func:`write_file` of a plot, in the format of the suffix; ``options`` as of ``savefig``."""
    memory = io.BytesIO()
    figure.savefig(memory, format=destination.suffix.removeprefix("."), **options)
    write_file(destination, memory.getvalue())


def write_arrays(destination: Path, arrays: dict[str, np.ndarray]) -> None:
    """:func:`write_file` of arrays by name, as ``numpy.savez`` writes them: ``.npz`` is added."""
    import numpy as np

    memory = io.BytesIO()
    np.savez(memory, allow_pickle=False, **arrays)
    if destination.suffix != ".npz":
        destination = destination.with_name(destination.name + ".npz")
    write_file(destination, memory.getvalue())


@contextlib.contextmanager
def _open_folder(folder: Path) -> Iterator[int]:
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
