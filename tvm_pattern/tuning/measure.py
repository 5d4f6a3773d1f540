"""Measuring: candidates are built, verified and timed in processes of their own.

MetaSchedule's runners do the work, with inputs that are real packed weights. A candidate that
crashes, never ends or computes nonsense costs a worker process and becomes a failed trial.
"""

from __future__ import annotations

import tempfile
import time
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import tvm
from tvm.s_tir import meta_schedule as ms
from tvm.s_tir.meta_schedule.arg_info import ArgInfo, TensorInfo
from tvm.s_tir.meta_schedule.builder import BuilderInput
from tvm.s_tir.meta_schedule.runner import EvaluatorConfig, RunnerInput
from tvm.support.popen_pool import MapResult, PopenPoolExecutor, StatusKind
from tvm.target import Target

from relay_passes.targets import CPU_KINDS
from topi_kernels.conv_task import ConvTask
from topi_kernels.layout import PlaneLayout, to_planes
from topi_kernels.operator import ConvPlan, plan_conv
from topi_kernels.schedules.choose import Config
from topi_kernels.schedules.config import PATTERNS
from topi_kernels.structure import Structure

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
from . import worker
from .device_pool import DevicePool, Devices

_BUILDS_PER_PROCESS = 100
# A lost device may come back: a restarted tracker hears of its servers again after 5 s.
_RECONNECT_SECONDS = 30.0
_ATTEMPTS = 2


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
        smallest = min(self.number, self.repeat, self.build_workers)
        if smallest < 1 or min(self.build_timeout, self.run_timeout) <= 0:
            raise ValueError(
                "number, repeat and build_workers must be at least 1, time-outs above 0; got"
                f" {self}"
            )


@dataclass(frozen=True)
class Measurement:
    """Outcome of one candidate: times in seconds, or what went wrong."""

    times: tuple[float, ...]
    error_kind: str = "ok"
    error: str = ""


class TaskInputs:
    """Arguments of a task's operator, the right answer, and plans that are packed once per group.

    Parameters
    ----------
    task : ConvTask
    weight : numpy.ndarray
        ``[out_channels, in_channels, kh, kw]``.
    num_threads : int
    folder : Path
        Where workers find the inputs.
    structure : Structure, optional
        Which weights are kept.
    """

    def __init__(
        self,
        task: ConvTask,
        weight: np.ndarray,
        num_threads: int,
        folder: Path,
        structure: Structure | None = None,
    ) -> None:
        self.structure = structure
        self.task = task
        self.weight = weight
        self.num_threads = num_threads
        self.folder = folder
        rng = np.random.default_rng(zlib.crc32(task.key.encode()))
        self._x = _random_planes(rng, task.batch, weight.shape[1], task.in_layout, task.dtype)
        self._extra: list[np.ndarray] = []
        if task.epilogue.bias:
            self._extra.append(rng.standard_normal(weight.shape[:1]).astype(task.dtype))
        if task.epilogue.residual and task.residual_layout is not None:
            self._extra.append(
                _random_planes(rng, task.batch, weight.shape[0], task.residual_layout, task.dtype)
            )
        self._plans: dict[tuple[Any, ...], ConvPlan] = {}
        self._written: set[int] = set()
        self._answer_file = f"answer-{task.key}.npz"

    def plan(self, config: Config) -> ConvPlan:
        """The plan of a configuration; few of its knobs decide how weights are packed."""
        if _packing(config) not in self._plans:
            self._plans[_packing(config)] = plan_conv(
                self.task, self.weight, config, self.num_threads, self.structure
            )
        return replace(self._plans[_packing(config)], config=config)

    def arguments(self, plan: ConvPlan) -> list[np.ndarray]:
        """Arguments of the operator; the output starts as NaN, so that gaps are seen."""
        shape = (self.task.batch, self.weight.shape[0], self.task.out_layout.size)
        out = np.full(shape, np.nan, self.task.dtype)
        return [self._x, *plan.arrays, *self._extra, out]

    def token(self, plan: ConvPlan) -> int:
        """Write the inputs of a plan, once, and return the number that names them."""
        token = zlib.crc32(f"{self.task.key}/{_packing(plan.config)}".encode())
        if token not in self._written:
            if not (self.folder / self._answer_file).exists():
                answer, tolerance = self._answer(plan)
                np.savez(self.folder / self._answer_file, answer=answer, tolerance=tolerance)
            arrays = {f"a{i}": a for i, a in enumerate(self.arguments(plan))}
            path = worker.input_path(self.folder, token)
            arrays["answer_file"] = np.array(self._answer_file)
            np.savez(path, allow_pickle=False, **arrays)
            self._written.add(token)
        return token

    def _answer(self, plan: ConvPlan) -> tuple[np.ndarray, float]:
        """The naive operator's output, and the tolerance for another order of sums."""
        naive = plan.naive_primfunc().with_attr("global_symbol", worker.ENTRY)
        host = Target({"kind": "llvm", "mcpu": str(tvm.target.codegen.llvm_get_system_cpu())})
        library = tvm.compile(tvm.IRModule({worker.ENTRY: naive}), host)
        tensors = [tvm.runtime.tensor(a) for a in self.arguments(plan)]
        library[worker.ENTRY](*tensors)
        answer = tensors[-1].numpy()
        length = max(1, int(np.count_nonzero(self.weight.reshape(len(self.weight), -1), 1).max()))
        scale = max(1.0, float(np.abs(answer).max()))
        epsilon = float(np.finfo(self.task.dtype).eps) / 2
        return answer, 8 * float(np.sqrt(length)) * epsilon * scale + 1e-6


