"""The search over a network's convolutions: tasks, tuners, measuring and records together."""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tvm.target import Target

from relay_passes import targets as target_tags
from topi_kernels.schedules.choose import Config
from topi_kernels.task import Task, task_from_dict

from ..frontend import import_model
from ..locks import locked
from ..threads import check_num_threads
from .cost_model import MeasuredSet
from .environment import device_name, target_dict, tool_versions
from .features import config_features
from .lookup import config_of
from .measure import Measurement, MeasureOptions, Measurer
from .overlapped import search_overlapped
from .records import LogError, Record, TuningLog
from .scheduler import NetworkEstimate, TaskState, network_estimate, next_task
from .space import Space
from .tasks import WeightedTask, extract_tasks
from .tuners import TUNERS, make_tuner

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TuneOptions:
    """How to search.

    Parameters
    ----------
    trials : int
        Measurements in all, over all tasks; with ``resume`` those in the log count.
    tuner : str
        ``xgb``, ``random``, ``grid`` or ``genetic``.
    batch : int
        Candidates measured between two looks at the results; with several devices, proposed at a
        time, while others are being measured.
    early_stop : int, optional
        Trials of a task without improvement after which it is left alone.
    seed : int
    epsilon : float
        Random fraction of the xgb tuner's batches.
    warm_start : tuple of str or Path
        Logs of other networks, targets or devices for the cost model to learn from.
    resume : bool
        Continue the log instead of refusing one that exists.
    extra_knobs : dict, optional
        See :class:`tvm_pattern.tuning.space.Space`.
    measure : MeasureOptions
    """

    trials: int = 1000
    tuner: str = "xgb"
    batch: int = 8
    early_stop: int | None = 150
    seed: int = 0
    epsilon: float = 0.1
    warm_start: tuple[str | os.PathLike, ...] = ()
    resume: bool = False
    extra_knobs: dict[str, Sequence[Any]] | None = None
    measure: MeasureOptions = field(default_factory=MeasureOptions)

    def __post_init__(self) -> None:
        if self.tuner not in TUNERS:
            raise ValueError(f"unknown tuner {self.tuner!r}; expected one of {sorted(TUNERS)}")
        if self.trials < 1 or self.batch < 1:
            raise ValueError(
                f"trials and batch must be at least 1, got {self.trials} and {self.batch}"
            )
        if self.early_stop is not None and self.early_stop < 1:
            raise ValueError(f"early_stop must be at least 1 or None, got {self.early_stop}")
        if not 0 <= self.epsilon <= 1:
            raise ValueError(f"epsilon is a fraction from 0 to 1, got {self.epsilon}")


# Seconds that a candidate takes besides being timed: packing, building, verifying, loading.
_TRIAL_OVERHEAD = 1.3
# Trials of a task after which `xgb` had 97 % of the best on every layer that was measured.
_TRIALS_A_TASK = 100


@dataclass(frozen=True)
class Plan:
    """What a search is about to do.

    Parameters
    ----------
    states : sequence of TaskState
        A task for each distinct convolution, with the layers that it stands for.
    trials : int
        Measurements to come, at most.
    seconds : float
        A rough estimate of how long they take: the time of timing, and a constant for the rest.
    devices : int
        That measure at the same time.
    """

    states: Sequence[TaskState]
    trials: int
    seconds: float
    devices: int

    @property
    def sensible_trials(self) -> int:
        """As many as are worth their time, over all tasks."""
        return sum(min(len(state.space), _TRIALS_A_TASK) for state in self.states)


@dataclass(frozen=True)
class Progress:
    """State of a search after a batch, for whoever shows it."""

    states: Sequence[TaskState]
    current: TaskState
    trials: int
    total_trials: int
    failed: int
    seconds: float

    @property
    def network(self) -> NetworkEstimate:
        """Time of all tuned convolutions of the network at their best so far."""
        return network_estimate(self.states)

    @property
    def eta_seconds(self) -> float:
        """Estimated remaining time of the search."""
        if not self.trials:
            return float("inf")
        return self.seconds / self.trials * (self.total_trials - self.trials)


@dataclass(frozen=True)
class TuneResult:
    """What a search found.

    Parameters
    ----------
    log : Path
    states : tuple of TaskState
    trials, failed : int
        Measurements of this run, and how many of them failed.
    seconds, measure_seconds : float
        Wall time of the search, and the part spent building and running candidates.
    """

    log: Path
    states: tuple[TaskState, ...]
    trials: int
    failed: int
    seconds: float
    measure_seconds: float

    @property
    def overhead(self) -> float:
        """Fraction of the wall time that was not measuring."""
        return 1.0 - self.measure_seconds / self.seconds if self.seconds else 0.0

    @property
    def network(self) -> NetworkEstimate:
        """Time of all tuned convolutions of the network, at their best and at level 0."""
        return network_estimate(self.states)


