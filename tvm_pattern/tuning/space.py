"""The search space of a task, and features of its points for the cost model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, fields, replace
from functools import cached_property
from typing import Any

import numpy as np

from topi_kernels.conv_task import ConvTask
from topi_kernels.schedules.choose import Config
from topi_kernels.schedules.config import EXTRA_KNOBS
from topi_kernels.task import Task

from .features import config_features


class EmptySpaceError(ValueError):
    """A task without a single legal configuration."""


class Space:
    """Every configuration worth measuring for one task.

    Parameters
    ----------
    task : ConvTask or Int8Task
    extra_knobs : dict of str to sequence, optional
        Knob -> further values to combine with every point of the schedule's own space, such as a
        value of :data:`~topi_kernels.schedules.config.WIDTHS`; default its ``EXTRA_KNOBS``. An
        empty dict leaves the schedule's space as it is. Knobs of other devices are left out.
    configs : iterable of ConvConfig, GpuConfig or Int8Config, optional
        Search among these only.

    Attributes
    ----------
    configs : list of ConvConfig, GpuConfig or Int8Config
        In a fixed order.
    dropped : dict of str to int
        Reason -> points dropped for it.

    Raises
    ------
    EmptySpaceError
        If no configuration is legal.
    """

    def __init__(
        self,
        task: Task,
        extra_knobs: dict[str, Sequence[Any]] | None = None,
        configs: Iterable[Config] | None = None,
    ) -> None:
        self.task = task
        self.dropped: Counter[str] = Counter()
        extra = EXTRA_KNOBS if extra_knobs is None else extra_knobs
        if configs is None:
            base = list(task.configs())
            known = {f.name for f in fields(task.schedules.config)}
            extra = {knob: values for knob, values in extra.items() if knob in known}
            origins = {c: origin for origin in base for c in _combine(origin, extra)}
            origins |= {origin: origin for origin in base}
        else:
            origins = {config: config for config in configs}
        self.configs = list(self._legal(origins))
        self._origins = [origins[config] for config in self.configs]
        if not self.configs:
            reasons = "; ".join(self.dropped) or (
                f"no tile fits an output of {task.out_layout.height}x{task.out_layout.width} with"
                f" row stride {task.out_layout.row_stride}"
            )
            raise EmptySpaceError(
                f"task {task.label} has an empty search space on {task.family}: {reasons};"
                " compile it at level 0 or widen the knobs"
            )
        self._positions = {config: i for i, config in enumerate(self.configs)}
        rows = [tuple(asdict(config).values()) for config in self.configs]
        self.knob_values = [sorted({row[k] for row in rows}) for k in range(len(rows[0]))]
        self._rows = rows
        self._by_row = {row: i for i, row in enumerate(rows)}
        self._features: dict[int, np.ndarray] = {}

    def _legal(self, configs: Iterable[Config]) -> Iterable[Config]:
        for config in dict.fromkeys(configs):
            reason = self.task.illegal_reason(config) or self._pointless(config)
            if reason is None:
                yield config
            else:
                self.dropped[reason] += 1

    def _pointless(self, config: Config) -> str | None:
        """Why another point of the space is the same program."""
        if not isinstance(self.task, ConvTask):
            return None
        taps = max(len(p) for p in self.task.patterns)
        if config.taps_per_step > taps:
            return f"taps_per_step {config.taps_per_step} exceeds the {taps} taps of a kernel"
        return None

    def __len__(self) -> int:
        return len(self.configs)

    def position(self, config: Config) -> int | None:
        """Index of ``config``, or None if it is outside the space."""
        return self._positions.get(config)

    @cached_property
    def default(self) -> int | None:
        """Index of the level-0 configuration."""
        return self.position(self.task.default_config())

    @cached_property
    def estimates(self) -> np.ndarray:
        """The schedule's own cost estimates, ``[len(self)]``; only their order matters.

        A point that differs from one of the schedule's in an extra knob has that one's estimate.
        """
        costs = {c: self.task.cost(c) for c in dict.fromkeys(self._origins)}
        return np.array([costs[origin] for origin in self._origins])

    def neighbour(self, index: int, rng: np.random.Generator) -> int:
        """A random point that differs from ``index`` in as few knobs as can be had."""
        return self._search(lambda row: _mutate(row, self.knob_values, rng), index, rng)

    def cross(self, first: int, second: int, rng: np.random.Generator) -> int:
        """A random point that takes each knob from one of two parents."""

        def child(row: list[Any]) -> None:
            take = rng.random(len(row)) < 0.5
            row[:] = [b if t else a for a, b, t in zip(row, self._rows[second], take, strict=True)]

        return self._search(child, first, rng)

    def _search(
        self, change: Callable[[list[Any]], None], index: int, rng: np.random.Generator
    ) -> int:
        for _ in range(50):
            row = list(self._rows[index])
            change(row)
            found = self._by_row.get(tuple(row))
            if found is not None and found != index:
                return found
        return int(rng.integers(len(self)))

    def features(self, indices: Sequence[int]) -> np.ndarray:
        """Feature rows ``[len(indices), features]``, float32."""
        for i in indices:
            if i not in self._features:
                self._features[i] = config_features(self.task, self.configs[i], self.estimates[i])
        return np.stack([self._features[i] for i in indices])


def _combine(origin: Config, extra: dict[str, Sequence[Any]]) -> list[Config]:
    """A point, with every combination of the values of extra knobs."""
    points = [origin]
    for knob, values in extra.items():
        points = [
            replace(config, **{knob: value})
            for config in points
            for value in dict.fromkeys((getattr(config, knob), *values))
        ]
    return points


def _mutate(row: list[Any], values: list[list[Any]], rng: np.random.Generator) -> None:
    # Tiles and groups are tied by legality, so one knob alone often has no legal neighbour.
    free = [k for k, v in enumerate(values) if len(v) > 1]
    for k in rng.choice(free, size=min(len(free), int(rng.integers(1, 4))), replace=False):
        row[k] = values[k][int(rng.integers(len(values[k])))]
