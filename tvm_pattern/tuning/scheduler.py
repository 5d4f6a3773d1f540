"""Which task to spend the next trials on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from .space import Space
from .tasks import WeightedTask
from .tuners import Tuner

# What is hoped for of a task per batch before it shows its own rate; halves every so many trials.
_HOPE = 0.1
_HOPE_TRIALS = 16
_WINDOW = 3
# Clock that turns estimated multiply-add slots into seconds until something has been measured.


@dataclass
class TaskState:
    """A task during a search."""

    weighted: WeightedTask
    space: Space
    tuner: Tuner
    early_stop: int | None = None
    best_seconds: float = float("inf")
    best_index: int | None = None
    default_seconds: float = float("inf")
    trials: int = 0
    #: Proposed, and not measured yet.
    pending: int = 0
    since_best: int = 0
    #: Best seconds after each batch.
    history: list[float] = field(default_factory=list)
    #: ``(trial, best seconds)`` at each improvement.
    curve: list[tuple[int, float]] = field(default_factory=list)

    @property
    def finished(self) -> bool:
        """Whether no further trial of this task makes sense."""
        if self.trials + self.pending >= len(self.space):
            return True
        return self.early_stop is not None and self.since_best >= self.early_stop

    @property
    def network_seconds(self) -> float:
        """Time of all occurrences at the best configuration; infinite while none worked."""
        return self.weighted.count * self.best_seconds

    @property
    def measured(self) -> bool:
        """Whether a configuration worked."""
        return bool(np.isfinite(self.best_seconds))

    @property
    def level0_cost(self) -> float:
        """The schedule's estimate of level 0, in FMA slots of one core."""
        default = self.space.default
        return float(
            self.space.estimates.min() if default is None else self.space.estimates[default]
        )

    def update(self, indices: Sequence[int], seconds: Sequence[float]) -> None:
        """Take the outcome of a batch."""
        for index, value in zip(indices, seconds, strict=True):
            self.take(index, value)
        self.history.append(self.best_seconds)

    def take(self, index: int, seconds: float) -> None:
        """Take one outcome; whoever gives all of a batch ends it in the history."""
        self.tuner.update([index], [seconds])
        self.trials += 1
        self.since_best += 1
        if index == self.space.default:
            self.default_seconds = min(self.default_seconds, seconds)
        if seconds < self.best_seconds:
            self.best_seconds, self.best_index = seconds, index
            self.since_best = 0
            self.curve.append((self.trials, seconds))

    def expected_gain(self) -> float:
        """Seconds of the network that one more batch may save."""
        if not self.measured:
            # While its first candidates are being measured, others come first.
            return 0.0 if self.pending else float("inf")
        recent = self.history[-1 - _WINDOW :] or [self.best_seconds]
        first = next((t for t in recent if np.isfinite(t)), recent[-1])
        rate = (first - recent[-1]) / first / max(1, len(recent) - 1)
        hope = _HOPE * 0.5 ** ((self.trials + self.pending) / _HOPE_TRIALS)
        return self.network_seconds * max(rate, hope)


@dataclass(frozen=True)
class NetworkEstimate:
    """Time of all tuned convolutions of a network.

    Parameters
    ----------
    seconds : float
        Every task at its best configuration.
    default_seconds : float
        Every task at level 0.
    estimated : int
        Tasks without a measurement that worked; both sums count them at the schedule's estimate.
    """

    seconds: float
    default_seconds: float
    estimated: int


def network_estimate(states: Sequence[TaskState]) -> NetworkEstimate:
    """Measured times where there are any, elsewhere the schedule's estimates.

    Estimates become seconds by what the measured tasks took for theirs, in the median; while
    nothing is measured, by a nominal clock.
    """
    seen = [s for s in states if s.measured]
    rates = [s.default_seconds / s.level0_cost for s in seen if np.isfinite(s.default_seconds)]
    rates = rates or [s.best_seconds / s.level0_cost for s in seen]
    if rates:
        rate = float(np.median(rates))
    else:
        task = states[0].weighted.task
        rate = task.schedules.seconds(task.machine)
    total = default_total = 0.0
    for state in states:
        guess = rate * state.level0_cost
        best = state.best_seconds if state.measured else guess
        default = state.default_seconds if np.isfinite(state.default_seconds) else guess
        total += state.weighted.count * best
        default_total += state.weighted.count * default
    return NetworkEstimate(total, default_total, len(states) - len(seen))


def next_task(states: Sequence[TaskState]) -> TaskState | None:
    """The unfinished task with the most to gain; None when all are finished."""
    open_states = [s for s in states if not s.finished]
    if not open_states:
        return None
    # Tasks without a measurement come first, the largest before the others.
    return max(
        open_states,
        key=lambda s: (s.expected_gain(), s.weighted.count * s.weighted.task.effective_flops),
    )
