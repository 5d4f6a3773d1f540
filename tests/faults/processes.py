"""Commands with a bound: a hang is told from an error, and its stacks are shown.

A hang is told by what a command computes, not by the clock: on a machine with much to do, a command
of half a minute may take five.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
#: Seconds without progress, or of computing, after which a command counts as hung.
PATIENCE = 240.0
# Progress is this much computing; a mere loop that asks whether something happened takes less.
_PROGRESS_SECONDS = 0.5
_LOOK_SECONDS = 1.0
_RAW = ("Traceback (most recent call last)", "Fatal Python error", "Segmentation fault")


@dataclass(frozen=True)
class Result:
    """How a command ended; ``code`` is negative for a signal."""

    code: int
    out: str
    err: str

    @property
    def is_raw(self) -> bool:
        """Whether a Python traceback or a crash was shown to the user."""
        return any(sign in self.err + self.out for sign in _RAW)

    def __str__(self) -> str:
        return (
            f"exit code {self.code}\n--- stdout\n{self.out[-4000:]}\n--- stderr\n{self.err[-4000:]}"
        )


def environment(**changes: str) -> dict[str, str]:
    """This process's environment for a child that behaves the same every time."""
    fixed = {
        "OMP_NUM_THREADS": "1",
        "TVM_NUM_THREADS": "1",
        "PYTHONHASHSEED": "0",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONFAULTHANDLER": "1",
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]).strip(
            os.pathsep
        ),
    }
    return {**os.environ, **fixed, **changes}


def python(code: str, *arguments: object) -> list[str]:
    """The command that runs ``code``, which finds ``arguments`` in ``sys.argv[1:]``."""
    return [sys.executable, "-c", code, *map(str, arguments)]


def cli(*arguments: object) -> list[str]:
    """The command ``tvm-pattern`` with ``arguments``."""
    return [sys.executable, "-m", "tvm_pattern.cli", *map(str, arguments)]


def run(
    command: Sequence[str],
    *,
    patience: float = PATIENCE,
    env: dict[str, str] | None = None,
    cwd: Path | None = None,
    preexec_fn: Callable[[], None] | None = None,
) -> Result:
    """Run a command to its end, with everything it started.

    Raises
    ------
    AssertionError
        If it hangs: it has made no progress for ``patience`` seconds, or has computed for so long;
        the message holds its Python stacks.
    """
    process = start(command, env=env, cwd=cwd, preexec_fn=preexec_fn)
    try:
        out, err = _outputs(process, patience)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGABRT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(5)
        end(process)
        out, err = process.communicate()
        hung = Result(process.returncode, out, err)
        raise AssertionError(f"hung for {patience} s: {' '.join(command)[:300]}\n{hung}") from None
    finally:
        end(process)
    return Result(process.returncode, out, err)


def _outputs(process: subprocess.Popen, patience: float) -> tuple[str, str]:
    """What a command of :func:`start` printed, once it and whoever has its outputs ended.

    Raises
    ------
    subprocess.TimeoutExpired
        If it hangs.
    """
    marked, since = 0.0, time.monotonic()
    while True:
        try:
            return process.communicate(timeout=min(patience, _LOOK_SECONDS))
        except subprocess.TimeoutExpired:
            seconds, is_stopped = computed(process.pid)
            # Processes that ended are no longer counted, so that less is a change as well.
            if is_stopped or abs(seconds - marked) >= _PROGRESS_SECONDS:
                marked, since = seconds, time.monotonic()
            if seconds > patience or time.monotonic() - since > patience:
                raise


def computed(session: int) -> tuple[float, bool]:
    """Seconds that the living processes of a session computed; whether one of them is stopped."""
    ticks, is_stopped = 0, False
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = entry.read_text().rpartition(")")[2].split()
        except OSError:
            continue  # ended meanwhile
        if int(fields[3]) == session:
            ticks += int(fields[11]) + int(fields[12])
            is_stopped |= fields[0] == "T"
    return ticks / os.sysconf("SC_CLK_TCK"), is_stopped


def start(
    command: Sequence[str],
    *,
    env: dict[str, str] | None = None,
    cwd: Path | None = None,
    preexec_fn: Callable[[], None] | None = None,
) -> subprocess.Popen:
    """Start a command in a session of its own; end it by :func:`end`."""
    return subprocess.Popen(
        command,
        env=env or environment(),
        cwd=cwd,
        preexec_fn=preexec_fn,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=True,
    )


def end(process: subprocess.Popen) -> None:
    """Kill a command of :func:`start` and what it started, if anything is left."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
