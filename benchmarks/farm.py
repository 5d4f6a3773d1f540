"""How many devices one computer keeps busy: a tracker and servers that answer with recorded times.

    python -m benchmarks.farm --devices 1,8,64 --seconds 10 --json benchmarks/results/farm.json
    python -m benchmarks.farm --devices 8 --script hang,vanish,throttle,lie --repeat 2 --timeout 30

The servers are this project's own, forked from one parent, and everything between them and the
client is real: tracker, sessions, uploads, loading, the verified run. Only a timed run is played:
it takes the stated seconds and answers with a recorded time. The tuner's builder is played too, by
libraries that were built before, so that compiling does not starve the devices.

*Busy* is the share of all devices' time, from the first timed run to the last, in which they
played one. Some devices may misbehave: ``hang`` (never answers), ``vanish`` (its process dies),
``throttle`` (twice as slow every time), ``lie`` (answers a millionth of the time).
"""

from __future__ import annotations

import os

os.environ.setdefault("TVM_NUM_THREADS", "1")

import json
import random
import shutil
import signal
import struct
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import psutil
import tvm
import typer
from torch import nn
from tvm.s_tir.meta_schedule.arg_info import ArgInfo

import tvm_pattern
from relay_passes.targets import resolve
from topi_kernels.devices import DEVICES
from tvm_pattern.deploy.farm import run_everywhere
from tvm_pattern.rpc.client import RPCError, TrackerClient
from tvm_pattern.rpc.listener import Listener, bind
from tvm_pattern.rpc.registration import Registration
from tvm_pattern.rpc.server import free_port, run_tracker
from tvm_pattern.tuning.environment import device_name
from tvm_pattern.tuning.measure import MeasureOptions, Measurer
from tvm_pattern.tuning.records import TuningLog
from tvm_pattern.tuning.session import Search, TuneOptions
from tvm_pattern.tuning.space import Space
from tvm_pattern.tuning.tasks import WeightedTask

from .tuning_table import task_of
from .workloads import load_workloads

KEY = "simulated"
LAYER = "14x14x256"
BEHAVIOURS = ("hang", "vanish", "throttle", "lie")
_FIRST_PORT = 20000


@dataclass(frozen=True)
class Played:
    """One timed run that a server played."""

    device: int
    start: float
    end: float


@dataclass(frozen=True)
class Row:
    """One command with so many devices.

    Parameters
    ----------
    busy : float
        Share of the devices' time that they played.
    per_minute : float
        Results a minute, from the first timed run to the last.
    span : float
        Seconds from the first timed run to the last; ``busy`` is a share of them.
    client_cores, servers_cores : float
        Processor time of the client, and of tracker and servers, over the wall time.
    client_mb, client_processes : float, int
        Largest resident memory of the client and its processes, and how many there were.
    lost : int
        Results that never came.
    told_ms : list of float
        What each device of ``bench`` answered, and each trial of ``tune``: medians.
    errors : list of str
        What came of the others, in their order.
    """

    command: str
    devices: int
    seconds: float
    span: float
    results: int
    failed: int
    lost: int
    busy: float
    per_minute: float
    client_cores: float
    servers_cores: float
    client_mb: float
    client_processes: int
    bottleneck: str
    told_ms: list[float]
    errors: list[str]


@dataclass(frozen=True)
class Outcome:
    """What a command was to get, and got: medians in milliseconds, and errors."""

    wanted: int
    told_ms: list[float]
    errors: list[str]


@dataclass(frozen=True)
class Job:
    """How the commands are run: trials for each device, results for each of ``bench``, seconds of a
    timed run, seconds until a device counts as hanging, and who misbehaves."""

    rounds: int
    repeat: int
    seconds: float
    timeout: float
    script: tuple[str, ...]


