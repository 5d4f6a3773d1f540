"""Which task to spend the next trials on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from .space import Space
from .tasks import WeightedTask
from .tuners import Tuner

# What is hoped for of a task per batch before it shows its own rate; halves with every batch.
_HOPE = 0.1
_WINDOW = 3


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
    since_best: int = 0
    #: Best seconds after each batch.
    history: list[float] = field(default_factory=list)
    #: ``(trial, best seconds)`` at each improvement.
    curve: list[tuple[int, float]] = field(default_factory=list)

    @property
    def finished(self) -> bool:
        """Whether no further trial of this task makes sense."""
        if self.trials >= len(self.space):
            return True
        return self.early_stop is not None and self.since_best >= self.early_stop

    @property
    def network_seconds(self) -> float:
        """Time of all occurrences at the best configuration; infinite while none worked."""
        return self.weighted.count * self.best_seconds

    def update(self, indices: Sequence[int], seconds: Sequence[float]) -> None:
        """Take the outcome of a batch."""
        self.tuner.update(indices, seconds)
        for index, value in zip(indices, seconds, strict=True):
            self.trials += 1
            self.since_best += 1
            if index == self.space.default:
                self.default_seconds = min(self.default_seconds, value)
            if value < self.best_seconds:
                self.best_seconds, self.best_index = value, index
                self.since_best = 0
                self.curve.append((self.trials, value))
        self.history.append(self.best_seconds)

    def expected_gain(self) -> float:
        """Seconds of the network that one more batch may save."""
        if not self.history or not np.isfinite(self.best_seconds):
            return float("inf")
        recent = self.history[-1 - _WINDOW :]
        first = next((t for t in recent if np.isfinite(t)), recent[-1])
        rate = (first - recent[-1]) / first / max(1, len(recent) - 1)
        hope = _HOPE * 0.5 ** len(self.history)
        return self.network_seconds * max(rate, hope)


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
