"""Candidates measured on all devices of a key at once, each by a thread.

A process per device, as MetaSchedule has it, costs a hundred megabytes and seconds of start each.
Deadlines of the sessions (:mod:`tvm_pattern.rpc.line`) end what hangs, so that threads are enough:
of this process, or of a few where TVM has no room for that many sessions in one. The next candidate
goes to whoever has a device for it, so that slow devices hold up nothing but themselves.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from ..rpc.client import SESSIONS_PER_PROCESS, RPCError, TrackerClient
from ..rpc.session_process import SessionProcess
from ..threads import available_cpus
from .held_devices import Answer, Devices, HeldDevices, Job

#: Seconds between two looks at how many devices there are.
_LOOK_SECONDS = 2.0


class _Measures(Protocol):
    def submit(self, job: Job) -> Future[Answer]: ...

    def close(self) -> None: ...


@dataclass
class _Place:
    """Where candidates are measured: this process or another, and how many are right now."""

    measures: _Measures
    busy: int = 0

    @property
    def ended(self) -> bool:
        return isinstance(self.measures, SessionProcess) and self.measures.ended


class DevicePool:
    """All devices of a key.

    Raises
    ------
    RPCError
        If there is no tracker or no device of the key.
    """

    def __init__(self, how: Devices) -> None:
        self._how = how
        self._client = TrackerClient(how.host, how.port)
        self._devices = self._client.count(how.key)
        self._looked = time.monotonic()
        self._lock = threading.Lock()
        self._waiting: deque[tuple[Job, Callable[[Answer], None]]] = deque()
        self._places: list[_Place] = []

    @property
    def devices(self) -> int:
        """How many there are; while the tracker lists none, how many there were."""
        if time.monotonic() - self._looked >= _LOOK_SECONDS:
            with contextlib.suppress(RPCError):
                self._devices = self._client.count(self._how.key)
            self._looked = time.monotonic()
        return self._devices

    def close(self) -> None:
        """Give all devices back, and end the processes; what has no answer gets none."""
        with self._lock:
            self._waiting.clear()
            places, self._places = self._places, []
        for place in places:
            place.measures.close()

    def submit(self, job: Job, done: Callable[[Answer], None]) -> None:
        """Measure a candidate once a device is free; ``done`` is called by another thread."""
        with self._lock:
            self._waiting.append((job, done))
        self._dispatch()

    def _dispatch(self) -> None:
        """Send what waits to where there is room."""
        while True:
            with self._lock:
                place = self._free_place() if self._waiting else None
                if place is None:
                    return
                job, done = self._waiting.popleft()
                place.busy += 1
            future = place.measures.submit(job)
            future.add_done_callback(partial(self._on_answer, place, done))

    def _free_place(self) -> _Place | None:
        self._places = [place for place in self._places if not place.ended]
        if sum(place.busy for place in self._places) >= self._devices:
            return None
        wanted = -(-self._devices // SESSIONS_PER_PROCESS)
        while len(self._places) < wanted:
            self._places.append(_Place(self._measures(wanted)))
        place = min(self._places, key=lambda place: place.busy)
        return place if place.busy < SESSIONS_PER_PROCESS else None

    def _measures(self, processes: int) -> _Measures:
        if processes == 1:
            return HeldDevices(self._how)
        at_once = max(1, len(available_cpus()) // processes)
        return SessionProcess(partial(HeldDevices, self._how, at_once), runtime_only=True)

    def _on_answer(
        self, place: _Place, done: Callable[[Answer], None], future: Future[Answer]
    ) -> None:
        with self._lock:
            place.busy -= 1
        if future.cancelled():
            return
        error = future.exception()
        if error is None:
            done(future.result())
        else:
            # Its session is closed with the process: the candidate is measured elsewhere.
            done(Answer(error_msg=f"closed: {error}"))
        self._dispatch()


__all__ = ["Answer", "DevicePool", "Devices", "Job"]
