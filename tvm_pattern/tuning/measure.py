"""Measuring: candidates are built, verified and timed in processes of their own.

MetaSchedule's runners do the work, with inputs that are real packed weights. A candidate that
crashes, never ends or computes nonsense costs a worker process and becomes a failed trial.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import tvm
from tvm.s_tir import meta_schedule as ms
from tvm.s_tir.meta_schedule.arg_info import ArgInfo, TensorInfo
from tvm.s_tir.meta_schedule.builder import BuilderInput
from tvm.s_tir.meta_schedule.runner import EvaluatorConfig, RunnerInput
from tvm.support.popen_pool import PopenPoolExecutor
from tvm.target import Target

from relay_passes.targets import CPU_KINDS
from topi_kernels.conv_task import ConvTask
from topi_kernels.schedules.choose import Config
from topi_kernels.structure import Structure
from topi_kernels.task import Task

from ..crosscompile import linker_for
from ..devices import why_no_device
from ..machine import (
    required_features,
    target_architecture,
    why_not_runnable,
)
from ..rpc.client import RPCError, TrackerClient, TrackerUnreachableError, parse_address
from ..rpc.doctor import check_target
from ..rpc.messages import means
from ..threads import available_cpus
from . import worker
from .device_pool import DevicePool, Devices
from .held_devices import Evaluation
from .int8_inputs import Int8Inputs
from .pipeline import Pipeline
from .task_inputs import FloatInputs, TaskInputs

_BUILDS_PER_PROCESS = 100
# A lost device may come back: a restarted tracker hears of its servers again after 5 s.
_RECONNECT_SECONDS = 30.0


@dataclass(frozen=True)
class MeasureOptions:
    """How candidates are measured.

    Parameters
    ----------
    build_timeout, run_timeout : float
        Seconds for one candidate.
    number, repeat, min_repeat_ms : int
        Calls per repeat, repeats, and the least duration of a repeat.
    cooldown : float
        Seconds of rest before each candidate, for phones that throttle.
    clock : str
        ``wall``, or ``cpu`` to count only the time spent computing (local, one thread).
    build_workers : int
        Candidates built at a time.
    tracker, key : str, optional
        ``HOST:PORT`` of a tracker and the key of its devices; without them this machine measures.
    cpu : int, optional
        Core to measure on, of this machine.
    """

    build_timeout: float = 120.0
    run_timeout: float = 60.0
    number: int = 1
    repeat: int = 8
    min_repeat_ms: int = 10
    cooldown: float = 0.0
    clock: str = "wall"
    build_workers: int = 1
    tracker: str | None = None
    key: str | None = None
    cpu: int | None = None

    def __post_init__(self) -> None:
        if self.clock not in ("wall", "cpu"):
            raise ValueError(f"clock {self.clock!r}: expected 'wall' or 'cpu'")
        if (self.tracker is None) != (self.key is None):
            raise ValueError(
                f"tracker {self.tracker!r} and key {self.key!r}: give both to measure on devices,"
                " or neither to measure on this machine"
            )
        if self.tracker is not None and self.clock == "cpu":
            raise ValueError("clock 'cpu' works on this machine only; leave it out with a tracker")
        counts = {name: getattr(self, name) for name in ("number", "repeat", "build_workers")}
        small = [f"{name}={value}" for name, value in counts.items() if value < 1]
        if small:
            raise ValueError(f"got {' and '.join(small)}, expected at least 1")
        for name in ("build_timeout", "run_timeout"):
            seconds = getattr(self, name)
            if not 0 < seconds < math.inf:
                raise ValueError(f"got {name}={seconds}, expected seconds above 0")
        if not 0 <= self.cooldown < math.inf:
            raise ValueError(f"got cooldown={self.cooldown}, expected seconds, 0 for none")
        if self.cpu is not None and self.cpu not in available_cpus():
            raise ValueError(
                f"got cpu={self.cpu}, expected one of those that this process may use:"
                f" {available_cpus()}"
            )


@dataclass(frozen=True)
class Measurement:
    """Outcome of one candidate: times in seconds, or what went wrong."""

    times: tuple[float, ...]
    error_kind: str = "ok"
    error: str = ""


class Measurer:
    """Builds and measures candidates of any task for one target.

    A context manager: leaving it ends the worker processes and removes their files.

    Parameters
    ----------
    target : tvm.target.Target
    num_threads : int
    options : MeasureOptions

    Attributes
    ----------
    build_seconds, run_seconds : float
        Wall time so far: of packing, right answers and building; of verified and timed runs.

    Raises
    ------
    ValueError
        If this machine is to measure but cannot run code for the target.
    RPCError
        If the tracker or its devices cannot be used, or a device cannot run code for the target.
    """

    def __init__(self, target: Target, num_threads: int, options: MeasureOptions) -> None:
        self.target = target
        self.num_threads = num_threads
        self.options = options
        self.client: TrackerClient | None = None
        if options.tracker is not None:
            self.client = TrackerClient(*parse_address(options.tracker))
            self.client.count(str(options.key))
            check_target(self.client, str(options.key), target, linker_for(target))
        else:
            reason = why_not_runnable(target_architecture(target), required_features(target))
            reason = reason or why_no_device(target)
            if reason is not None:
                raise ValueError(
                    f"this machine cannot measure for the target: {reason}; choose another target,"
                    " or a device of that kind by --tracker and --key"
                )
        kind = target.kind.name
        self._device_kind = "cpu" if kind in CPU_KINDS else kind
        self._directory = tempfile.TemporaryDirectory(prefix="tvm-pattern-tuning-")
        self.folder = Path(self._directory.name)
        self._allocate = partial(worker.allocate, str(self.folder))
        self._compile = partial(worker.build_library, str(self.folder), linker_for(target))
        self._builder = PopenPoolExecutor(
            max_workers=options.build_workers,
            timeout=options.build_timeout,
            maximum_process_uses=_BUILDS_PER_PROCESS,
        )
        self._builds: set[Future] = set()
        self._runner: Any = None
        self._pool = self._device_pool()
        self._inputs: dict[str, TaskInputs] = {}
        self.build_seconds = 0.0
        self.run_seconds = 0.0

    def __enter__(self) -> Measurer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the workers and remove their files."""
        for build in list(self._builds):
            build.cancel()
        self._builder.shutdown()
        if self._runner is not None:
            self._runner.pool.shutdown()
        if self._pool is not None:
            self._pool.close()
        self._directory.cleanup()

    def inputs(
        self, task: Task, weight: np.ndarray, structure: Structure | None = None
    ) -> TaskInputs:
        """The inputs of a task, prepared at the first call."""
        if task.key not in self._inputs:
            where = (self.num_threads, self.folder)
            if isinstance(task, ConvTask):
                self._inputs[task.key] = FloatInputs(task, weight, *where, structure)
            elif structure is None:
                raise ValueError(f"{task.label}: weights of bytes come with their structure")
            else:
                self._inputs[task.key] = Int8Inputs(task, weight, *where, structure)
        return self._inputs[task.key]

    def measure(
        self,
        task: Task,
        weight: np.ndarray,
        configs: Sequence[Config],
        structure: Structure | None = None,
    ) -> list[Measurement]:
        """Outcome of every configuration, in order; ``structure`` says which weights are kept."""
        start = time.monotonic()
        candidates = [self.candidate(task, weight, config, structure) for config in configs]
        self.build_seconds += time.monotonic() - start
        return self.measure_functions(candidates)

    def candidate(
        self,
        task: Task,
        weight: np.ndarray,
        config: Config,
        structure: Structure | None = None,
    ) -> tuple[Any, int]:
        """The PrimFunc of a configuration, and the token of its inputs."""
        inputs = self.inputs(task, weight, structure)
        plan = inputs.plan(config)
        return plan.primfunc().with_attr("global_symbol", worker.ENTRY), inputs.token(plan)

    def measure_functions(self, candidates: Sequence[tuple[Any, int]]) -> list[Measurement]:
        """Outcome of every ``(PrimFunc, token of its inputs)``, in order."""
        if self._pool is not None:
            return self._measure_on_devices(candidates)
        start = time.monotonic()
        builds = [self._build(function) for function, _ in candidates]
        built = [_outcome_of(build, self._judge_build) for build in builds]
        self.build_seconds += time.monotonic() - start
        start = time.monotonic()
        results = [
            outcome if isinstance(outcome, Measurement) else self._run(outcome, *candidate)
            for outcome, candidate in zip(built, candidates, strict=True)
        ]
        self.run_seconds += time.monotonic() - start
        return results

    def _measure_on_devices(self, candidates: Sequence[tuple[Any, int]]) -> list[Measurement]:
        start = time.monotonic()
        pipeline = self.pipeline()
        numbers = [pipeline.add(*candidate) for candidate in candidates]
        outcomes = dict(pipeline.next() for _ in numbers)
        self.run_seconds += time.monotonic() - start
        return [outcomes[number] for number in numbers]

    def pipeline(self) -> Pipeline:
        """Candidates built and measured as they come, on the devices of a tracker.

        Raises
        ------
        ValueError
            If this machine measures: it does one thing at a time.
        """
        if self._pool is None:
            raise ValueError("this machine measures one candidate at a time: give a tracker")
        return Pipeline(
            self._build,
            self._pool,
            self._device_kind,
            self._judge_build,
            self._outcome,
            self._await_device,
        )

    def _build(self, function: Any) -> Future:
        """Path of the function's library."""
        job = BuilderInput(tvm.IRModule({worker.ENTRY: function}), self.target)
        future: Future = self._builder.submit(self._compile, job)
        self._builds.add(future)
        future.add_done_callback(self._builds.discard)
        return future

    def _judge_build(self, error: BaseException) -> Measurement:
        if isinstance(error, TimeoutError):
            text = f"the build took longer than {self.options.build_timeout:g} s"
            return Measurement((), "build_timeout", text)
        return Measurement((), "build_error", _last_line(str(error)))

    def _run(self, library: str, function: Any, token: int) -> Measurement:
        """Outcome of a candidate on this machine."""
        time.sleep(self.options.cooldown)
        infos = [*ArgInfo.from_prim_func(function), TensorInfo("int64", [token])]
        (future,) = self.runner().run([RunnerInput(library, self._device_kind, infos)])
        outcome = self._outcome(future.result())
        Path(library).unlink(missing_ok=True)
        return outcome

    @property
    def devices(self) -> int:
        """How many candidates are measured at once."""
        return 1 if self._pool is None else self._pool.devices

    def _outcome(self, result: Any) -> Measurement:
        if result.error_msg is None:
            return Measurement(tuple(float(t) for t in result.run_secs))
        message = str(result.error_msg)
        kind = classify_run_error(message, remote=self.client is not None)
        if kind == "run_timeout":
            return Measurement((), kind, f"no result within {self.options.run_timeout:g} s")
        return Measurement((), kind, _last_line(message))

    def runner(self) -> Any:
        """MetaSchedule's runner on this machine, started at the first call."""
        if self._runner is None:
            self._runner = self._local_runner()
        return self._runner

    def _evaluator(self) -> EvaluatorConfig:
        o = self.options
        return EvaluatorConfig(number=o.number, repeat=o.repeat, min_repeat_ms=o.min_repeat_ms)

    def _local_runner(self) -> Any:
        cpu_clock, cpu = self.options.clock == "cpu", self.options.cpu
        return ms.runner.LocalRunner(
            timeout_sec=self.options.run_timeout,
            evaluator_config=self._evaluator(),
            f_alloc_argument=self._allocate,
            f_run_evaluator=worker.evaluate_cpu_clock if cpu_clock else worker.evaluate,
            initializer=partial(worker.prepare, cpu, self._device_kind),
        )

    def _device_pool(self) -> DevicePool | None:
        if self.client is None:
            return None
        o = self.options
        devices = Devices(
            self.client.host,
            self.client.port,
            str(o.key),
            o.run_timeout,
            o.cooldown,
            self._allocate,
            Evaluation(o.number, o.repeat, o.min_repeat_ms),
        )
        return DevicePool(devices)

    def _await_device(self) -> None:
        """Wait for the tracker to list a device again.

        Raises
        ------
        RPCError
            If that does not happen in time; it names the command to start what is missing.
        """
        if self.client is None:
            return
        deadline = time.monotonic() + _RECONNECT_SECONDS
        while True:
            try:
                self.client.count(str(self.options.key))
                return
            except RPCError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.5)


def classify_run_error(message: str, *, remote: bool) -> str:
    """Error kind of a runner's message; ``remote`` where devices over RPC run."""
    if worker.WRONG_RESULT in message:
        return "wrong_result"
    if means(message, "time_over"):
        return "run_timeout"
    if means(message, "process_died"):
        return "crash"
    if remote and means(message, "lost"):
        return "device_lost"
    return "run_error"


def _outcome_of(build: Future, judge: Callable[[BaseException], Measurement]) -> str | Measurement:
    error = build.exception()
    return str(build.result()) if error is None else judge(error)


def _last_line(message: str) -> str:
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    return lines[-1][:300] if lines else "no message"


__all__ = [
    "MeasureOptions",
    "Measurement",
    "Measurer",
    "TaskInputs",
    "TrackerUnreachableError",
    "classify_run_error",
]
