"""Measure every configuration of a few layers once, so that tuners can be compared on the table.

``python -m benchmarks.tuning_table --out benchmarks/results/tuning/table.jsonl 14x14x256:1 ...``
"""

from __future__ import annotations

import os

os.environ.setdefault("TVM_NUM_THREADS", "1")

import time
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from relay_passes.conv_task import ConvTask
from relay_passes.markers import ConvParams
from relay_passes.targets import resolve
from topi_kernels.operator import default_layout
from topi_kernels.target_family import target_family
from tvm_pattern.tuning.environment import device_name, tool_versions
from tvm_pattern.tuning.measure import MeasureOptions, Measurer
from tvm_pattern.tuning.records import TuningLog
from tvm_pattern.tuning.session import make_record
from tvm_pattern.tuning.space import Space

from .workloads import LayerSpec, load_workloads, sparse_weights

BATCH = 16


def task_of(spec: LayerSpec, group: int, family: str) -> tuple[ConvTask, np.ndarray]:
    """Task and weights of one layer of the workloads file."""
    weight, _ = sparse_weights(spec, group)
    params = ConvParams(
        layer=spec.name,
        strides=(spec.stride, spec.stride),
        padding=(spec.padding,) * 4,
        dilation=(1, 1),
        bias=True,
        activation="relu",
        in_layout=default_layout(*spec.size, spec.padding, family),
        out_layout=default_layout(*spec.out_size, spec.padding, family),
    )
    return ConvTask.from_weight(weight, 1, params, family), weight


def main(
    layers: Annotated[list[str], typer.Argument(help="Layer and group, such as 14x14x256:4.")],
    out: Annotated[Path, typer.Option(help="Log of the measurements; continued if it exists.")],
    target: Annotated[str, typer.Option(help="Target tag.")] = "pattern/x86-avx512",
    cpu: Annotated[int | None, typer.Option(help="Core to measure on.")] = None,
    clock: Annotated[str, typer.Option(help="wall or cpu.")] = "wall",
    repeat: Annotated[int, typer.Option(help="Repeats of a measurement.")] = 6,
    min_repeat_ms: Annotated[int, typer.Option(help="Milliseconds of a repeat.")] = 5,
) -> None:
    """Measure the whole search space of each layer."""
    resolved = resolve(target)
    family = target_family(resolved)
    specs = {spec.name: spec for spec in load_workloads()[0]}
    log = TuningLog(out)
    known = log.records(skip_bad=True) if out.exists() else []
    options = MeasureOptions(cpu=cpu, clock=clock, repeat=repeat, min_repeat_ms=min_repeat_ms)
    with Measurer(resolved, 1, options) as measurer:
        for text in layers:
            name, _, group = text.partition(":")
            task, weight = task_of(specs[name], int(group or 1), family)
            done = {r.config_key for r in known if r.task_key == task.key}
            versions, device = tool_versions(), device_name()
            space = Space(task, extra_knobs={})
            todo = [
                c
                for c in space.configs
                if make_record(task, c, None, resolved, device, 1, versions).config_key not in done
            ]
            typer.echo(f"{name}:{group} space {len(space)}, to measure {len(todo)}")
            start = time.monotonic()
            for first in range(0, len(todo), BATCH):
                batch = todo[first : first + BATCH]
                for config, outcome in zip(
                    batch, measurer.measure(task, weight, batch), strict=True
                ):
                    log.append(make_record(task, config, outcome, resolved, device, 1, versions))
                rate = (first + len(batch)) / (time.monotonic() - start)
                typer.echo(f"  {first + len(batch)}/{len(todo)} ({rate * 60:.0f} per minute)")


if __name__ == "__main__":
    typer.run(main)
