"""Tune what the shipped logs do not serve: layers without a record, or with old ones only.

    python -m benchmarks.tuning_logs --minutes 60 --cpu 1     # what is missing
    python -m benchmarks.tuning_logs --everything             # all layers

``tvm-pattern logs check`` says beforehand what is missing. A layer's record enters the shipped log
when its search is finished; trials go to a log under ``build/``, from which another call continues:
after a change of schedules, remove that first and tune everything.
"""

from __future__ import annotations

import os

os.environ.setdefault("TVM_NUM_THREADS", "1")

import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from tvm.target import Target

from relay_passes.targets import resolve
from topi_kernels.devices import DEVICES
from tvm_pattern.tuning import arguments as args
from tvm_pattern.tuning.lookup import ConfigLookup, config_of, log_folder, why_unusable
from tvm_pattern.tuning.measure import MeasureOptions, Measurer
from tvm_pattern.tuning.records import Record, TuningLog, best_records
from tvm_pattern.tuning.session import Search, TuneOptions
from tvm_pattern.tuning.shipped import EXACT, GROUPS, TARGETS, coverage, network_tasks, networks
from tvm_pattern.tuning.space import Space
from tvm_pattern.tuning.tasks import WeightedTask

WORK = Path("build/tuning")
# A configuration that is not this much faster than level 0 is not told apart from it.
_NOISE = 0.01


@dataclass
class Job:
    """A layer to tune, with its share of the networks' estimated time."""

    weighted: WeightedTask
    importance: float


def unserved(
    target: Target, names: list[str] | None, groups: Iterable[int], lookup: ConfigLookup | None
) -> list[Job]:
    """Layers without a record of their own, the most expensive first; all if there is no lookup."""
    jobs: dict[str, Job] = {}
    for network in networks(names):
        for group in groups:
            tasks = network_tasks(network, group, [target])[0]
            if lookup is not None:
                tasks = [r.weighted for r in coverage(tasks, lookup) if r.state != EXACT]
            for weighted in tasks:
                job = jobs.setdefault(weighted.task.key, Job(weighted, 0.0))
                estimates = Space(weighted.task, {}).estimates
                job.importance += weighted.count * float(estimates.min())
    return sorted(jobs.values(), key=lambda job: -job.importance)


def winner(records: list[Record], space: Space) -> Record | None:
    """The record to ship: the fastest of the space, or level 0 where that is as fast."""
    usable = [r for r in records if why_unusable(r) is None]
    positions = {r.config_key: space.position(config_of(r)) for r in usable}
    found = best_records([r for r in usable if positions[r.config_key] is not None], keep=None)
    if not found:
        return None
    best = found[0]
    for record in found:
        level0 = positions[record.config_key] == space.default
        if level0 and record.seconds <= best.seconds * (1 + _NOISE):
            return record
    return best


def ship(log: TuningLog, record: Record) -> None:
    """Put a record in the place of those of its task; records of no use leave the log too."""
    old = log.records() if log.path.exists() else []
    kept = [r for r in old if r.task_key != record.task_key and why_unusable(r) is None]
    log.write([*kept, record])


def main(
    target: Annotated[list[str] | None, typer.Option(help="Default: all with logs.")] = None,
    network: Annotated[list[str] | None, typer.Option(help="Default: all with logs.")] = None,
    group: Annotated[list[int] | None, typer.Option(help="Default: 1 and 4.")] = None,
    everything: Annotated[
        bool, typer.Option("--everything", help="Layers that are served, too.")
    ] = False,
    trials: Annotated[int, typer.Option(min=1, help="Measurements of a layer.")] = 24,
    minutes: Annotated[float, typer.Option(help="Start no layer after so long.")] = float("inf"),
    work: Annotated[Path, typer.Option(help="Folder for the logs of all trials.")] = WORK,
    shipped: Annotated[Path | None, typer.Option(help="Folder of the shipped logs.")] = None,
    cpu: args.Cpu = None,
    clock: args.Clock = "wall",
    repeat: args.Repeat = 8,
    min_repeat_ms: args.MinRepeat = 10,
) -> None:
    """Tune layers and ship their best records."""
    deadline = time.monotonic() + 60 * minutes
    measure = MeasureOptions(cpu=cpu, clock=clock, repeat=repeat, min_repeat_ms=min_repeat_ms)
    options = TuneOptions(trials=trials, resume=True, measure=measure)
    for tag in target or TARGETS:
        resolved = resolve(tag)
        family = DEVICES.of(resolved).name
        log = TuningLog((shipped or log_folder()) / family / "networks.jsonl")
        records = log.records() if log.path.exists() else []
        lookup = None if everything else ConfigLookup(records)
        jobs = unserved(resolved, network, group or GROUPS, lookup)
        typer.echo(f"{tag}: {len(jobs)} layers to tune")
        trial_log = TuningLog(work / f"logs-{family}.jsonl")
        with Measurer(resolved, 1, measure) as measurer:
            for number, job in enumerate(jobs, 1):
                if time.monotonic() > deadline:
                    typer.echo(f"time is over; {len(jobs) - number + 1} layers are left")
                    break
                search = Search([job.weighted], resolved, trial_log, options)
                search.run(measurer)
                state = search.states[0]
                key = job.weighted.task.key
                mine = [r for r in trial_log.records(skip_bad=True) if r.task_key == key]
                record = winner(mine, state.space)
                name = f"{number}/{len(jobs)} {job.weighted.task.label}"
                if record is None:
                    typer.echo(f"{name}: no configuration worked")
                    continue
                ship(log, record)
                gain = state.default_seconds / record.seconds - 1
                typer.echo(f"{name}: {record.seconds * 1e3:.3f} ms, {gain:+.1%} over level 0")


if __name__ == "__main__":
    typer.run(main)
