"""Convolutions of networks on GPU targets: plan, what the source says, model, execution."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from relay_passes import targets
from topi_kernels.backend import Backend
from topi_kernels.conv_task import ConvTask
from topi_kernels.geometry import ConvGeometry
from topi_kernels.schedules.opencl.config import GpuConfig, GpuFacts
from topi_kernels.schedules.opencl.cost import Roofline, register_need, roofline, waste
from topi_kernels.schedules.opencl.source import kernel_sources
from topi_kernels.schedules.opencl.static_facts import static_facts
from topi_kernels.workload import Epilogue
from tvm_pattern.opencl.bundle import write_bundle

from .arm_static import Layer, weights
from .oclgrind import Executed, count

#: Filters that are run in the simulator: each does the same work, and takes seconds.
COUNTED_FILTERS = 8
#: Multiply-adds that loads are compared with: the elements that one load of float32 brings.
LANES = 4


@dataclass(frozen=True)
class Case:
    """One convolution with bias and ReLU on one device.

    Parameters
    ----------
    layer : Layer
    group : int
        Filters that share kernels and patterns; 0 is the dense layer.
    device : str
        ``mali`` or ``adreno``.
    dtype : str
    """

    layer: Layer
    group: int
    device: str
    dtype: str = "float32"

    @cached_property
    def weight(self) -> np.ndarray:
        """``[out_channels, in_channels, kernel, kernel]``."""
        return _weights(self.layer, self.group).astype(self.dtype)

    def task_of(self, weight: np.ndarray) -> ConvTask:
        """The layer with some of its filters."""
        layer, backend = self.layer, Backend.named(self.device)
        pad = layer.kernel // 2
        sizes = ((layer.size, pad), (layer.out_size, 1))
        layouts = [backend.layout_for(n, n, p, self.dtype) for n, p in sizes]
        move = ConvGeometry((layer.kernel,) * 2, (layer.stride,) * 2, (pad, pad))
        epilogue = Epilogue(True, False, "relu")
        return ConvTask.from_weight(weight, move, *layouts, family=self.device, epilogue=epilogue)

    @cached_property
    def task(self) -> ConvTask:
        """The whole layer."""
        return self.task_of(self.weight)

    @cached_property
    def config(self) -> GpuConfig:
        """The level-0 configuration of the whole layer."""
        return self.task.default_config()

    @property
    def facts(self) -> GpuFacts:
        """What the schedules know of the device."""
        return cast(GpuFacts, self.task.machine)

    @property
    def model(self) -> Roofline:
        """Microseconds by the roofline model."""
        return roofline(self.task.shape, self.config, self.facts)

    def static(self) -> dict[str, Any]:
        """What the emitted source promises, without a device."""
        some = self.weight[:COUNTED_FILTERS]
        plan = Backend.named(self.device).plan(self.task_of(some), some, self.config)
        (kernel,) = kernel_sources(plan.primfunc(), targets.resolve(f"pattern/{self.device}"))
        facts = static_facts(kernel.source)
        loads = [loop.loads_per_multiply_add for loop in facts.loops]
        return {
            "loads_per_four_multiply_adds": LANES
            * float(np.mean(loads))
            / self.config.vector_width,
            "private_bytes": facts.private_bytes,
            "dynamically_indexed": list(facts.dynamic),
            "local_bytes": facts.local_bytes,
            "registers": register_need(self.task.shape, self.config, self.facts),
            "computed_over_wanted": waste(self.task.shape, self.config),
            "work_items": list(kernel.work_items),
        }

    def bundle(self, folder: Path) -> Path:
        """A bundle of the first filters of the layer, computed as the whole layer is."""
        some = np.ascontiguousarray(self.weight[:COUNTED_FILTERS])
        target = targets.resolve(f"pattern/{self.device}")
        return write_bundle(folder, self.task_of(some), some, target, configs=[self.config])

    def executed(self, folder: Path) -> Executed:
        """Instructions of the first filters, counted; float32 only, which the simulator has."""
        return count(self.bundle(folder))

    def executed_dense(self, folder: Path) -> Executed:
        """The same of all weights of these filters, computed by the same tile."""
        dense = Case(self.layer, 0, self.device, self.dtype)
        some = np.ascontiguousarray(dense.weight[:COUNTED_FILTERS])
        target = targets.resolve(f"pattern/{self.device}")
        task = self.task_of(some)
        return count(write_bundle(folder, task, some, target, configs=[self.config]))

    def kept_multiply_adds(self) -> int:
        """Multiply-adds of the kept weights of the first filters."""
        kept = int(np.count_nonzero(self.weight[:COUNTED_FILTERS]))
        return kept * self.layer.out_size**2


@lru_cache(maxsize=4)
def _weights(layer: Layer, group: int) -> np.ndarray:
    return weights(layer, group)


def layers_of(model: nn.Module, example: torch.Tensor) -> Counter[Layer]:
    """The convolutions of a network with square kernels and no groups, and how often each runs."""
    found: Counter[Layer] = Counter()

    def note(conv: nn.Module, inputs: Any, _output: Any) -> None:
        if conv.groups == 1:
            channels = (conv.in_channels, conv.out_channels)
            size = inputs[0].shape[-1]
            found[Layer(size, *channels, conv.kernel_size[0], conv.stride[0])] += 1

    convs = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    hooks = [conv.register_forward_hook(note) for conv in convs]
    try:
        with torch.inference_mode():
            model(example)
    finally:
        for hook in hooks:
            hook.remove()
    return found
