"""Devices that are kept from candidate to candidate.

Requesting a device, connecting, and sending a layer's weights and input takes longer than many a
candidate's run. A session is kept while candidates follow each other, none of them failed, nobody
else waits for a device, and its time is not over.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from ..rpc import line
from ..rpc.client import SESSIONS_PER_PROCESS, RPCError, TrackerClient
from ..rpc.gate import Gate
from . import worker

#: Time of a session, in times of a candidate: so long a server of TVM is held by one that hangs.
_SESSION_TIMES = 2.0
#: Seconds that a device is kept for the next candidate.
_IDLE_SECONDS = 2.0
#: Candidates in one session, and bytes of their arguments, before the device starts afresh.
_MOST_CANDIDATES = 200
_MOST_BYTES = 256 << 20
_ERRORS = (RuntimeError, OSError, ValueError, TypeError, AttributeError)


class Evaluation(NamedTuple):
    """Numbers of :func:`worker.evaluate`."""

    number: int
    repeat: int
    min_repeat_ms: int


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
        Seconds of a candidate.
    cooldown : float
        Seconds that a device rests before it is timed.
    allocate : callable
        ``(session, device, arguments, 1) -> cases`` for :func:`worker.evaluate`.
    evaluation : Evaluation
    """

    host: str
    port: int
    key: str
    run_timeout: float
    cooldown: float
    allocate: Callable[..., Any]
    evaluation: Evaluation

    @property
    def seconds(self) -> float:
        """That one candidate may take."""
        return self.run_timeout + self.cooldown


@dataclass(eq=False)
class _Held:
    """A session on a device, with what it holds: freed with it, not message by message."""

    session: Any
    end: float
    candidates: int = 0
    bytes: int = 0
    cases: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    modules: list[Any] = field(default_factory=list)
    timer: threading.Timer | None = None


class HeldDevices:
    """Measures candidates, each on a device that is held already or on the next free one.

    Parameters
    ----------
    how : Devices
    at_once : int, optional
        Devices that are set up at a time while the processors are busy.
    """

    def __init__(self, how: Devices, at_once: int | None = None) -> None:
        self._how = how
        self._client = TrackerClient(how.host, how.port)
        self._gate = Gate(at_once)
        self._lock = threading.Lock()
        self._idle: list[_Held] = []
        self._sessions: set[Any] = set()
        self._closed = False
        self._threads = ThreadPoolExecutor(SESSIONS_PER_PROCESS, "tvm-pattern-device")

    def submit(self, job: Job) -> Future[Answer]:
        """Begin to measure a candidate."""
        return self._threads.submit(self.measure, job)

    def close(self) -> None:
        """Give all devices back; what runs there fails."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
            running = list(self._sessions)
        for held in idle:
            self._give_back(held)
        for session in running:
            line.cut(session)

    def measure(self, job: Job) -> Answer:
        """Outcome of a candidate; a failure counts only on a device that starts with it."""
        held = self._take_idle()
        if held is not None:
            answer, hung = self._try(held, job)
            if answer.error_msg is None or hung:
                return answer
        try:
            session_seconds = _SESSION_TIMES * self._how.seconds
            end = time.monotonic() + session_seconds
            session = self._client.request(self._how.key, session_seconds, self._how.seconds)
        except (RuntimeError, OSError, ValueError) as error:
            return Answer(error_msg=_text(error))
        with self._lock:
            self._sessions.add(session)
        return self._try(_Held(session, end), job)[0]

    def _try(self, held: _Held, job: Job) -> tuple[Answer, bool]:
        """Outcome, and whether the candidate's time was over."""
        line.end_in(held.session, self._how.seconds)
        try:
            answer = Answer(self._on(held, job))
        except _ERRORS as error:
            text, over = _text(error), line.was_cut(held.session) or line.is_over(held.session)
            self._give_back(held)
            return Answer(error_msg=f"SessionTimeout: {text}" if over else text), over
        if self._is_kept(held) and _tidied(held, job):
            self._keep(held)
        else:
            self._give_back(held)
        return answer, False

    def _on(self, held: _Held, job: Job) -> tuple[float, ...]:
        session = held.session
        with self._gate.pass_through():
            device = session.device(job.device_kind, 0)
            remote = Path(job.library).name
            session.upload(job.library, remote)
            module = session.load_module(remote)
            held.modules.append(module)
            cases = self._cases(held, device, job)
        time.sleep(self._how.cooldown)
        held.candidates += 1
        return tuple(worker.evaluate(session, module, device, self._how.evaluation, cases))

    def _cases(self, held: _Held, device: Any, job: Job) -> list[dict[str, Any]]:
        """The candidate's arguments: sent once, but for an output that holds no answer yet."""
        key = repr(job.arguments)
        if key in held.cases:
            for case in held.cases[key]:
                worker.clear_output(case)
            return held.cases[key]
        cases = self._how.allocate(held.session, device, job.arguments, 1)
        held.cases[key] = cases
        held.bytes += sum(worker.size_of(case) for case in cases)
        return cases

    def _is_kept(self, held: _Held) -> bool:
        if self._closed or line.is_over(held.session):
            return False
        if held.candidates >= _MOST_CANDIDATES or held.bytes > _MOST_BYTES:
            return False
        if held.end - time.monotonic() < self._how.seconds:
            return False
        try:
            waiting = {s.key: s.pending for s in self._client.status()}
        except RPCError:  # A tracker that restarts: the device is still there.
            return True
        return not waiting.get(self._how.key)

    def _keep(self, held: _Held) -> None:
        line.end_in(held.session, None)
        held.timer = threading.Timer(_IDLE_SECONDS, self._give_back_idle, (held,))
        held.timer.daemon = True
        with self._lock:
            self._idle.append(held)
        held.timer.start()

    def _take_idle(self) -> _Held | None:
        with self._lock:
            held = self._idle.pop() if self._idle else None
        if held is not None and held.timer is not None:
            held.timer.cancel()
        return held

    def _give_back_idle(self, held: _Held) -> None:
        with self._lock:
            if held not in self._idle:
                return
            self._idle.remove(held)
        self._give_back(held)

    def _give_back(self, held: _Held) -> None:
        with self._lock:
            self._sessions.discard(held.session)
        with contextlib.suppress(OSError):
            line.cut(held.session)


def _tidied(held: _Held, job: Job) -> bool:
    """Remove the candidate's file; a device where that fails starts afresh."""
    try:
        held.session.remove(Path(job.library).name)
    except _ERRORS:
        return False
    return True


def _text(error: BaseException) -> str:
    """An error's kind and text: over RPC, failures are told apart by them."""
    return f"{type(error).__name__}: {error}"
