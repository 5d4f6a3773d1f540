"""What the candidates of a convolution of bytes are given, and what they shall answer."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import numpy as np

from topi_kernels.layout import to_planes
from topi_kernels.schedules.choose import Config
from topi_kernels.schedules.cpu_int8.byte_layout import padded_size
from topi_kernels.schedules.cpu_int8.layer import Int8Layer
from topi_kernels.schedules.cpu_int8.plan import (
    Int8DepthwisePlan,
    Int8Plan,
    plan_int8_conv,
    plan_int8_depthwise,
)
from topi_kernels.schedules.cpu_int8.quantisation import Quantisation
from topi_kernels.schedules.cpu_int8.reference import reference
from topi_kernels.schedules.cpu_int8.task import Int8Task
from topi_kernels.structure import Structure

from . import worker
from .task_inputs import TaskInputs

SOURCE, RESIDUAL = Quantisation(0.02, 7), Quantisation(0.03, 9)


class Int8Inputs(TaskInputs):
    """Weights of the network, and random scales, biases and images: time depends on none of these.

    Parameters
    ----------
    task : Int8Task
    weight : numpy.ndarray
        int8 ``[out_channels, in_channels of a filter, kh, kw]``.
    num_threads : int
    folder : Path
    structure : Structure
        Which weights are kept.
    """

    def __init__(
        self,
        task: Int8Task,
        weight: np.ndarray,
        num_threads: int,
        folder: Path,
        structure: Structure,
    ) -> None:
        super().__init__(task, num_threads, folder)
        self.task = task
        rng = np.random.default_rng(zlib.crc32(task.key.encode()))
        reach = float(np.abs(weight.astype(np.int64)).sum(axis=(1, 2, 3)).max(initial=1))
        unit = SOURCE.scale / 1000
        self.layer = Int8Layer(
            weight=weight,
            weight_scale=rng.uniform(0.5, 1.5, len(weight)).astype(np.float32) / 1000,
            bias=(rng.standard_normal(len(weight)) * reach * unit * 10).astype(np.float32),
            geometry=task.geometry,
            source=SOURCE,
            # So that sums of random bytes spread over all results.
            result=Quantisation(reach * unit / 2, 5),
            structure=structure,
            low=0.0,
            residual=RESIDUAL if task.residual else None,
        )
        shapes = [(task.in_channels, task.in_layout)]
        if task.residual:
            shapes.append((task.out_channels, task.out_layout))
        self._images = [
            rng.integers(0, 256, (task.batch, c, at.height, at.width), np.uint8) for c, at in shapes
        ]

    def packing(self, config: Config) -> tuple[Any, ...]:
        """Which bytes a shuffle picks is an array too."""
        return config.group, config.form

    def make_plan(self, config: Config) -> Int8Plan | Int8DepthwisePlan:
        task, layouts = self.task, (self.task.in_layout, self.task.out_layout)
        where: dict[str, Any] = {"config": config, "num_threads": self.num_threads}
        if task.depthwise:
            dims = (task.batch, task.in_channels)
            return plan_int8_depthwise(self.layer, dims, layouts, task.isa, **where)
        return plan_int8_conv(self.layer, task.batch, layouts, task.isa, **where)

    def arguments(self, plan: Int8Plan | Int8DepthwisePlan) -> list[np.ndarray]:
        x, *residual = self._images
        task, added = self.task, [to_planes(r, self.task.out_layout) for r in residual]
        out = worker.unset((task.batch, task.out_channels, task.out_layout.size), "uint8")
        return [to_planes(x, task.in_layout, SOURCE.zero_point), *plan.arrays, *added, out]

    def answer(self, plan: Int8Plan | Int8DepthwisePlan) -> tuple[np.ndarray, float]:
        """Whole numbers; with an added image they are rounded twice, so a step is allowed."""
        x, *residual = self._images
        layout = self.task.out_layout
        images = reference(self.layer, x, (layout.height, layout.width), *residual)
        planes = to_planes(images, layout, self.layer.result.zero_point).astype(np.float32)
        planes[..., padded_size(layout) :] = np.nan
        return planes, 1.0 if residual else 0.0
