"""Tasks of a network: its distinct convolutions, with how often they occur."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import tvm
from tvm import relax
from tvm.target import Target

from relay_passes.dataflow import array_of, bindings_of, relax_functions, shape_of
from relay_passes.islands import int8
from relay_passes.markers import ConvParams, Marker, parse, structure_of
from relay_passes.pipeline import marker_passes
from relay_passes.report import ReportBuilder
from topi_kernels.backend import Backend
from topi_kernels.devices import DEVICES
from topi_kernels.structure import ZEROS, Structure
from topi_kernels.task import Task

_TUNED = ("plane_conv2d", int8.CONV, int8.DEPTHWISE)


@dataclass
class WeightedTask:
    """A task, the weights it is measured with, and the layers it stands for.

    ``structure`` says which weights are kept; None: those that are not zero.
    """

    task: Task
    weight: np.ndarray = field(repr=False)
    layers: list[str] = field(default_factory=list)
    structure: Structure | None = field(default=None, repr=False)

    @property
    def source(self) -> str:
        """Where the kept weights are known from."""
        return ZEROS if self.structure is None else self.structure.source

    @property
    def count(self) -> int:
        """Occurrences in the network."""
        return len(self.layers)


def extract_tasks(
    mod: tvm.IRModule,
    target: Target,
    num_threads: int = 1,
    structures: Mapping[str, Structure] | None = None,
    *,
    interleaved_lanes: bool | None = None,
    winograd: bool = True,
) -> list[WeightedTask]:
    """The distinct convolutions of a module, in order of first occurrence.

    Parameters
    ----------
    mod : tvm.IRModule
        Relax module with its parameters bound as constants; it is not changed.
    target : tvm.target.Target
    num_threads : int
    structures : mapping, optional
        What the pruner assigned; see :func:`relay_passes.pipeline.lower`.
    interleaved_lanes : bool, optional
    winograd : bool
        As there.

    Raises
    ------
    ValueError
        If the target's device has no search space, or no device matches.
    """
    backend = Backend.of(
        target, num_threads, interleaved_lanes=interleaved_lanes, winograd=winograd
    )
    if backend.why_not():
        raise ValueError(
            f"the device {backend.name!r} has no search space to tune; expected one of"
            f" {DEVICES.names(with_schedules=True)}"
        )
    passes = marker_passes(backend, ReportBuilder(), structures)
    with target:
        planes = tvm.transform.Sequential(passes)(mod)
    tasks: dict[str, WeightedTask] = {}
    for _, func in relax_functions(planes):
        for name, marker in _convolutions(func):
            weighted = _of_bytes(marker, backend) or _weighted(marker, backend)
            tasks.setdefault(weighted.task.key, weighted).layers.append(name)
    return list(tasks.values())


def _weighted(marker: Marker, backend: Backend) -> WeightedTask:
    weight, structure = array_of(marker.tensors[1]), structure_of(marker)
    batch = shape_of(marker.tensors[0])[0]
    params = ConvParams.from_dict(marker.params)
    task = params.task(weight, batch, backend.name, structure, winograd=backend.winograd)
    return WeightedTask(task, weight, structure=structure)


def _of_bytes(marker: Marker, backend: Backend) -> WeightedTask | None:
    """The task of a convolution of bytes, None where it is none."""
    if marker.op not in (int8.CONV, int8.DEPTHWISE):
        return None
    layer = int8.layer_of(marker)
    task = int8.task_of(marker, layer, backend)
    return WeightedTask(task, layer.weight, structure=layer.structure)


def _convolutions(func: relax.Function) -> Iterator[tuple[str, Marker]]:
    for block in bindings_of(func):
        for binding in block:
            marker = parse(binding.value)
            if marker is not None and marker.op in _TUNED:
                yield str(marker.params["layer"]), marker
