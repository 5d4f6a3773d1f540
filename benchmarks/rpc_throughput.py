"""Trials per minute with one and with two RPC servers on this machine, each bound to a core.

``python -m benchmarks.rpc_throughput --cores 0,1``
"""

from __future__ import annotations

import os

os.environ.setdefault("TVM_NUM_THREADS", "1")

import subprocess
import sys
import time
from typing import Annotated

import typer

from relay_passes.targets import resolve
from topi_kernels.target_family import target_family
from tvm_pattern.rpc.client import RPCError, TrackerClient
from tvm_pattern.rpc.server import ServerOptions, end_group, free_port
from tvm_pattern.tuning.measure import MeasureOptions, Measurer
from tvm_pattern.tuning.space import Space

from .tuning_table import task_of
from .workloads import load_workloads

KEY = "core"


def _wait(client: TrackerClient, devices: int) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        try:
            if client.count(KEY) == devices:
                return
        except RPCError:
            pass
        time.sleep(0.2)
    raise RuntimeError(f"{devices} servers did not register within 120 s")


def trials_per_minute(cores: list[int], trials: int, milliseconds: int) -> float:
    """Measured candidates per minute with one server on each of ``cores``; building not counted."""
    port = free_port()
    client = TrackerClient("127.0.0.1", port)
    command = [sys.executable, "-m", "tvm_pattern.cli", "rpc", "tracker", "--port", str(port)]
    processes = [subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL)]
    try:
        while True:
            try:
                client.summary()
                break
            except RPCError:
                time.sleep(0.2)
        for core in cores:
            server = ServerOptions(f"127.0.0.1:{port}", KEY, port=free_port(), cpu=core)
            processes.append(subprocess.Popen(server.command(), start_new_session=True))
        _wait(client, len(cores))
        target = resolve("pattern/native")
        spec = next(s for s in load_workloads()[0] if s.name == "14x14x256")
        task, weight = task_of(spec, 1, target_family(target))
        options = MeasureOptions(
            tracker=client.address, key=KEY, repeat=8, min_repeat_ms=milliseconds // 8
        )
        with Measurer(target, 1, options) as measurer:
            configs = Space(task, {}).configs[:trials]
            measurer.measure(task, weight, configs[: 2 * len(cores)])
            before = measurer.run_seconds
            outcomes = measurer.measure(task, weight, configs)
            seconds = measurer.run_seconds - before
        good = sum(o.error_kind == "ok" for o in outcomes)
        return 60 * good / seconds
    finally:
        for process in processes:
            end_group(process)


def main(
    cores: Annotated[str, typer.Option(help="Two cores, comma separated.")] = "0,1",
    trials: Annotated[int, typer.Option(help="Candidates to measure.")] = 24,
    milliseconds: Annotated[int, typer.Option(help="Time spent running each.")] = 800,
) -> None:
    """Compare one server with two."""
    numbers = [int(core) for core in cores.split(",")]
    one = trials_per_minute(numbers[:1], trials, milliseconds)
    two = trials_per_minute(numbers, trials, milliseconds)
    typer.echo(f"1 server: {one:.0f} trials/min, {len(numbers)}: {two:.0f} ({two / one:.2f}x)")


if __name__ == "__main__":
    typer.run(main)