def make_record(
    task: Task,
    config: Config,
    outcome: Measurement | None,
    target: Target,
    device: str,
    num_threads: int,
    versions: dict[str, str],
) -> Record:
    """The record of one measurement; ``outcome`` None makes one that never ran."""
    outcome = outcome or Measurement((), "run_error", "not measured")
    if not all(0 < t < math.inf for t in outcome.times):
        outcome = Measurement((), "run_error", f"the timer gave {outcome.times} seconds")
    return Record(
        task_key=task.key,
        task=task.as_dict(),
        config=config.as_dict(),
        times=outcome.times,
        error_kind=outcome.error_kind,
        error=outcome.error,
        target=target_dict(target),
        device=device,
        num_threads=num_threads,
        versions=versions,
        timestamp=round(time.time(), 3),
    )


def warm_start_sets(records: Iterable[Record]) -> list[MeasuredSet]:
    """Records as training sets of the cost model, one per task and device.

    Records that this version cannot read are left out with a warning.
    """
    grouped: dict[tuple[str, str, int], list[Record]] = {}
    for record in records:
        where = (record.task_key, record.device, record.num_threads)
        grouped.setdefault(where, []).append(record)
    sets = []
    for same in grouped.values():
        try:
            task = task_from_dict(same[0].task)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            logger.warning("skipped records of task %s: %s", same[0].task_key, error)
            continue
        usable = [(c, r.seconds) for c, r in zip(_configs(same), same, strict=True) if c]
        features = [config_features(task, c, task.cost(c)) for c, _ in usable]
        if usable:
            sets.append((np.stack(features), np.array([seconds for _, seconds in usable])))
    return sets


def _configs(records: Iterable[Record]) -> list[Config | None]:
    """The configurations of records, None for those of another version of the knobs."""
    configs: list[Config | None] = []
    for record in records:
        try:
            configs.append(config_of(record))
        except LogError as error:
            logger.warning("skipped a record of task %s: %s", record.task_key, error)
            configs.append(None)
    return configs


class Search:
    """One search over given tasks; :func:`tune` makes one for a model.

    Parameters
    ----------
    tasks : list of WeightedTask
    target : tvm.target.Target
    log : TuningLog
    options : TuneOptions
    num_threads : int

    Raises
    ------
    ValueError
        If there are no tasks.
    LogError
        If the log exists and ``options.resume`` is False, or cannot be read.
    """

    def __init__(
        self,
        tasks: list[WeightedTask],
        target: Target,
        log: TuningLog,
        options: TuneOptions,
        num_threads: int = 1,
    ) -> None:
        if not tasks:
            raise ValueError(
                "the module has no convolution to tune; see the report of compile for the reasons"
            )
        self.target = target
        self.log = log
        self.options = options
        self.num_threads = num_threads
        self.device = options.measure.key or device_name()
        self.versions = tool_versions()
        known: list[Record] = []
        if log.path.exists() and log.path.stat().st_size:
            if not options.resume:
                raise LogError(
                    f"{log.path} exists; continue it with --resume, or choose another file"
                )
            known, bad = log.read()
            for line in bad:
                logger.warning("skipped: %s", line)
        warm_start: list[MeasuredSet] = []
        if options.tuner == "xgb":
            others = [r for path in options.warm_start for r in TuningLog(path).records()]
            warm_start = warm_start_sets(others)
        self.states = [self._state(weighted, warm_start) for weighted in tasks]
        self.trials = sum(self._replay(state, known) for state in self.states)
        self.failed = 0

    def _state(self, weighted: WeightedTask, warm_start: list[MeasuredSet]) -> TaskState:
        options = self.options
        space = Space(weighted.task, options.extra_knobs)
        extra: dict[str, Any] = {}
        if options.tuner == "xgb":
            width = space.features([0]).shape[1]  # of other kinds of devices it is another one
            usable = [known for known in warm_start if known[0].shape[1] == width]
            extra = {"epsilon": options.epsilon, "warm_start": usable}
        tuner = make_tuner(options.tuner, space, options.seed, **extra)
        return TaskState(weighted, space, tuner, options.early_stop)

    def _replay(self, state: TaskState, known: list[Record]) -> int:
        """Feed the records of an earlier run to a task; returns how many."""
        where = (state.weighted.task.key, self.device, self.num_threads)
        same = [r for r in known if (r.task_key, r.device, r.num_threads) == where]
        positions, seconds = [], []
        for record, config in zip(same, _configs(same), strict=True):
            position = None if config is None else state.space.position(config)
            if position is not None:
                positions.append(position)
                seconds.append(record.seconds)
        if positions:
            state.update(positions, seconds)
        return len(positions)

    def plan(self, devices: int = 1) -> Plan:
        """What :meth:`run` will do with this many devices."""
        left = sum(len(state.space) - state.trials for state in self.states)
        trials = max(0, min(self.options.trials - self.trials, left))
        measure = self.options.measure
        timing = (measure.repeat + 1) * measure.min_repeat_ms / 1e3 + measure.cooldown
        seconds = trials * (_TRIAL_OVERHEAD + timing) / max(devices, 1)
        return Plan(self.states, trials, seconds, devices)

    def run(
        self, measurer: Measurer, callback: Callable[[Progress], None] | None = None
    ) -> TuneResult:
        """Search until the trials are used up or every task is finished."""
        start = time.monotonic()
        before = measurer.build_seconds + measurer.run_seconds
        first = self.trials

        def tell(state: TaskState) -> None:
            if callback is not None:
                seconds = time.monotonic() - start
                trials, total = self.trials - first, self.options.trials - first
                callback(Progress(self.states, state, trials, total, self.failed, seconds))

        if measurer.devices > 1:
            search_overlapped(self, measurer, tell)
        else:
            self._search_by_batches(measurer, tell)
        measured = measurer.build_seconds + measurer.run_seconds - before
        return TuneResult(
            self.log.path,
            tuple(self.states),
            self.trials - first,
            self.failed,
            time.monotonic() - start,
            measured,
        )

    def _search_by_batches(self, measurer: Measurer, tell: Callable[[TaskState], None]) -> None:
        while self.trials < self.options.trials:
            state = next_task(self.states)
            if state is None:
                break
            indices = self.propose(
                state, min(self.options.batch, self.options.trials - self.trials)
            )
            configs = [state.space.configs[i] for i in indices]
            weighted = state.weighted
            outcomes = measurer.measure(weighted.task, weighted.weight, configs, weighted.structure)
            seconds = [
                self.record(state, index, outcome)
                for index, outcome in zip(indices, outcomes, strict=True)
            ]
            state.update(indices, seconds)
            tell(state)

    def propose(self, state: TaskState, count: int) -> list[int]:
        """Up to ``count`` points of a task's space to measure next; level 0 is the first of all."""
        indices = []
        default = state.space.default
        if default is not None and not state.trials and not state.pending:
            # Every tuner is held against level 0.
            state.tuner.update([default], [float("inf")])
            indices.append(default)
        return indices + state.tuner.propose(count - len(indices))

    def record(self, state: TaskState, index: int, outcome: Measurement) -> float:
        """Write what came of a point to the log; its seconds, infinite if it failed."""
        record = make_record(
            state.weighted.task,
            state.space.configs[index],
            outcome,
            self.target,
            self.device,
            self.num_threads,
            self.versions,
        )
        self.log.append(record)
        self.failed += not record.ok
        self.trials += 1
        return record.seconds


