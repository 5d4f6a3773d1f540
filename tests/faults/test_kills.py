"""``kill -9`` at every write: what was there is still there, or the new one is, whole."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from tvm_pattern.pruning import load_pruned, oneshot, save_pruned
from tvm_pattern.pruning.checkpoint import load_training, save_training
from tvm_pattern.tuning.records import Record, TuningLog

from . import processes, strace
from .conftest import LONG

_NETWORK = """
import sys, torch
from torch import nn
torch.manual_seed(int(sys.argv[2]))
net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU()).eval()
"""
_SAVE = _NETWORK + (
    "from tvm_pattern.pruning import oneshot, save_pruned\n"
    "from tvm_pattern.pruning.checkpoint import save_training\n"
    "save_training(sys.argv[1] + '/training.pt', {'model': net.state_dict()})\n"
    "report = oneshot(net, connectivity=2.0)\n"
    "save_pruned(sys.argv[1] + '/pruned.safetensors', net, report.assignment)\n"
)
_PRUNE = """
import sys
from torch import nn
from tvm_pattern.prune_cli import app
def net(num_classes):
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(4, num_classes),
    )
folder = sys.argv[1]
app(["--model", "__main__:net", "--data", folder + "/data", "--recipe", folder + "/r.yaml",
     "--output", folder + "/out"])
"""
_RECORDS = """
import sys
from tvm_pattern.tuning.records import Record, TuningLog
def record(i):
    return Record("task", {}, {"n": i}, (1e-3,), timestamp=float(i))
