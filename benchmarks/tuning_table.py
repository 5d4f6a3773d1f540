"""Measure the search spaces of layers once, so that tuners can be compared on the table.

    python -m benchmarks.tuning_table --minutes 60 --cpu 1

measures the distinct convolutions of pruned ResNet-50 and VGG-16 with 1 and 4 filters sharing
kernels, those that take most of a network first, and continues where an earlier call ended.
``python -m benchmarks.tuning_table 14x14x256:1 ...`` measures layers of ``workloads.toml`` instead.
``python -m benchmarks.tuning_study`` evaluates the tables.
"""

from __future__ import annotations

import os

os.environ.setdefault("TVM_NUM_THREADS", "1")

import gzip
import time
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from tvm.target import Target

from relay_passes.targets import resolve
from topi_kernels.backend import default_layout
from topi_kernels.conv_task import ConvTask
from topi_kernels.devices import DEVICES
from topi_kernels.schedules.config import ConvConfig, knobs_of
from topi_kernels.workload import Epilogue
from tvm_pattern import model_options
from tvm_pattern.tuning import arguments as args
from tvm_pattern.tuning.environment import device_name, tool_versions
from tvm_pattern.tuning.lookup import config_of, why_unusable
from tvm_pattern.tuning.measure import MeasureOptions, Measurer
from tvm_pattern.tuning.records import TuningLog
from tvm_pattern.tuning.session import make_record
from tvm_pattern.tuning.shipped import network_tasks, networks
from tvm_pattern.tuning.space import Space

from .workloads import LayerSpec, load_workloads, sparse_weights

BATCH = 16
MOST = 200
RESULTS = Path("benchmarks/results/tuning")
WORK = Path("build/tuning")


@dataclass
class Job:
    """A layer to measure."""

    task: ConvTask
    weight: np.ndarray
    space: Space
    importance: float

    @property
    def name(self) -> str:
        return f"{self.task.label}, group {self.task.max_group}"


def task_of(spec: LayerSpec, group: int, family: str) -> tuple[ConvTask, np.ndarray]:
    """Task and weights of one layer of the workloads file."""
    weight, _ = sparse_weights(spec, group)
    task = ConvTask.from_weight(
        weight,
        spec.geometry,
        default_layout(*spec.size, spec.padding, family),
        default_layout(*spec.out_size, spec.padding, family),
        family=family,
        epilogue=Epilogue(bias=True, activation="relu"),
    )
    return task, weight


def listed_jobs(layers: Sequence[str], family: str, knobs: dict[str, Sequence[Any]]) -> list[Job]:
    """Jobs of ``LAYER:GROUP`` texts, in their order."""
    specs = {spec.name: spec for spec in load_workloads()[0]}
    jobs = []
    for text in layers:
        name, _, group = text.partition(":")
        if name not in specs or not (group or "1").isdigit():
            raise typer.BadParameter(f"layer {text!r}: expected LAYER:GROUP, LAYER of {[*specs]}")
        task, weight = task_of(specs[name], int(group or 1), family)
        jobs.append(Job(task, weight, Space(task, knobs), 0.0))
    return jobs


def network_jobs(
    names: Sequence[str], groups: Iterable[int], target: Target, knobs: dict[str, Sequence[Any]]
) -> list[Job]:
    """The pattern-sparse convolutions of networks, the most expensive first.

    Convolutions that differ in nothing but their epilogue and the padding around them count as one.
    """
    found: dict[tuple[Any, ...], Job] = {}
    for network in networks(names):
        for group in groups:
            for weighted in network_tasks(network, group, [target])[0]:
                task = weighted.task
                if not isinstance(task, ConvTask) or task.structure != "pattern":
                    continue
                out = task.out_layout
                shape = (
                    task.weight_shape,
                    task.geometry.stride,
                    out.height,
                    out.width,
                    task.max_group,
                )
                if shape not in found:
                    found[shape] = Job(task, weighted.weight, Space(task, knobs), 0.0)
                job = found[shape]
                default = job.space.default
                estimates = job.space.estimates
                cost = estimates.min() if default is None else estimates[default]
                job.importance += weighted.count * float(cost)
    return sorted(found.values(), key=lambda job: -job.importance)


