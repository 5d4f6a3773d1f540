"""Candidates measured on all devices of a key at once, each by a thread.

A process per device, as MetaSchedule has it, costs a hundred megabytes and seconds of start each.
Deadlines of the sessions (:mod:`tvm_pattern.rpc.line`) end what hangs, so that threads are enough:
of this process, or of a few where TVM has no room for that many sessions in one.
"""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tvm.support.popen_pool import PopenPoolExecutor

from ..rpc import line
from ..rpc.client import SESSIONS_PER_PROCESS, RPCError, TrackerClient
from ..rpc.gate import Gate, meet
from . import worker

#: What processes may take to start.
START_SECONDS = 60.0


@dataclass(frozen=True)
class Answer:
    """What came of one run: seconds, or an error's text."""

    run_secs: tuple[float, ...] = ()
    error_msg: str | None = None


@dataclass(frozen=True)
class Job:
    """One candidate: its library, the kind of device, and what its arguments are."""

    library: str
    device_kind: str
    arguments: list[Any]


@dataclass(frozen=True)
class Devices:
    """How a candidate is measured on a device of a key.

    Parameters
    ----------
    host, port : str, int
        Of the tracker.
    key : str
    run_timeout : float
        Seconds of a session.
    cooldown : float
        Seconds that a device rests before it is timed.
    allocate : callable
        ``(session, device, arguments, 1) -> cases`` for :func:`worker.evaluate`.
    evaluator : tuple of int
        Numbers of :func:`worker.evaluate`.
    """

    host: str
    port: int
    key: str
    run_timeout: float
    cooldown: float
    allocate: Callable[..., Any]
    evaluator: Any

    def measure(self, job: Job, gate: Gate) -> Answer:
        """Measure on the next free device, which is set up when the gate lets it."""
        client = TrackerClient(self.host, self.port)
        try:
            session = client.request(self.key, self.run_timeout + self.cooldown)
        except (RuntimeError, OSError, ValueError) as error:
            return Answer(error_msg=_text(error))
        try:
            return Answer(self._on(session, job, gate))
        except (RuntimeError, OSError, ValueError, TypeError, AttributeError) as error:
            text = _text(error)
            if line.was_cut(session) or line.is_over(session):
                text = f"SessionTimeout: {text}"
            return Answer(error_msg=text)
        finally:
            # What the session still holds is freed there with it, not message by message.
            line.cut(session)

    def _on(self, session: Any, job: Job, gate: Gate) -> tuple[float, ...]:
        with gate.pass_through():
            device = session.device(job.device_kind, 0)
            remote = Path(job.library).name
            session.upload(job.library, remote)
            module = session.load_module(remote)
            cases = self.allocate(session, device, job.arguments, 1)
        time.sleep(self.cooldown)
        return tuple(worker.evaluate(session, module, device, self.evaluator, cases))


def measure_all(devices: Devices, jobs: Sequence[Job], at_once: int) -> list[Answer]:
    """Outcome of every job, in order, ``at_once`` at a time; the fastest devices do most."""
    gate = Gate()
    with ThreadPoolExecutor(at_once, "tvm-pattern-device") as pool:
        return list(pool.map(lambda job: devices.measure(job, gate), jobs))


class DevicePool:
    """All devices of a key.

    Raises
    ------
    RPCError
        If there is no tracker or no device of the key.
    """

    def __init__(self, devices: Devices) -> None:
        self._how = devices
        self._client = TrackerClient(devices.host, devices.port)
        self._devices = self._client.count(devices.key)
        self._processes: PopenPoolExecutor | None = None
        self._process_count = 0

    @property
    def devices(self) -> int:
        """How many there are; while the tracker lists none, how many there were."""
        with contextlib.suppress(RPCError):
            self._devices = self._client.count(self._how.key)
        return self._devices

    def close(self) -> None:
        """End the processes."""
        if self._processes is not None:
            self._processes.shutdown()
            self._processes = None

    def run(self, inputs: Mapping[int, Any]) -> dict[int, Answer]:
        """Measure MetaSchedule's ``RunnerInput`` of each number."""
        if not inputs:
            return {}
        jobs = [_job(item) for item in inputs.values()]
        at_once = min(self.devices, len(jobs))
        parts = -(-at_once // SESSIONS_PER_PROCESS)
        if parts == 1:
            return dict(zip(inputs, measure_all(self._how, jobs, at_once), strict=True))
        answers: list[Answer] = [Answer(error_msg="not measured")] * len(jobs)
        processes = self._at_least(parts)
        futures = [
            processes.submit(measure_all, self._how, jobs[n::parts], -(-(at_once - n) // parts))
            for n in range(parts)
        ]
        for n, future in enumerate(futures):
            answers[n::parts] = future.result()
        return dict(zip(inputs, answers, strict=True))

    def _at_least(self, count: int) -> PopenPoolExecutor:
        if self._processes is None or self._process_count < count:
            self.close()
            self._processes, self._process_count = PopenPoolExecutor(max_workers=count), count
            with tempfile.TemporaryDirectory(prefix="tvm-pattern-") as folder:
                # They take seconds to start, and shall not begin one after the other.
                futures = [
                    self._processes.submit(meet, folder, "started", n, count, START_SECONDS)
                    for n in range(count)
                ]
                for future in futures:
                    future.result()
        return self._processes


def _job(item: Any) -> Job:
    infos = [_plain(info.as_json()) for info in item.args_info]
    return Job(str(item.artifact_path), str(item.device_type), infos)


def _plain(value: Any) -> Any:
    """TVM's description of an argument as plain data, which crosses processes."""
    if isinstance(value, int | float):
        return value
    if isinstance(value, str):
        return str(value)
    return [_plain(item) for item in value]


def _text(error: BaseException) -> str:
    """An error's kind and text: over RPC, failures are told apart by them."""
    return f"{type(error).__name__}: {error}"
