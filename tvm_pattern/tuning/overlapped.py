"""A search that keeps many devices at work: candidates are proposed while others are measured.

What is proposed knows what has been measured so far; what is still on its way is not proposed
again. Every record is written when its candidate is done, so that a search which ends at any moment
can be resumed, and one device that is slow holds up no other.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .measure import Measurement, Measurer
from .scheduler import TaskState, next_task

if TYPE_CHECKING:
    from .session import Search

#: Candidates on their way for each device: one is measured, one is built or ready.
_AHEAD = 2
#: Devices for each candidate of a batch: where there are many, proposing one by one takes too long.
_DEVICES_A_CANDIDATE = 4


@dataclass
class _Batch:
    """What was proposed together, and how many of them are on their way."""

    state: TaskState
    left: int


class _Overlapped:
    def __init__(self, search: Search, measurer: Measurer) -> None:
        self._search = search
        self._measurer = measurer
        self._pipeline = measurer.pipeline()
        self._flying: dict[int, tuple[_Batch, int]] = {}

    def propose(self) -> None:
        """Begin so many candidates that no device runs out of them."""
        devices = self._measurer.devices
        batch = max(self._search.options.batch, devices // _DEVICES_A_CANDIDATE)
        while True:
            trials_left = self._search.options.trials - self._search.trials - len(self._flying)
            count = min(batch, trials_left)
            room = _AHEAD * devices - len(self._flying)
            # A batch as a whole, unless a device would have to wait for it.
            if count < 1 or room < 1 or (room < count and len(self._flying) >= devices):
                return
            state = next_task(self._search.states)
            if state is None:
                return
            indices = self._search.propose(state, count)
            if not indices:
                return
            self._begin(state, indices)

    def _begin(self, state: TaskState, indices: list[int]) -> None:
        batch, weighted = _Batch(state, len(indices)), state.weighted
        state.pending += len(indices)
        for index in indices:
            start = time.monotonic()
            config = state.space.configs[index]
            candidate = self._measurer.candidate(
                weighted.task, weighted.weight, config, weighted.structure
            )
            self._measurer.build_seconds += time.monotonic() - start
            self._flying[self._pipeline.add(*candidate)] = batch, index

    def take(self) -> TaskState | None:
        """Take the next outcome; the task, if it was the last one of its batch."""
        start = time.monotonic()
        number, outcome = self._pipeline.next()
        self._measurer.run_seconds += time.monotonic() - start
        return self._record(*self._flying.pop(number), outcome)

    def _record(self, batch: _Batch, index: int, outcome: Measurement) -> TaskState | None:
        state = batch.state
        seconds = self._search.record(state, index, outcome)
        state.pending -= 1
        state.take(index, seconds)
        batch.left -= 1
        if batch.left:
            return None
        state.history.append(state.best_seconds)
        return state

    @property
    def is_done(self) -> bool:
        """Whether nothing is on its way."""
        return not self._flying


def search_overlapped(
    search: Search, measurer: Measurer, tell: Callable[[TaskState], None]
) -> None:
    """Search until the trials are used up or every task is finished.

    Parameters
    ----------
    search : Search
    measurer : Measurer
        Of the devices of a tracker.
    tell : callable
        Called with a task after each of its batches.

    Raises
    ------
    LogError
        If the log cannot be written.
    RPCError
        If no device comes back in time.
    """
    overlapped = _Overlapped(search, measurer)
    overlapped.propose()
    while not overlapped.is_done:
        state = overlapped.take()
        if state is not None:
            tell(state)
        overlapped.propose()