class Journal:
    """What the servers played, a line each; appended by processes that may be killed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.touch()

    def add(self, played: Played) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps(asdict(played)) + "\n")

    def clear(self) -> None:
        self.path.write_text("")

    def read(self) -> list[Played]:
        return [Played(**json.loads(line)) for line in self.path.read_text().splitlines()]


def play(device: int, seconds: float, behaviour: str, journal: Journal) -> Callable[..., Any]:
    """TVM's ``runtime.RPCTimeEvaluator`` for a device whose times are recorded."""

    def evaluator(_module: Any, _name: str, _type: int, _id: int, *numbers: Any) -> Any:
        repeat = int(numbers[1])

        def timed(*_: Any) -> bytes:
            known = [p for p in journal.read() if p.device == device]
            slower = 2.0 ** len(known) if behaviour == "throttle" else 1.0
            start = time.monotonic()
            if behaviour == "vanish":
                os.kill(os.getppid(), signal.SIGKILL)
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(1e6 if behaviour == "hang" else seconds * slower)
            journal.add(Played(device, start, time.monotonic()))
            told = 1e-3 * slower * (1e-6 if behaviour == "lie" else 1.0)
            noise = random.Random(len(known)).uniform(0.99, 1.01)
            return struct.pack(f"{repeat}d", *([told * noise] * repeat))

        return tvm.runtime.convert(timed)

    return evaluator


def serve(tracker: int, number: int, seconds: float, behaviour: str, journal: Journal) -> None:
    """A server's process; never returns."""
    tvm.register_global_func(
        "runtime.RPCTimeEvaluator", play(number, seconds, behaviour, journal), override=True
    )
    sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115  open as long as the process
    for file in (1, 2):
        os.dup2(sys.stdout.fileno(), file)
    sock = bind("127.0.0.1", _FIRST_PORT + 50 * number, _FIRST_PORT + 50 * number + 49)
    port = int(sock.getsockname()[1])
    Listener(sock, Registration(("127.0.0.1", tracker), KEY, port, None)).run()


class Farm:
    """Tracker and servers, forked from this process."""

    def __init__(self, devices: int, seconds: float, script: Sequence[str]) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="tvm-pattern-farm-"))
        self.journal = Journal(self.folder / "journal")
        self.client = TrackerClient("127.0.0.1", free_port())
        self.pids = [_fork(lambda: run_tracker("127.0.0.1", self.client.port, lambda _: None))]
        self._await(0)
        for n in range(devices):
            behaviour = script[n] if n < len(script) else ""
            self.pids.append(
                _fork(partial(serve, self.client.port, n, seconds, behaviour, self.journal))
            )
        self._await(devices)

    def _await(self, devices: int) -> None:
        deadline = time.monotonic() + 120
        while self._count() < devices:
            if time.monotonic() > deadline:
                raise RuntimeError(f"{devices} servers did not register within 120 s")
            time.sleep(0.1)

    def _count(self) -> int:
        try:
            return sum(s.devices for s in self.client.status())
        except RPCError:
            return -1

    def processor_seconds(self) -> float:
        """Of tracker, servers and their sessions so far; ended sessions count with their server."""
        return sum(_processor_seconds(pid) for pid in self.pids)

    def close(self) -> None:
        for pid in self.pids:
            with suppress(psutil.NoSuchProcess):
                for process in (*psutil.Process(pid).children(recursive=True), psutil.Process(pid)):
                    with suppress(psutil.NoSuchProcess):
                        process.kill()
            with suppress(ChildProcessError):
                os.waitpid(pid, 0)
        shutil.rmtree(self.folder, ignore_errors=True)


def _fork(work: Callable[[], None]) -> int:
    pid = os.fork()
    if pid:
        return pid
    try:
        work()
    finally:
        os._exit(1)


def _processor_seconds(pid: int) -> float:
    total = 0.0
    with suppress(psutil.NoSuchProcess):
        for process in (psutil.Process(pid), *psutil.Process(pid).children(recursive=True)):
            with suppress(psutil.NoSuchProcess):
                times = process.cpu_times()
                total += times.user + times.system + times.children_user + times.children_system
    return total