def tune(
    model: Any,
    example_inputs: Any = None,
    target: str | dict | Target = "pattern/native",
    log: str | os.PathLike = "tuning.jsonl",
    options: TuneOptions | None = None,
    num_threads: int | None = None,
    callback: Callable[[Progress], None] | None = None,
    host: str | dict | Target | None = None,
    *,
    interleaved_lanes: bool | None = None,
    on_plan: Callable[[Plan], None] | None = None,
) -> TuneResult:
    """Tune the convolutions of a pruned model by measuring.

    Parameters
    ----------
    model, example_inputs
        As :func:`tvm_pattern.compile`.
    target : str, dict or tvm.target.Target
    log : str or os.PathLike
        Where the records go; give it to ``compile(tuning_log=...)`` afterwards.
    options : TuneOptions, optional
    num_threads : int, optional
        Threads that the operators are scheduled for and measured with.
    callback : callable, optional
        Called with a :class:`Progress` after every batch.
    host : str, dict or tvm.target.Target, optional
        The CPU beside a GPU target, as for :func:`tvm_pattern.compile`.
    interleaved_lanes : bool, optional
        As for :func:`tvm_pattern.compile`, which only finds the records of the same choice.
    on_plan : callable, optional
        Called once with a :class:`Plan`, before anything is built.

    Returns
    -------
    TuneResult

    Raises
    ------
    ValueError, TypeError
        On a model, target or option that cannot be used.
    LogError
        If the log cannot be read or written.
    RPCError
        If the tracker or its devices cannot be used.
    LockError
        If another run tunes into the same log.

    Examples
    --------
    >>> result = tvm_pattern.tune(model, x, log="resnet50.jsonl")  # doctest: +SKIP
    >>> library = tvm_pattern.compile(model, x, tuning_log=result.log)  # doctest: +SKIP
    """
    options = options or TuneOptions()
    threads = check_num_threads(num_threads)
    resolved = target_tags.resolve(target, host)
    # First, so that a device that is missing or of another kind is known at once.
    with Measurer(resolved, threads, options.measure) as measurer:
        # Only its convolutions are asked for, so what else it holds may be left to torch.
        imported = import_model(model, example_inputs, host_operators=True)
        tasks = extract_tasks(
            imported.mod,
            resolved,
            threads,
            imported.structures,
            interleaved_lanes=interleaved_lanes,
        )
        with locked(log, "tuning into"):
            search = Search(tasks, resolved, TuningLog(log), options, threads)
            if on_plan is not None:
                on_plan(search.plan(measurer.devices))
            return search.run(measurer, callback)
