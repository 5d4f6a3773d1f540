"""AutoTVM's tuners: one task at a time, with callbacks after every batch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from ..tuning.environment import device_name, tool_versions
from ..tuning.measure import Measurement, MeasureOptions, Measurer
from ..tuning.records import Record
from ..tuning.session import make_record, warm_start_sets
from ..tuning.tuners import make_tuner
from .measure import MeasureInput, MeasureResult
from .task import Task

Callback = Callable[["Tuner", Sequence[MeasureInput], Sequence[MeasureResult]], None]


class Tuner:
    """Base of the tuners.

    Parameters
    ----------
    task : Task
    batch : int
        Candidates measured between two looks at the results.
    seed : int

    Attributes
    ----------
    best_config
        Fastest right configuration so far, or None.
    best_flops : float
        Its effective operations a second.
    """

    _search = ""

    def __init__(self, task: Task, *, batch: int = 8, seed: int = 0) -> None:
        self.task = task
        self.batch = batch
        self.seed = seed
        self.best_config: Any = None
        self.best_seconds = math.inf
        self._history: list[Record] = []

    @property
    def best_flops(self) -> float:
        return self.task.flop / self.best_seconds

    def load_history(self, records: Iterable[Record]) -> None:
        """Learn from records of ``record.load_from_file``; only ``XGBTuner`` can."""
        self._history += list(records)

    def _options(self) -> dict[str, Any]:
        return {}

    def tune(
        self,
        n_trial: int,
        measure_option: MeasureOptions,
        early_stopping: int | None = None,
        callbacks: Sequence[Callback] = (),
    ) -> None:
        """Measure up to ``n_trial`` configurations.

        Parameters
        ----------
        n_trial : int
        measure_option : MeasureOptions
            Of :func:`tvm_pattern.autotvm.measure_option`.
        early_stopping : int, optional
            Trials without improvement after which to stop.
        callbacks : sequence of callable
            ``callback(tuner, inputs, results)`` after every batch.

        Raises
        ------
        ValueError
            If ``n_trial`` or ``early_stopping`` is below 1, or the target cannot be measured here.
        """
        if n_trial < 1 or (early_stopping is not None and early_stopping < 1):
            raise ValueError(
                f"got n_trial={n_trial} and early_stopping={early_stopping}, expected at least 1"
            )
        task, space = self.task, self.task.config_space
        search = make_tuner(self._search, space, self.seed, **self._options())
        trials = since_best = 0
        with Measurer(task.target, task.num_threads, measure_option) as measurer:
            while trials < n_trial and (early_stopping is None or since_best < early_stopping):
                chosen = search.propose(min(self.batch, n_trial - trials))
                if not chosen:
                    break
                weighted = task.weighted
                configs = [space.configs[index] for index in chosen]
                outcomes = measurer.measure(
                    weighted.task, weighted.weight, configs, weighted.structure
                )
                inputs = self._inputs(configs, outcomes, measure_option)
                search.update(chosen, [i.record.seconds for i in inputs])
                trials += len(chosen)
                since_best = 0 if self._improved(inputs) else since_best + len(chosen)
                results = [_result(i.record) for i in inputs]
                for callback in callbacks:
                    callback(self, inputs, results)

    def _inputs(
        self, configs: Sequence[Any], outcomes: Sequence[Measurement], options: MeasureOptions
    ) -> list[MeasureInput]:
        task, versions = self.task, tool_versions()
        device = options.key or device_name()
        return [
            MeasureInput(
                task.target,
                task,
                config,
                make_record(
                    task.weighted.task,
                    config,
                    outcome,
                    task.target,
                    device,
                    task.num_threads,
                    versions,
                ),
            )
            for config, outcome in zip(configs, outcomes, strict=True)
        ]

    def _improved(self, inputs: Sequence[MeasureInput]) -> bool:
        before = self.best_seconds
        for item in inputs:
            if item.record.seconds < self.best_seconds:
                self.best_seconds, self.best_config = item.record.seconds, item.config
        return self.best_seconds < before


class XGBTuner(Tuner):
    """Learned cost model; see :class:`tvm_pattern.tuning.tuners.XGBTuner`."""

    _search = "xgb"

    def _options(self) -> dict[str, Any]:
        width = self.task.config_space.features([0]).shape[1]
        sets = warm_start_sets(self._history)
        return {"warm_start": [known for known in sets if known[0].shape[1] == width]}


class GATuner(Tuner):
    """Genetic search."""

    _search = "genetic"


class RandomTuner(Tuner):
    """Uniformly at random, without repetition."""

    _search = "random"


class GridSearchTuner(Tuner):
    """Every point in order."""

    _search = "grid"


def _result(record: Record) -> MeasureResult:
    return MeasureResult(tuple(record.times), int(not record.ok), record.error, record.timestamp)