class ClientWatch:
    """Memory and processes of the client while a command runs; servers are left out."""

    def __init__(self, others: Sequence[int]) -> None:
        self._others, self._stop = set(others), threading.Event()
        self.megabytes, self.processes = 0.0, 0
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def _family(self) -> list[psutil.Process]:
        me = psutil.Process()
        mine = [child for child in me.children() if child.pid not in self._others]
        return [me, *mine, *(c for child in mine for c in child.children(recursive=True))]

    def _watch(self) -> None:
        while not self._stop.wait(0.5):
            with suppress(psutil.NoSuchProcess):
                family = self._family()
                total = sum(process.memory_info().rss for process in family) / 1e6
                self.megabytes = max(self.megabytes, total)
                self.processes = max(self.processes, len(family))

    def __enter__(self) -> ClientWatch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


def bench(farm: Farm, job: Job, devices: int, library: Path) -> Outcome:
    """One ``bench``."""
    rows = run_everywhere(
        farm.client.address,
        KEY,
        library,
        [np.zeros((1, 3, 8, 8), np.float32)],
        repeat=job.repeat,
        cool_down=0.01,  # Not none: with it, every result is a call of its own.
        session_timeout=job.timeout,
    )
    good = [row.median_ms for row in rows if row.median_ms is not None]
    return Outcome(devices, good, [row.error for row in rows if row.failed])