def _packing(config: Config) -> tuple[Any, ...]:
    """What decides how weights are packed: equal for configurations that take the same arrays."""
    if getattr(config, "body", PATTERNS) == PATTERNS:
        return (config.group,)
    return config.group, config.body, config.channel_block


def _random_planes(
    rng: np.random.Generator, batch: int, channels: int, layout: PlaneLayout, dtype: str
) -> np.ndarray:
    images = rng.standard_normal((batch, channels, layout.height, layout.width), np.float32)
    return to_planes(images.astype(dtype), layout)


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
        self._builder.shutdown()
        if self._runner is not None:
            self._runner.pool.shutdown()
        if self._pool is not None:
            self._pool.close()
        self._directory.cleanup()

    def inputs(
        self, task: ConvTask, weight: np.ndarray, structure: Structure | None = None
    ) -> TaskInputs:
        """The inputs of a task, prepared at the first call."""
        if task.key not in self._inputs:
            self._inputs[task.key] = TaskInputs(
                task, weight, self.num_threads, self.folder, structure
            )
        return self._inputs[task.key]

    def measure(
        self,
        task: ConvTask,
        weight: np.ndarray,
        configs: Sequence[Config],
        structure: Structure | None = None,
    ) -> list[Measurement]:
        """Outcome of every configuration, in order; ``structure`` says which weights are kept."""
        start = time.monotonic()
        inputs = self.inputs(task, weight, structure)
        candidates = []
        for config in configs:
            plan = inputs.plan(config)
            function = plan.primfunc().with_attr("global_symbol", worker.ENTRY)
            candidates.append((function, inputs.token(plan)))
        self.build_seconds += time.monotonic() - start
        return self.measure_functions(candidates)

    def measure_functions(self, candidates: Sequence[tuple[Any, int]]) -> list[Measurement]:
        """Outcome of every ``(PrimFunc, token of its inputs)``, in order."""
        start = time.monotonic()
        built = self._build([function for function, _ in candidates])
        self.build_seconds += time.monotonic() - start
        start = time.monotonic()
        jobs: dict[int, RunnerInput] = {}
        for i, (outcome, (function, token)) in enumerate(zip(built, candidates, strict=True)):
            if not isinstance(outcome, Measurement):
                infos = [*ArgInfo.from_prim_func(function), TensorInfo("int64", [token])]
                jobs[i] = RunnerInput(outcome, self._device_kind, infos)
        measured = self._run(jobs)
        results = [measured[i] if i in jobs else built[i] for i in range(len(built))]
        for job in jobs.values():
            Path(str(job.artifact_path)).unlink(missing_ok=True)
        self.run_seconds += time.monotonic() - start
        return results

    def _build(self, functions: Sequence[Any]) -> list[Any]:
        """Path of the library of every function, or a failed Measurement."""
        jobs = [BuilderInput(tvm.IRModule({worker.ENTRY: f}), self.target) for f in functions]
        outcomes: list[Any] = []
        result: MapResult
        for result in self._builder.map_with_error_catching(self._compile, jobs):
            if result.status == StatusKind.COMPLETE:
                outcomes.append(str(result.value))
            elif result.status == StatusKind.TIMEOUT:
                text = f"the build took longer than {self.options.build_timeout:g} s"
                outcomes.append(Measurement((), "build_timeout", text))
            else:
                outcomes.append(Measurement((), "build_error", _last_line(str(result.value))))
        return outcomes

    def _run(self, jobs: dict[int, RunnerInput]) -> dict[int, Measurement]:
        """Run all jobs; those that lost their device are tried again."""
        done: dict[int, Measurement] = {}
        waiting = dict(jobs)
        for attempt in range(_ATTEMPTS):
            if not waiting:
                break
            if attempt:
                self._await_device()
            for i, outcome in self._run_once(waiting).items():
                done[i] = outcome
            waiting = {i: jobs[i] for i in waiting if done[i].error_kind == "device_lost"}
        # Losing the device every time is what a candidate does that crashes it.
        for i in waiting:
            done[i] = Measurement((), "crash", done[i].error)
        return done

    def _run_once(self, jobs: dict[int, RunnerInput]) -> dict[int, Measurement]:
        if self._pool is not None:
            return {i: self._outcome(answer) for i, answer in self._pool.run(jobs).items()}
        runner = self.runner()
        outcomes: dict[int, Measurement] = {}
        for i, job in jobs.items():
            time.sleep(self.options.cooldown)
            (future,) = runner.run([job])
            outcomes[i] = self._outcome(future.result())
        return outcomes

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
        devices = Devices(
            self.client.host,
            self.client.port,
            str(self.options.key),
            self.options.run_timeout,
            self.options.cooldown,
            self._allocate,
            self._evaluator(),
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