def sample(space: Space, most: int) -> list[ConvConfig]:
    """All points of a small space; of a larger one the best by estimate and as many at random."""
    if len(space) <= most:
        return space.configs
    order = np.argsort(space.estimates, kind="stable")
    rng = np.random.default_rng(zlib.crc32(space.task.key.encode()))
    rest = rng.permutation(order[most // 2 :])[: most - most // 2]
    return [space.configs[i] for i in sorted({*order[: most // 2].tolist(), *rest.tolist()})]


def measure_job(
    job: Job, log: TuningLog, done: set[ConvConfig], measurer: Measurer, most: int, deadline: float
) -> bool:
    """Measure what is missing of a layer; False if the time was over before."""
    versions, device = tool_versions(), device_name()
    todo = [c for c in sample(job.space, most) if c not in done]
    typer.echo(f"{job.name}: space {len(job.space)}, to measure {len(todo)}")
    start = time.monotonic()
    for first in range(0, len(todo), BATCH):
        if time.monotonic() > deadline:
            return False
        batch = todo[first : first + BATCH]
        outcomes = measurer.measure(job.task, job.weight, batch)
        for config, outcome in zip(batch, outcomes, strict=True):
            log.append(make_record(job.task, config, outcome, measurer.target, device, 1, versions))
    if todo:
        seconds = time.monotonic() - start
        typer.echo(f"  {len(todo)} in {seconds:.0f} s ({len(todo) / seconds * 60:.0f} per minute)")
    return True


def pack(log: TuningLog, out: Path) -> None:
    """Compress a log to a result file; the same log gives the same bytes."""
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_bytes(gzip.compress(log.path.read_bytes(), mtime=0))


def main(
    layers: Annotated[
        list[str] | None, typer.Argument(help="Such as 14x14x256:4; default: of the networks.")
    ] = None,
    network: Annotated[list[str] | None, typer.Option(help="Default: resnet50, vgg16.")] = None,
    group: Annotated[list[int] | None, typer.Option(help="Default: 1 and 4.")] = None,
    log: Annotated[Path | None, typer.Option(help="Default: build/tuning/...jsonl")] = None,
    out: Annotated[Path | None, typer.Option(help="Default: among the results, .jsonl.gz")] = None,
    target: model_options.Target = "pattern/x86-avx512",
    space: args.Width = "schedule",
    most: Annotated[int, typer.Option(help="Points of a layer; larger spaces are sampled.")] = MOST,
    minutes: Annotated[float, typer.Option(help="Stop after so long.")] = float("inf"),
    cpu: args.Cpu = None,
    clock: args.Clock = "wall",
    repeat: args.Repeat = 6,
    min_repeat_ms: args.MinRepeat = 5,
    plan: Annotated[bool, typer.Option("--plan", help="Only say what would be measured.")] = False,
) -> None:
    """Measure search spaces; call it again to continue."""
    deadline = time.monotonic() + 60 * minutes
    resolved, knobs = resolve(target), knobs_of(space)
    family = DEVICES.of(resolved).name
    if layers:
        jobs = listed_jobs(layers, family, knobs)
    else:
        jobs = network_jobs(network or ["resnet50", "vgg16"], group or [1, 4], resolved, knobs)
    if plan:
        for job in jobs:
            typer.echo(f"{job.name}: {len(sample(job.space, most))} of {len(job.space)} points")
        typer.echo(f"{sum(len(sample(job.space, most)) for job in jobs)} points in all")
        return
    name = f"table-{family}" + ("" if space == "schedule" else f"-{space}")
    working = TuningLog(log or WORK / f"{name}.jsonl")
    done: dict[str, set[ConvConfig]] = {}
    if working.path.exists():
        for record in working.records(skip_bad=True):
            if why_unusable(record) is None:
                config = config_of(record)
                done.setdefault(record.task_key, set()).add(config)
    options = MeasureOptions(cpu=cpu, clock=clock, repeat=repeat, min_repeat_ms=min_repeat_ms)
    complete = 0
    with Measurer(resolved, 1, options) as measurer:
        for job in jobs:
            known = done.get(job.task.key, set())
            if not measure_job(job, working, known, measurer, most, deadline):
                break
            complete += 1
    typer.echo(f"{complete} of {len(jobs)} layers are complete")
    pack(working, out or RESULTS / f"{name}.jsonl.gz")


if __name__ == "__main__":
    typer.run(main)
