"""Disks that are full, for the result or for temporary files: words, and nothing lost."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import tvm_pattern as tp
from tvm_pattern.manifest import ArtifactError, manifest_path
from tvm_pattern.pruning import load_pruned, oneshot, save_pruned
from tvm_pattern.pruning.checkpoint import CheckpointError, load_training, save_training
from tvm_pattern.tuning.records import LogError, Record, TuningLog

from . import processes
from .disks import SmallDisk

IMAGE = np.random.default_rng(0).standard_normal((1, 3, 9, 9)).astype(np.float32)
LEFT = (0, 4096, 8192, 40960)


def network(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3)).eval()


@pytest.fixture
def disk(small_disk) -> SmallDisk:
    if not small_disk.is_tmpfs:
        pytest.skip("this system lets no process mount a tmpfs; the limit on file sizes remains")
    return small_disk


@pytest.fixture(scope="module")
def libraries() -> list[tp.Library]:
    return [tp.compile(network(s), torch.from_numpy(IMAGE), num_threads=1) for s in (1, 2)]


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - {"filler"}


def refusal(act: Callable[[], object]) -> str | None:
    """What the library's own error says, None if there is none."""
    try:
        act()
    except ArtifactError as error:
        return str(error)
    return None


@pytest.mark.parametrize("left", LEFT)
@pytest.mark.parametrize("suffix", [".so", ".tar"])
def test_export_over_a_good_library(disk, libraries, suffix, left):
    """Refused in words, or done; the old library answers, or the new one."""
    path = disk.path / f"net{suffix}"
    libraries[0].export(path)
    before = names(disk.path)
    expected = [library(IMAGE) for library in libraries]
    disk.fill(leave=left)
    said = refusal(lambda: libraries[1].export(path))
    assert said is None or "space" in said
    now = expected[1] if said is None else expected[0]
    np.testing.assert_array_equal(tp.load(path)(IMAGE), now)
    assert names(disk.path) == before
    disk.empty()
    libraries[1].export(path)
    np.testing.assert_array_equal(tp.load(path)(IMAGE), expected[1])


@pytest.mark.parametrize("left", LEFT)
def test_first_export(disk, libraries, left):
    path = disk.path / "net.so"
    disk.fill(leave=left)
    with pytest.raises(ArtifactError, match="space"):
        libraries[0].export(path)
    assert not names(disk.path)


def temporary_files_at(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr("tempfile.tempdir", None)


@pytest.mark.parametrize("left", [0, 4096])
def test_export_with_a_full_temporary_folder(disk, libraries, tmp_path, monkeypatch, left):
    disk.fill(leave=left)
    temporary_files_at(monkeypatch, disk.path)
    path = tmp_path / "net.so"
    with pytest.raises(ArtifactError):
        libraries[0].export(path)
    assert not path.exists()
    assert not manifest_path(path).exists()


@pytest.mark.parametrize("left", [0, 4096])
def test_load_with_a_full_temporary_folder(disk, libraries, tmp_path, monkeypatch, left):
    path = libraries[0].export(tmp_path / "net.so")
    expected = libraries[0](IMAGE)
    disk.fill(leave=left)
    with monkeypatch.context() as full:
        temporary_files_at(full, disk.path)
        said = refusal(lambda: np.testing.assert_array_equal(tp.load(path)(IMAGE), expected))
        assert said is None or "space" in said
    monkeypatch.setattr("tempfile.tempdir", None)
    np.testing.assert_array_equal(tp.load(path)(IMAGE), expected)


@pytest.mark.parametrize("left", [0, 4096])
def test_pruned_weights(disk, left):
    path = disk.path / "pruned.safetensors"
    nets = [network(seed) for seed in (1, 2)]
    assignments = [oneshot(net, connectivity=2.0).assignment for net in nets]
    save_pruned(path, nets[0], assignments[0])
    disk.fill(leave=left)
    with pytest.raises((CheckpointError, OSError), match=r"space|cannot write"):
        save_pruned(path, nets[1], assignments[1])
    read = network(3)
    load_pruned(path, read)
    assert torch.equal(read[0].weight, nets[0][0].weight)
    assert names(disk.path) == {path.name}


@pytest.mark.parametrize("left", [0, 4096])
def test_training_state(disk, left):
    path = disk.path / "training.pt"
    save_training(path, {"model": network(1).state_dict()})
    disk.fill(leave=left)
    with pytest.raises((CheckpointError, OSError), match=r"space|cannot write"):
        save_training(path, {"model": network(2).state_dict()})
    weight = load_training(path, {"model"})["model"]["0.weight"]
    assert torch.equal(weight, network(1)[0].weight)
    assert names(disk.path) == {path.name}


def test_tuning_log(disk):
    log = TuningLog(disk.path / "log.jsonl")
    records = [Record("task", {}, {"n": i}, (1e-3,), timestamp=float(i)) for i in range(4)]
    log.write(records)
    disk.fill()
    room = disk.path.stat().st_blksize - log.path.stat().st_size % disk.path.stat().st_blksize
    big = Record("task", {"text": "x" * (room + 8192)}, {"n": 9}, (1e-3,))
    with pytest.raises(LogError, match="free some space"):
        log.append(big)
    with pytest.raises(LogError, match="cannot write"):
        log.write([big])
    assert log.read() == (records, [])
    assert names(disk.path) == {log.path.name}


@pytest.mark.parametrize("what", ["result", "temporary-files"])
def test_compile_command(small_disk, tmp_path, what):
    """rc 1 and a line of words, not one of Python or of the linker; works where no tmpfs does."""
    factory = tmp_path / "small_network.py"
    factory.write_text(
        "from torch import nn\n"
        "def net(): return nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU()).eval()\n"
    )
    small_disk.fill()
    here = small_disk.path if what == "result" else tmp_path
    output = here / "net.so"
    env = processes.environment()
    if what != "result":
        env["TMPDIR"] = str(small_disk.path)
    env["PYTHONPATH"] += os.pathsep + str(tmp_path)
    command = processes.cli(
        "compile", "small_network:net", "--shape", "1x3x8x8", "-o", output, "--threads", 1
    )
    result = processes.run(command, env=env, preexec_fn=small_disk.limit())
    assert result.code == 1, result
    assert not result.is_raw, result
    assert "error:" in result.err, result
    assert not output.exists()
    assert not manifest_path(output).exists()