class RecordedBuilder(Measurer):
    """Builds each kind of library once: what it is to the devices, it stays."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._built: dict[str, bytes] = {}

    def _build(self, function: Any) -> Future:
        kind = str([info.as_json() for info in ArgInfo.from_prim_func(function)])
        if kind not in self._built:
            path = super()._build(function).result()
            self._built[kind] = Path(path).read_bytes()
        copy = self.folder / f"recorded-{time.monotonic_ns()}.so"
        copy.write_bytes(self._built[kind])
        future: Future = Future()
        future.set_result(str(copy))
        return future


def tune(farm: Farm, job: Job, devices: int, _library: Path) -> Outcome:
    """One search over one layer, at most over its whole space."""
    target = resolve("pattern/native")
    spec = next(s for s in load_workloads()[0] if s.name == LAYER)
    task, weight = task_of(spec, 1, DEVICES.of(target).name)
    measure = MeasureOptions(
        tracker=farm.client.address, key=KEY, repeat=3, run_timeout=job.timeout
    )
    log = TuningLog(farm.folder / "log.jsonl")
    wanted = min(devices * job.rounds, len(Space(task)))
    options = TuneOptions(trials=wanted, early_stop=None, measure=measure)
    with RecordedBuilder(target, 1, measure) as measurer:
        Search([WeightedTask(task, weight, [LAYER])], target, log, options).run(measurer)
    records = log.records()
    good = [1e3 * float(np.median(r.times)) for r in records if r.ok]
    return Outcome(wanted, good, [r.error_kind for r in records if not r.ok])


def bottleneck(busy: float, client: float, servers: float, cores: int) -> str:
    """What keeps the devices waiting, by who used the processors."""
    if busy >= 0.9:
        return "the devices"
    if client + servers >= 0.8 * cores:
        return "processor: " + ("the client" if client > servers else "tracker and servers")
    return "waiting: the last devices of a batch, connections"


def measure(command: str, devices: int, job: Job, library: Path) -> Row:
    """Run one command on a farm of its own."""
    farm = Farm(devices, job.seconds, job.script)
    try:
        before, start = farm.processor_seconds(), time.monotonic()
        own = time.process_time()
        with ClientWatch(farm.pids) as watch:
            outcome = COMMANDS[command](farm, job, devices, library)
        wall = time.monotonic() - start
        client, servers = time.process_time() - own, farm.processor_seconds() - before
        played = farm.journal.read()
    finally:
        farm.close()
    span = max(p.end for p in played) - min(p.start for p in played)
    busy = sum(p.end - p.start for p in played) / (devices * span)
    good, failed = len(outcome.told_ms), len(outcome.errors)
    return Row(
        command,
        devices,
        job.seconds,
        span,
        good,
        failed,
        outcome.wanted - good - failed,
        busy,
        60 * good / span,
        client / wall,
        servers / wall,
        watch.megabytes,
        watch.processes,
        bottleneck(busy, client / wall, servers / wall, len(os.sched_getaffinity(0))),
        outcome.told_ms,
        outcome.errors,
    )


COMMANDS = {"bench": bench, "tune": tune}


@contextmanager
def small_library() -> Iterator[Path]:
    """A small network, for ``bench``."""
    import torch

    folder = Path(tempfile.mkdtemp(prefix="tvm-pattern-farm-"))
    try:
        model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU()).eval()
        library = tvm_pattern.compile(model, torch.zeros(1, 3, 8, 8), num_threads=1, verify=False)
        yield library.export(folder / "m.so")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def table(rows: Sequence[Row]) -> str:
    """Rows in Markdown."""
    head = "| command | devices | runs | seconds | results | failed | lost | busy | results / min |"
    head += " client: cores | MB | processes | servers: cores | bottleneck |\n"
    lines = [head + "|" + "---|" * 14]
    for r in rows:
        lines.append(
            f"| {r.command} | {r.devices} | {r.seconds:g} s | {r.span:.0f} | {r.results} |"
            f" {r.failed} | {r.lost} | {r.busy:.0%} | {r.per_minute:.1f} | {r.client_cores:.2f} |"
            f" {r.client_mb:.0f} | {r.client_processes} | {r.servers_cores:.2f} | {r.bottleneck} |"
        )
    return "\n".join(lines) + "\n"


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """Write rows, and their table beside them; others of the file stay, equal ones give way."""
    known = {}
    if path.exists():
        known = {_key(row): row for row in json.loads(path.read_text())["rows"]}
    known |= {_key(asdict(row)): asdict(row) for row in rows}
    ordered = [known[key] for key in sorted(known)]
    cores = len(os.sched_getaffinity(0))
    data = {"device": {"machine": device_name(), "cores": cores}, "rows": ordered}
    path.write_text(json.dumps(data, indent=1) + "\n")
    about = f"{device_name()}, {cores} cores for client, tracker and servers together.\n\n"
    text = table([Row(**row) for row in ordered])
    path.with_suffix(".md").write_text(f"# Simulated devices\n\n{about}{text}")


def _key(row: dict[str, Any]) -> tuple[str, int, float]:
    return row["command"], row["devices"], -row["seconds"]


def main(
    devices: Annotated[str, typer.Option(help="Numbers of devices, with commas.")] = "1,8,64",
    commands: Annotated[str, typer.Option(help="Which, with commas.")] = "bench,tune",
    rounds: Annotated[int, typer.Option(help="Trials for each device of tune.")] = 3,
    repeat: Annotated[int, typer.Option(help="Results for each device of bench.")] = 1,
    seconds: Annotated[float, typer.Option(help="Seconds of a timed run.")] = 10.0,
    timeout: Annotated[float, typer.Option(help="Seconds of a session.")] = 90.0,
    script: Annotated[
        str, typer.Option(help="What the first devices do instead: hang, vanish, throttle, lie.")
    ] = "",
    json_path: Annotated[
        Path | None, typer.Option("--json", help="Join the rows to those there.")
    ] = None,
) -> None:
    """Print how busy ``bench`` and ``tune`` keep simulated devices."""
    behaviours = tuple(filter(None, script.split(",")))
    unknown = sorted({*behaviours} - {*BEHAVIOURS} | {*commands.split(",")} - {*COMMANDS})
    if unknown:
        raise typer.BadParameter(
            f"got {', '.join(unknown)}; expected {', '.join(BEHAVIOURS)} and {', '.join(COMMANDS)}"
        )
    job = Job(rounds, repeat, seconds, timeout, behaviours)
    rows = []
    with small_library() as library:
        for command in commands.split(","):
            for count in map(int, devices.split(",")):
                rows.append(measure(command, count, job, library))
                print(table(rows[-1:]).splitlines()[-1], flush=True)
    print(table(rows))
    if json_path is not None:
        write_rows(json_path, rows)


if __name__ == "__main__":
    typer.run(main)
