"""Disks that are full under weights, checkpoints and logs: words, and nothing lost."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import tvm_pattern as tp
from tvm_pattern import linking, mapped_weights
from tvm_pattern.manifest import ArtifactError
from tvm_pattern.posttrain import posttrain
from tvm_pattern.posttrain.saved import Saved
from tvm_pattern.pruning import load_pruned, oneshot, save_pruned
from tvm_pattern.pruning.checkpoint import CheckpointError, load_training, save_training
from tvm_pattern.tuning.records import LogError, Record, TuningLog

from .disks import SmallDisk


def network(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3)).eval()


@pytest.fixture
def disk(small_disk) -> SmallDisk:
    if not small_disk.is_tmpfs:
        pytest.skip("this system lets no process mount a tmpfs; the limit on file sizes remains")
    return small_disk


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - {"filler"}


@pytest.mark.parametrize("left", [0, 4096])
def test_pruned_weights(disk, left):
    path = disk.path / "pruned.safetensors"
    nets = [network(seed) for seed in (1, 2)]
    assignments = [oneshot(net, connectivity=2.0).assignment for net in nets]
    save_pruned(path, nets[0], assignments[0])
    disk.fill(leave=left)
    with pytest.raises(CheckpointError, match=r"cannot write .*No space left.*unchanged"):
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
    with pytest.raises(CheckpointError, match=r"cannot write .*No space left.*unchanged"):
        save_training(path, {"model": network(2).state_dict()})
    weight = load_training(path, {"model"})["model"]["0.weight"]
    assert torch.equal(weight, network(1)[0].weight)
    assert names(disk.path) == {path.name}


def test_pruning_by_pictures_goes_on_when_there_is_room(disk, monkeypatch):
    """What was done before the disk was full is kept, and the network is as it was."""
    path, pictures = disk.path / "posttrain.pt", [torch.randn(4, 3, 8, 8)]
    whole, net = network(1), network(1)
    posttrain(whole, pictures, 2.0)
    add, fitted = Saved.add, []

    def fill_after_the_first(self, name, fit):
        if fitted:
            disk.fill()
        fitted.append(name)
        add(self, name, fit)

    monkeypatch.setattr(Saved, "add", fill_after_the_first)
    with pytest.raises(CheckpointError, match=r"cannot write .*No space left.*unchanged"):
        posttrain(net, pictures, 2.0, checkpoint=path)
    assert torch.equal(net[0].weight, network(1)[0].weight)
    assert fitted == ["0", "2"]
    disk.empty()
    monkeypatch.setattr(Saved, "add", lambda *a: fitted.append(a[1]) or add(*a))
    posttrain(net, pictures, 2.0, checkpoint=path)
    assert fitted == ["0", "2", "2"]
    assert torch.equal(net[2].weight, whole[2].weight)


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


def test_weights_of_a_library(disk, monkeypatch, tmp_path):
    """They are written behind the linked code, in the folder for temporary files."""
    monkeypatch.setattr(mapped_weights, "_LEAST_BYTES", 1)
    monkeypatch.setattr(mapped_weights, "_LEAST_TOTAL", 1)
    library = tp.compile(network(1), torch.zeros(1, 3, 8, 8), num_threads=1, verify=False)
    monkeypatch.setattr("tempfile.tempdir", str(disk.path))
    append = linking.append

    def fill_and_append(*arguments):
        disk.fill()
        return append(*arguments)

    monkeypatch.setattr(linking, "append", fill_and_append)
    with pytest.raises(ArtifactError, match=r"cannot write the weights: No space left.*TMPDIR"):
        library.export(tmp_path / "net.so")
    assert not (tmp_path / "net.so").exists()
    assert not list(disk.path.glob("tvm-pattern-*/*.so"))
    disk.empty()
    monkeypatch.setattr(linking, "append", append)
    assert library.export(tmp_path / "net.so").is_file()
