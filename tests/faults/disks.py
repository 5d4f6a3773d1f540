"""A disk that can be filled to the last byte."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

MEGABYTE = 1 << 20


@dataclass(frozen=True)
class SmallDisk:
    """A folder whose space ends.

    Parameters
    ----------
    path : pathlib.Path
    is_tmpfs : bool
        A mounted tmpfs; otherwise the limit is on the size of a file, and processes have to be
        started with :meth:`limit`.
    """

    path: Path
    is_tmpfs: bool

    @property
    def free(self) -> int:
        """Bytes left."""
        stats = os.statvfs(self.path)
        return stats.f_bavail * stats.f_frsize

    def fill(self, leave: int = 0) -> None:
        """Write a file that leaves ``leave`` bytes (rounded down to pages)."""
        if not self.is_tmpfs:
            return
        path = self.path / "filler"
        with contextlib.suppress(OSError), open(path, "wb", buffering=0) as file:
            while self.free > leave:
                file.write(bytes(max(1, min(MEGABYTE, self.free - leave))))

    def empty(self) -> None:
        """Remove what :meth:`fill` wrote."""
        (self.path / "filler").unlink(missing_ok=True)

    def limit(self, leave: int = 0) -> Callable[[], None]:
        """For ``preexec_fn``: files end after ``leave`` bytes where no tmpfs could be mounted."""

        def in_child() -> None:
            if not self.is_tmpfs:
                signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
                resource.setrlimit(resource.RLIMIT_FSIZE, (leave, leave))

        return in_child


@contextlib.contextmanager
def open_small_disk(path: Path, size: int = 8 * MEGABYTE) -> Iterator[SmallDisk]:
    """Mount a tmpfs of ``size`` bytes at ``path``; without root see :class:`SmallDisk`."""
    path.mkdir()
    command = [
        "mount",
        "-t",
        "tmpfs",
        "-o",
        f"size={size},nr_inodes=1024,mode=0700",
        "faults",
        str(path),
    ]
    try:
        is_mounted = subprocess.run(command, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        is_mounted = False
    try:
        yield SmallDisk(path, is_mounted)
    finally:
        if is_mounted:
            subprocess.run(["umount", "-l", str(path)], check=True)
