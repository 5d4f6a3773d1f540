"""How many sessions are set up at a time, and processes that begin together.

Setting up a session takes this computer's processors for some hundredths of a second. Devices that
are all set up at once all wait for the last one, and do so again in the next round. One after the
other, the first works while the last is set up, and from then on they ask at different times.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

from ..threads import available_cpus

#: Share of the processors that is idle where they are not what is waited for.
IDLE = 0.3
#: Seconds between two looks at that share.
LOOK = 0.1


class Gate:
    """Lets so many set-ups in as there are processors, and more while these are idle.

    What waits for a slow network takes no processor, and shall not hold up others.
    """

    def __init__(self, at_once: int | None = None) -> None:
        self._at_once = at_once or len(available_cpus())
        self._changed = threading.Condition()
        self._inside = 0
        self._looked = time.monotonic()
        self._times = psutil.cpu_times()

    @contextlib.contextmanager
    def pass_through(self) -> Iterator[None]:
        """The time of one set-up."""
        with self._changed:
            while self._inside >= self._at_once and not self._is_idle():
                self._changed.wait(LOOK)
            self._inside += 1
        try:
            yield
        finally:
            with self._changed:
                self._inside -= 1
                self._changed.notify()

    def _is_idle(self) -> bool:
        """Whether the processors were idle since the last look; one set-up more for each look."""
        if time.monotonic() - self._looked < LOOK:
            return False
        before, self._times = self._times, psutil.cpu_times()
        self._looked = time.monotonic()
        total = sum(self._times) - sum(before)
        return total > 0 and (self._times.idle - before.idle) / total >= IDLE


def meet(folder: str, name: str, who: int, count: int, seconds: float) -> None:
    """Wait until ``count`` processes have come, or the time is over.

    Parameters
    ----------
    folder : str
        Theirs alone.
    name : str
        Of the meeting.
    who : int
        This process.
    """
    deadline = time.monotonic() + seconds
    Path(folder, f"{name}-{who}").touch()
    while time.monotonic() < deadline:
        if sum(entry.startswith(f"{name}-") for entry in os.listdir(folder)) >= count:
            return
        time.sleep(0.02)