log = TuningLog(sys.argv[1] + "/log.jsonl")
"""
_APPEND = _RECORDS + "for i in range(3, 6): log.append(record(i))\n"
_REWRITE = _RECORDS + "log.write([record(i) for i in range(6)])\n"


def at_every_write(
    command: Callable[[Path], list[str]],
    good: Path,
    tmp_path: Path,
    check: Callable[[Path], object],
    short: int,
    most: int | None = None,
) -> int:
    """Kill at each write to a fresh copy of ``good`` and ``check`` it; returns how often.

    The short form does ``short`` of them, spread over the run, with the first and the last; the
    long one all, or ``most``.
    """
    first = tmp_path / "unharmed"
    shutil.copytree(good, first)
    points = strace.kill_points(command(first), first, tmp_path / "trace")
    assert points, "the command wrote nothing"
    chosen = points
    wanted = (most or len(points)) if LONG else short
    if len(points) > wanted:
        step = (len(points) - 1) / (wanted - 1)
        chosen = [points[round(i * step)] for i in range(wanted)]
    killed = 0
    for number, point in enumerate(chosen):
        folder = tmp_path / f"killed-{number}"
        shutil.copytree(good, folder)
        result = strace.run_killed(command(folder), point)
        killed += result.code == -9
        try:
            check(folder)
        except Exception as error:
            raise AssertionError(f"killed at {point}: {error}\n{result}") from error
        # Whoever tries again succeeds.
    assert killed >= 0.8 * len(chosen), f"only {killed} of {len(chosen)} kills struck"
    last = processes.run(command(folder))
    assert last.code == 0, last
    return killed


def network(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU()).eval()


def test_training_state_and_pruned_weights(tmp_path):
    """One process writes both, since most of its time are its imports."""
    good = tmp_path / "good"
    good.mkdir()
    save_training(good / "training.pt", {"model": network(1).state_dict()})
    nets = [network(seed) for seed in (1, 2)]
    assignments = [oneshot(net, connectivity=2.0).assignment for net in nets]
    save_pruned(good / "pruned.safetensors", nets[0], assignments[0])

    def check(folder: Path) -> None:
        weight = load_training(folder / "training.pt", {"model"})["model"]["0.weight"]
        assert any(torch.equal(weight, network(seed)[0].weight) for seed in (1, 2))
        read = network(3)
        load_pruned(folder / "pruned.safetensors", read)
        assert any(torch.equal(read[0].weight, net[0].weight) for net in nets)

    at_every_write(
        lambda folder: processes.python(_SAVE, folder, 2), good, tmp_path, check, short=4
    )


def earlier_records(folder: Path) -> list[Record]:
    records = [Record("task", {}, {"n": i}, (1e-3,), timestamp=float(i)) for i in range(3)]
    TuningLog(folder / "log.jsonl").write(records)
    return records


@pytest.mark.parametrize("program", [_APPEND, _REWRITE], ids=["append", "rewrite"])
def test_tuning_log(tmp_path, program):
    """Earlier records stay, new ones come in order, and at most the last line is damaged."""
    good = tmp_path / "good"
    good.mkdir()
    earlier = earlier_records(good)

    def check(folder: Path) -> None:
        log = TuningLog(folder / "log.jsonl")
        records, bad = log.read()
        assert len(bad) <= 1
        assert records[:3] == earlier
        assert [r.config["n"] for r in records] == list(range(len(records)))
        log.append(earlier[0])
        assert log.read()[0] == [*records, earlier[0]]

    at_every_write(lambda folder: processes.python(program, folder), good, tmp_path, check, short=3)


@pytest.mark.faults_long
def test_prune_command(tmp_path):
    """Killed while it trains or writes its results, the same command goes on to the same end."""
    good = tmp_path / "good"
    rng = np.random.default_rng(0)
    for part, label, number in itertools.product(("train", "val"), ("cat", "dog"), range(2)):
        place = good / "data" / part / label
        place.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (16, 16, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(place / f"{number}.png")
    (good / "r.yaml").write_text(
        "version: 1\npatterns: {connectivity: 2.0}\n"
        "train: {epochs: 2, batch_size: 2, image_size: 8, workers: 0}\n"
    )

    def check(folder: Path) -> None:
        out = folder / "out"
        for name in ("history.json", "report.json"):
            if (out / name).exists():
                assert json.loads((out / name).read_text())
        if (out / "checkpoint.pt").exists():
            load_training(out / "checkpoint.pt", {"model", "epoch"})
        if (out / "model.safetensors").exists():
            assert load_pruned(out / "model.safetensors", classifier())
        for plot in (out / "plots").glob("*.png"):
            Image.open(plot).load()

    count = at_every_write(
        lambda folder: processes.python(_PRUNE, folder), good, tmp_path, check, short=3, most=12
    )
    last = sorted(tmp_path.glob("killed-*"), key=lambda p: int(p.name.split("-")[1]))[-1]
    ends = [json.loads((f / "out/history.json").read_text()) for f in (tmp_path / "unharmed", last)]
    assert ends[0]["epochs"] == ends[1]["epochs"]
    assert count >= 9


def classifier() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(4, 2),
    )  # fmt: skip


@pytest.mark.faults_long
def test_tune_command(tmp_path):
    """The whole command, killed at every write of its log, goes on with --resume."""
    good = tmp_path / "good"
    good.mkdir()

    def command(folder: Path) -> list[str]:
        env = (
            f"import sys; sys.path.insert(0, {str(processes.ROOT / 'tests')!r}); sys.argv[0] = 'x'"
        )
        arguments = [
            "tune", "--model", "tuning.test_session:Net", "--shape", "1x8x8x8", "--trials", "6",
            "--batch", "2", "--repeat", "1", "--min-repeat-ms", "1", "--threads", "1", "--resume",
            "--log", str(folder / "log.jsonl"),
        ]  # fmt: skip
        code = f"{env}; sys.argv[1:] = {arguments!r}; from tvm_pattern.cli import main; main()"
        return processes.python(code)

    def check(folder: Path) -> None:
        path = folder / "log.jsonl"
        if not path.exists():
            return
        records, bad = TuningLog(path).read()
        assert len(bad) <= 1
        assert all(record.error_kind == "ok" for record in records)
        measured = {(record.task_key, record.config_key) for record in records}
        assert len(measured) == len(records)

    at_every_write(command, good, tmp_path, check, short=3)
    lines = (tmp_path / "unharmed" / "log.jsonl").read_text().splitlines()
    assert all(json.loads(line) for line in lines)
