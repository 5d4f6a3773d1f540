"""Trials per minute with one and with two RPC servers on this machine, each bound to a core.

    python -m benchmarks.rpc_throughput --cores 0,1

A tracker has one server of a key ``single`` on the first core, and a server per core of a key
``farm``; idle servers only wait. The same candidates are measured with either key in turns (one,
two, two, one, ...), so that what else happens on the machine meets both. Trials per minute are
given for measuring alone, and with building included, which happens on this machine however many
devices there are.
"""

from __future__ import annotations

import os

os.environ.setdefault("TVM_NUM_THREADS", "1")

import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from relay_passes.targets import resolve
from topi_kernels.devices import DEVICES
from tvm_pattern.rpc.client import RPCError, TrackerClient
from tvm_pattern.rpc.server import ServerOptions, end_group, free_port
from tvm_pattern.tuning.environment import device_name
from tvm_pattern.tuning.measure import MeasureOptions, Measurer
from tvm_pattern.tuning.space import Space

from .tuning_table import task_of
from .workloads import load_workloads

SINGLE, FARM = "single", "farm"
LAYER = "14x14x256"
_START_SECONDS = 120.0
_REPEATS = 8


@dataclass(frozen=True)
class Round:
    """One pass over all candidates with the devices of one key."""

    key: str
    servers: int
    trials: int
    failed: int
    measure_seconds: float
    build_seconds: float

    @property
    def measuring(self) -> float:
        """Good trials per minute of measuring."""
        return 60 * (self.trials - self.failed) / self.measure_seconds

    @property
    def overall(self) -> float:
        """Good trials per minute, building included."""
        return 60 * (self.trials - self.failed) / (self.measure_seconds + self.build_seconds)


def _devices(client: TrackerClient, key: str) -> int:
    try:
        return sum(s.devices for s in client.status() if s.key == key)
    except RPCError:
        return -1


def _await_devices(client: TrackerClient, wanted: dict[str, int]) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while any(_devices(client, key) < count for key, count in wanted.items()):
        if time.monotonic() > deadline:
            raise RuntimeError(f"{wanted} servers did not register within {_START_SECONDS:g} s")
        time.sleep(0.2)


@contextmanager
def farm(cores: Sequence[int]) -> Iterator[TrackerClient]:
    """A tracker, one server on the first core, and one of another key on every core."""
    port = free_port()
    client = TrackerClient("127.0.0.1", port)
    command = [sys.executable, "-m", "tvm_pattern.cli", "rpc", "tracker", "--port", str(port)]
    processes = [subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL)]
    try:
        _await_devices(client, {SINGLE: 0})
        for key, core in [(SINGLE, cores[0]), *((FARM, core) for core in cores)]:
            server = ServerOptions(client.address, key, port=free_port(), cpu=core)
            processes.append(subprocess.Popen(server.command(), start_new_session=True))
            # One after the other, so that none takes the port another one was given.
            _await_devices(client, {key: len(processes) - (1 if key == SINGLE else 2)})
        yield client
    finally:
        for process in processes:
            end_group(process)


def measure_rounds(
    client: TrackerClient, servers: int, rounds: int, trials: int, milliseconds: int
) -> Iterator[Round]:
    """Alternate between the keys: one, two, two, one, and so on."""
    target = resolve("pattern/native")
    spec = next(s for s in load_workloads()[0] if s.name == LAYER)
    task, weight = task_of(spec, 1, DEVICES.of(target).name)
    configs = Space(task, {}).configs[:trials]
    counts = {SINGLE: 1, FARM: servers}
    with ExitStack() as stack:
        measurers = {}
        for key in counts:
            options = MeasureOptions(
                tracker=client.address,
                key=key,
                repeat=_REPEATS,
                min_repeat_ms=max(1, milliseconds // _REPEATS),
            )
            measurers[key] = stack.enter_context(Measurer(target, 1, options))
            # Starts the workers and prepares the inputs.
            measurers[key].measure(task, weight, configs[: 2 * counts[key]])
        for number in range(rounds):
            for key in (SINGLE, FARM) if number % 2 == 0 else (FARM, SINGLE):
                measurer = measurers[key]
                run, build = measurer.run_seconds, measurer.build_seconds
                outcomes = measurer.measure(task, weight, configs)
                yield Round(
                    key,
                    counts[key],
                    len(outcomes),
                    sum(o.error_kind != "ok" for o in outcomes),
                    measurer.run_seconds - run,
                    measurer.build_seconds - build,
                )


def summary(rounds: Sequence[Round]) -> list[str]:
    """Medians with their spread, and the ratios of neighbouring rounds."""
    lines = []
    for name in ("measuring", "overall"):
        rates = {
            key: np.array([getattr(r, name) for r in rounds if r.key == key])
            for key in (SINGLE, FARM)
        }
        ratios = rates[FARM] / rates[SINGLE]
        what = "measuring alone" if name == "measuring" else "building included"
        shown = ", ".join(
            f"{'1 server' if key == SINGLE else f'{max(r.servers for r in rounds)} servers'}"
            f" {np.median(values):.1f} trials/min ({values.min():.1f} to {values.max():.1f})"
            for key, values in rates.items()
        )
        lines.append(
            f"{what}: {shown}; ratio {np.median(ratios):.2f} ({ratios.min():.2f} to"
            f" {ratios.max():.2f}) over {len(ratios)} pairs of rounds"
        )
    failed = sum(r.failed for r in rounds)
    return [*lines, f"{failed} of {sum(r.trials for r in rounds)} trials failed"]


def main(
    cores: Annotated[str, typer.Option(help="Cores of the servers, comma separated.")] = "0,1",
    trials: Annotated[int, typer.Option(min=1, help="Candidates of a round.")] = 24,
    milliseconds: Annotated[int, typer.Option(help="Time spent running each.")] = 800,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of either kind.")] = 5,
    save: Annotated[Path | None, typer.Option(help="Write the rounds as JSON.")] = None,
) -> None:
    """Compare one server with several."""
    numbers = [int(core) for core in cores.split(",")]
    found = []
    with farm(numbers) as client:
        for one in measure_rounds(client, len(numbers), rounds, trials, milliseconds):
            found.append(one)
            typer.echo(
                f"{one.servers} server(s): {one.measuring:.1f} trials/min measuring,"
                f" {one.overall:.1f} with building, {one.failed} failed"
            )
    for line in summary(found):
        typer.echo(line)
    if save is not None:
        data = {
            "device": device_name(),
            "cores": numbers,
            "layer": LAYER,
            "milliseconds": milliseconds,
            "rounds": [{**asdict(r), "measuring": r.measuring} for r in found],
            "summary": summary(found),
        }
        save.write_text(json.dumps(data, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
