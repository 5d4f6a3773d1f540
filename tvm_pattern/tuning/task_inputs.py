"""What a task's candidates are given, and what they shall answer: written once for all workers."""

from __future__ import annotations

import zlib
from abc import ABC, abstractmethod
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import tvm
from tvm.target import Target

from topi_kernels.conv_task import ConvTask
from topi_kernels.layout import PlaneLayout, to_planes
from topi_kernels.operator import ConvPlan, plan_conv
from topi_kernels.schedules.choose import Config
from topi_kernels.structure import Structure, longest_sum
from topi_kernels.task import Task

from . import worker


class TaskInputs(ABC):
    """Arguments of a task's operator, the right answer, and plans that are packed once.

    Parameters
    ----------
    task : ConvTask or Int8Task
    num_threads : int
    folder : Path
        Where workers find the inputs.
    """

    def __init__(self, task: Task, num_threads: int, folder: Path) -> None:
        self.num_threads = num_threads
        self.folder = folder
        self.key = task.key
        self._plans: dict[tuple[Any, ...], Any] = {}
        self._written: set[int] = set()
        self._answer_file = f"answer-{task.key}.npz"

    def packing(self, config: Config) -> tuple[Any, ...]:
        """Equal for configs that take the same arrays."""
        return tuple(config.packing)

    @abstractmethod
    def make_plan(self, config: Config) -> Any:
        """The plan of a configuration, weights packed."""

    @abstractmethod
    def arguments(self, plan: Any) -> list[np.ndarray]:
        """Arguments of the operator; the output starts as nothing, so that gaps are seen."""

    @abstractmethod
    def answer(self, plan: Any) -> tuple[np.ndarray, float]:
        """The right output, NaN where anything may stand, and the tolerance."""

    def plan(self, config: Config) -> Any:
        """The plan of a configuration; few of its knobs decide how weights are packed."""
        packing = self.packing(config)
        if packing not in self._plans:
            self._plans[packing] = self.make_plan(config)
        return replace(self._plans[packing], config=config)

    def token(self, plan: Any) -> int:
        """Write the inputs of a plan, once, and return the number that names them."""
        token = zlib.crc32(f"{self.key}/{self.packing(plan.config)}".encode())
        if token not in self._written:
            if not (self.folder / self._answer_file).exists():
                answer, tolerance = self.answer(plan)
                np.savez(self.folder / self._answer_file, answer=answer, tolerance=tolerance)
            arrays = {f"a{i}": a for i, a in enumerate(self.arguments(plan))}
            path = worker.input_path(self.folder, token)
            arrays["answer_file"] = np.array(self._answer_file)
            np.savez(path, allow_pickle=False, **arrays)
            self._written.add(token)
        return token


class FloatInputs(TaskInputs):
    """Of a convolution of float32 or float16.

    Parameters
    ----------
    task : ConvTask
    weight : numpy.ndarray
        ``[out_channels, in_channels, kh, kw]``.
    num_threads : int
    folder : Path
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
        super().__init__(task, num_threads, folder)
        self.structure = structure
        self.task = task
        self.weight = weight
        rng = np.random.default_rng(zlib.crc32(task.key.encode()))
        self._x = _random_planes(rng, task.batch, weight.shape[1], task.in_layout, task.dtype)
        self._extra: list[np.ndarray] = []
        if task.epilogue.bias:
            self._extra.append(rng.standard_normal(weight.shape[:1]).astype(task.dtype))
        if task.epilogue.residual and task.residual_layout is not None:
            self._extra.append(
                _random_planes(rng, task.batch, weight.shape[0], task.residual_layout, task.dtype)
            )

    def make_plan(self, config: Config) -> ConvPlan:
        return plan_conv(self.task, self.weight, config, self.num_threads, self.structure)

    def arguments(self, plan: ConvPlan) -> list[np.ndarray]:
        shape = (self.task.batch, self.weight.shape[0], self.task.out_layout.size)
        out = worker.unset(shape, self.task.dtype)
        return [self._x, *plan.arrays, *self._extra, out]

    def answer(self, plan: ConvPlan) -> tuple[np.ndarray, float]:
        """The naive operator's output, and the tolerance for another order of sums."""
        naive = plan.naive_primfunc().with_attr("global_symbol", worker.ENTRY)
        host = Target({"kind": "llvm", "mcpu": str(tvm.target.codegen.llvm_get_system_cpu())})
        library = tvm.compile(tvm.IRModule({worker.ENTRY: naive}), host)
        tensors = [tvm.runtime.tensor(a) for a in self.arguments(plan)]
        library[worker.ENTRY](*tensors)
        answer = tensors[-1].numpy()
        length = longest_sum(self.weight)
        scale = max(1.0, float(np.abs(answer).max()))
        epsilon = float(np.finfo(self.task.dtype).eps) / 2
        return answer, 8 * float(np.sqrt(length)) * epsilon * scale + 1e-6


def _random_planes(
    rng: np.random.Generator, batch: int, channels: int, layout: PlaneLayout, dtype: str
) -> np.ndarray:
    images = rng.standard_normal((batch, channels, layout.height, layout.width), np.float32)
    return to_planes(images.astype(dtype), layout)
