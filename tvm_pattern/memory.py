"""What a network needs of memory, and what there is: asked before anything large is allocated.

Free of TVM, as the manifest that holds the figures.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

try:
    import resource
except ImportError:  # no such limits on Windows
    resource = None  # type: ignore[assignment]

_CGROUPS = Path("/sys/fs/cgroup")
# Files of one group: limit, use, and the word of its statistics for pages that can be dropped.
_GROUP_FILES = (
    ("memory.max", "memory.current", "inactive_file"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)


class NotEnoughMemoryError(MemoryError):
    """A network that needs more memory than this computer has to give."""


@dataclass(frozen=True)
class Footprint:
    """Bytes that a network needs.

    Parameters
    ----------
    weights : int
        As they are packed.
    activations : int
        The largest sum of what one run holds at a time; a second run beside it holds as much again.
        Without what single operators use for themselves.
    """

    weights: int
    activations: int

    @property
    def total(self) -> int:
        return self.weights + self.activations

    def __str__(self) -> str:
        return f"weights {size_text(self.weights)}, activations {size_text(self.activations)}"


def size_text(size: int) -> str:
    """A number of bytes as people write it, such as ``12.3 MB``."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= scale:
            return f"{size / scale:.1f} {unit}"
    return f"{size} bytes"


def check_fits(footprint: Footprint, what: str) -> None:
    """Refuse what fits no memory of this process.

    Parameters
    ----------
    footprint : Footprint
    what : str
        Whose it is, for the message.

    Raises
    ------
    NotEnoughMemoryError
        If it is more than :func:`available_memory`.
    """
    available = available_memory()
    if footprint.total > available:
        raise NotEnoughMemoryError(
            f"{what} needs at least {size_text(footprint.total)} of memory ({footprint}), and"
            f" {size_text(available)} are available to this process; take smaller inputs, a smaller"
            " batch, or a machine with more memory"
        )


def available_memory() -> int:
    """Bytes that this process can get: of the system, its control groups and its own limit."""
    amounts = [psutil.virtual_memory().available, *_left_in_groups(_group_of_this_process())]
    if resource is not None:
        limit, _ = resource.getrlimit(resource.RLIMIT_AS)
        if limit != resource.RLIM_INFINITY:
            amounts.append(limit - psutil.Process().memory_info().vms)
    return max(0, min(amounts))


def _group_of_this_process() -> str:
    """Path of this process's control group below the root of the memory controller."""
    try:
        lines = Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    groups = {line.split(":")[1]: line.split(":", 2)[2] for line in lines if line.count(":") > 1}
    for controllers, path in groups.items():
        if "memory" in controllers.split(","):
            return path
    return groups.get("", "")


def _left_in_groups(group: str, root: Path = _CGROUPS) -> Iterator[int]:
    """Bytes left in a control group and those around it, of either version, where limited."""
    for base in (root, root / "memory"):
        folder = base / group.strip("/")
        while True:
            yield from _left_in(folder)
            if folder == base or base not in folder.parents:
                break
            folder = folder.parent


def _left_in(folder: Path) -> Iterator[int]:
    for limit_name, use_name, cache_name in _GROUP_FILES:
        try:
            limit = int((folder / limit_name).read_text())
            used = int((folder / use_name).read_text())
            lines = (folder / "memory.stat").read_text().splitlines()
        except (OSError, ValueError):  # no such group, or its limit is "max"
            continue
        statistics = dict(line.split(maxsplit=1) for line in lines if " " in line)
        yield limit - used + int(statistics.get(cache_name, "0"))
