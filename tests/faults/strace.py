"""``kill -9`` at every write, by ``strace -e inject`` instead of by luck."""

from __future__ import annotations

import re
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .processes import PATIENCE, Result, run

#: What changes files; the kill comes when the call is entered, so before it has any effect.
CHANGES = (
    "write,pwrite64,writev,pwritev,sendfile,copy_file_range,ftruncate,fsync,fdatasync,"
    "rename,renameat,renameat2,link,linkat,symlink,symlinkat,unlink,unlinkat,mkdir,mkdirat,rmdir"
)
_CALL = re.compile(r"^(?:(?P<pid>\d+) +)?(?P<name>\w+)\((?P<rest>.*)$")


@dataclass(frozen=True)
class KillPoint:
    """The ``when``-th call of ``syscall`` of a process; ``detail`` is the traced line."""

    syscall: str
    when: int
    detail: str


def require_strace() -> None:
    """Fail, rather than skip, where ``strace`` is missing."""
    assert shutil.which("strace"), (
        "strace is missing: `make faults` installs it; on Debian and Ubuntu: apt-get install strace"
    )


def kill_points(
    command: Sequence[str],
    folder: Path,
    trace: Path,
    *,
    env: dict[str, str] | None = None,
    calls: str = CHANGES,
) -> list[KillPoint]:
    """Run ``command`` once and list the calls by which its main thread changes ``folder``.

    Parameters
    ----------
    command : sequence of str
        Deterministic, and without effect on a later run.
    folder : pathlib.Path
    trace : pathlib.Path
        File to write the trace to, outside ``folder``.
    env : dict, optional
    calls : str
        System calls, separated by commas.
    """
    require_strace()
    result = run(
        ["strace", "-qq", "-y", "-s", "0", "-o", str(trace), "-e", f"trace={calls}", *command],
        env=env,
    )
    assert result.code == 0, f"the unharmed run failed: {result}"
    counts: Counter[str] = Counter()
    points = []
    for line in trace.read_text(errors="replace").splitlines():
        match = _CALL.match(line)
        if match is None:
            continue
        counts[match["name"]] += 1
        if str(folder) in match["rest"]:
            points.append(KillPoint(match["name"], counts[match["name"]], line))
    return points


def run_killed(
    command: Sequence[str],
    point: KillPoint,
    *,
    env: dict[str, str] | None = None,
    patience: float = PATIENCE,
) -> Result:
    """Run ``command`` and kill it at ``point``; it ends with -9 if the point was reached."""
    inject = f"inject={point.syscall}:signal=KILL:when={point.when}"
    quiet = ["strace", "-qq", "-o", "/dev/null", "-e", f"trace={point.syscall}", "-e", inject]
    return run([*quiet, *command], env=env, patience=patience)
