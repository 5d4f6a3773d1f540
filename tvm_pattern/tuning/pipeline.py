"""Candidates that are built and measured as they come: no device waits for the last of a batch."""

from __future__ import annotations

import queue
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tvm.s_tir.meta_schedule.arg_info import ArgInfo, TensorInfo

from .device_pool import Answer, DevicePool, Job

if TYPE_CHECKING:
    from .measure import Measurement

#: Times that a candidate is tried which lost its device.
ATTEMPTS = 2


@dataclass
class _Candidate:
    number: int
    arguments: list[Any]
    library: str = ""
    attempts: int = 0


class Pipeline:
    """Builds candidates, and measures each on the next device that is free.

    Parameters
    ----------
    build : callable
        PrimFunc -> future of its library's path.
    pool : DevicePool
    device_kind : str
    judge_build, judge_run : callable
        What a build's error, and what an answer means.
    await_device : callable
        Returns once there is a device again.
    """

    def __init__(
        self,
        build: Callable[[Any], Future],
        pool: DevicePool,
        device_kind: str,
        judge_build: Callable[[BaseException], Measurement],
        judge_run: Callable[[Answer], Measurement],
        await_device: Callable[[], None],
    ) -> None:
        self._build = build
        self._pool = pool
        self._device_kind = device_kind
        self._judge_build = judge_build
        self._judge_run = judge_run
        self._await_device = await_device
        # Pairs of a candidate, and what a build or a run gave.
        self._events: queue.SimpleQueue[tuple[_Candidate, Future | Answer]] = queue.SimpleQueue()
        self._numbers = 0
        self.in_flight = 0

    def add(self, function: Any, token: int) -> int:
        """Begin a candidate; its number.

        Parameters
        ----------
        function : PrimFunc
        token : int
            Names its inputs.
        """
        infos = [*ArgInfo.from_prim_func(function), TensorInfo("int64", [token])]
        candidate = _Candidate(self._numbers, [_plain(info.as_json()) for info in infos])
        self._numbers += 1
        self.in_flight += 1
        built = self._build(function)
        built.add_done_callback(lambda future: self._events.put((candidate, future)))
        return candidate.number

    def next(self) -> tuple[int, Measurement]:
        """Number and outcome of the next candidate that is done.

        Raises
        ------
        RPCError
            If no device comes back in time.
        """
        while True:
            candidate, event = self._events.get()
            outcome = self._after(candidate, event)
            if outcome is not None:
                self.in_flight -= 1
                if candidate.library:
                    Path(candidate.library).unlink(missing_ok=True)
                return candidate.number, outcome

    def _after(self, candidate: _Candidate, event: Future | Answer) -> Measurement | None:
        """Its outcome, None while there is more to do."""
        if isinstance(event, Future):
            error = event.exception()
            if error is not None:
                return self._judge_build(error)
            candidate.library = str(event.result())
        else:
            outcome = self._judge_run(event)
            if outcome.error_kind != "device_lost":
                return outcome
            if candidate.attempts >= ATTEMPTS:
                # Losing the device every time is what a candidate does that crashes it.
                return type(outcome)((), "crash", outcome.error)
            self._await_device()
        candidate.attempts += 1
        job = Job(candidate.library, self._device_kind, candidate.arguments)
        self._pool.submit(job, lambda answer: self._events.put((candidate, answer)))
        return None


def _plain(value: Any) -> Any:
    """TVM's description of an argument as plain data, which crosses processes."""
    if isinstance(value, int | float):
        return value
    if isinstance(value, str):
        return str(value)
    return [_plain(item) for item in value]
