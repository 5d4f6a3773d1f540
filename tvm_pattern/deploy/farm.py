"""The same library on every device of a key, at once."""

from __future__ import annotations

import contextlib
import os
import tempfile
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from rich.table import Table

from ..profiling import Profile
from ..rpc.client import SESSIONS_PER_PROCESS, RPCError, TrackerClient, parse_address
from ..rpc.gate import meet
from ..rpc.session_process import ProcessEndedError, SessionProcess
from .device import SESSION_TIMEOUT, Device

#: Seconds to wait for devices that others use.
BUSY_TIMEOUT = 30.0


@dataclass(frozen=True)
class DeviceResult:
    """What one device answered; ``error`` is empty if all went well."""

    device: str
    median_ms: float | None = None
    p10_ms: float | None = None
    p90_ms: float | None = None
    max_abs_error: float | None = None
    verified: bool | None = None
    celsius: float | None = None
    error: str = ""
    profile: Profile | None = None

    def as_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON."""
        return {
            **asdict(replace(self, profile=None)),
            "profile": None if self.profile is None else self.profile.as_dict(),
        }

    @property
    def failed(self) -> bool:
        """Whether the device did not do its work, or computed something else."""
        return bool(self.error) or self.verified is False


def run_everywhere(
    tracker: str,
    key: str,
    library: str | os.PathLike,
    inputs: Sequence[np.ndarray],
    expected: Sequence[np.ndarray] | None = None,
    *,
    repeat: int = 10,
    cool_down: float = 0.0,
    cluster: str | None = None,
    num_threads: int = 1,
    profile: bool = False,
    session_timeout: float = SESSION_TIMEOUT,
    wait: float = BUSY_TIMEOUT,
) -> list[DeviceResult]:
    """Run, verify and time a library on all devices of ``key`` in parallel.

    Every device is held until all have been requested, so none is used twice. A device that fails
    gets a row that says why; the others go on. One that does not answer fails at once, one that
    others use after ``wait`` seconds. ``profile`` also times every layer by itself.

    Raises
    ------
    tvm_pattern.rpc.client.RPCError
        If there is no tracker or no device of that key.
    """
    count = TrackerClient(*parse_address(tracker)).count(key)
    work = _Work(
        tracker,
        key,
        os.fspath(library),
        list(inputs),
        None if expected is None else list(expected),
        repeat=repeat,
        cool_down=cool_down,
        cluster=cluster,
        num_threads=num_threads,
        profile=profile,
        session_timeout=session_timeout,
        wait=wait,
    )
    parts = -(-count // SESSIONS_PER_PROCESS)
    numbers = [range(part, count, parts) for part in range(parts)]
    if parts == 1:
        return work.on_devices(numbers[0], lambda: None)
    with contextlib.ExitStack() as open_things:
        meeting = open_things.enter_context(tempfile.TemporaryDirectory(prefix="tvm-pattern-"))
        futures = []
        for mine in numbers:
            process = SessionProcess(partial(ThreadPoolExecutor, 1), runtime_only=False)
            open_things.callback(process.close)
            futures.append(process.submit(partial(_in_process, work, mine, meeting, parts)))
        answers = zip(numbers, futures, strict=True)
        rows = [row for mine, future in answers for row in _rows(key, mine, future)]
    return sorted(rows, key=lambda row: int(row.device.rpartition(" ")[2]))


def _rows(key: str, numbers: range, future: Future[list[DeviceResult]]) -> list[DeviceResult]:
    """What a process answers of its devices."""
    try:
        return future.result()
    except ProcessEndedError as error:
        return [DeviceResult(f"{key} {number}", error=str(error)) for number in numbers]


MEETING_SECONDS = 60.0
"""Beyond the wait for a device: what a process may take to start and to request its own."""


def _in_process(work: _Work, numbers: range, meeting: str, parts: int) -> list[DeviceResult]:
    """Some of the devices.

    None is requested before every process is there, and none given back before each has its own,
    or has had the time for it: one that crashed must not hold up the others.
    """
    seconds = work.wait + MEETING_SECONDS
    meet(meeting, "started", numbers.start, parts, seconds)
    return work.on_devices(
        numbers, lambda: meet(meeting, "requested", numbers.start, parts, seconds)
    )


@dataclass(frozen=True)
class _Work:
    """What every device is asked to do, see :func:`run_everywhere`."""

    tracker: str
    key: str
    library: str
    inputs: list[np.ndarray]
    expected: list[np.ndarray] | None
    repeat: int
    cool_down: float
    cluster: str | None
    num_threads: int
    profile: bool
    session_timeout: float
    wait: float

    def on_devices(self, numbers: range, meet: Callable[[], None]) -> list[DeviceResult]:
        """A row for each number, by a thread each.

        ``meet`` returns when all devices have been requested by other processes too.
        """
        requested = {number: threading.Event() for number in numbers}
        all_requested = threading.Event()

        def await_all() -> None:
            for event in requested.values():
                event.wait()
            meet()
            all_requested.set()

        def run(number: int) -> DeviceResult:
            return self._on_device(number, requested[number], all_requested)

        threading.Thread(target=await_all, name="tvm-pattern-meeting", daemon=True).start()
        with ThreadPoolExecutor(len(numbers)) as pool:
            return list(pool.map(run, numbers))

    def _on_device(
        self, number: int, requested: threading.Event, all_requested: threading.Event
    ) -> DeviceResult:
        name = f"{self.key} {number}"
        try:
            try:
                device = Device.from_tracker(
                    self.tracker,
                    self.key,
                    session_timeout=self.session_timeout,
                    wait=self.wait,
                    skip_silent=False,
                )
            finally:
                requested.set()
            with contextlib.closing(device):
                try:
                    return self._use(device, name)
                finally:
                    all_requested.wait()
        except RPCError as error:
            return DeviceResult(name, error=str(error))

    def _use(self, device: Device, name: str) -> DeviceResult:
        if self.cluster is not None:
            device.use_cores(self.cluster, self.num_threads)
        loaded = device.load(self.library)
        check = None if self.expected is None else loaded.verify(self.inputs, self.expected)
        timing = loaded.time(*self.inputs, repeat=self.repeat, cool_down=self.cool_down)
        layers = None
        if self.profile:
            size = loaded.size_of(self.inputs)
            layers = loaded.profile(cool_down=self.cool_down, size=size)
        return DeviceResult(
            name,
            timing.median_ms,
            timing.quantile_ms(0.1),
            timing.quantile_ms(0.9),
            None if check is None else check.max_abs_error,
            None if check is None else check.passed,
            device.state().get("celsius"),
            profile=layers,
        )


def results_table(results: Sequence[DeviceResult]) -> Table:
    """One row per device."""
    table = Table(title="Devices")
    for name in ("device", "median ms", "p10", "p90", "max error", "verified", "deg C", "error"):
        table.add_column(name)
    for row in results:
        figures = (row.median_ms, row.p10_ms, row.p90_ms)
        table.add_row(
            row.device,
            *(_text(value, ".3f") for value in figures),
            _text(row.max_abs_error, ".1e"),
            {None: "", True: "yes", False: "NO"}[row.verified],
            _text(row.celsius, ".0f"),
            row.error.replace("[", r"\["),
        )
    return table


def _text(value: Any, form: str) -> str:
    return "" if value is None else format(value, form)
