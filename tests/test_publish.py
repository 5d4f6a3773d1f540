"""A library and its manifest on the disk: old pair or new pair, whatever stops the writer."""

from __future__ import annotations

import errno
import os
import stat
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from tvm_pattern import atomic, publish
from tvm_pattern.manifest import ArtifactError, Manifest, manifest_path, pending_path
from tvm_pattern.pruning import PatternConfig, oneshot
from tvm_pattern.pruning.plots import plot_library
from tvm_pattern.tuning.plots import plot_search
from tvm_pattern.tuning.records import LogError, TuningLog

MANIFEST = Manifest(
    target={"kind": "llvm"},
    architecture="x86_64",
    cpu_features=[],
    inputs=[],
    outputs=[{"name": "y", "shape": [1], "dtype": "float32"}],
    num_threads=1,
    versions={},
    report=[],
    steps=[],
)


def put(path, content, num_threads):
    """Publish ``content``; its manifest is told by the number of threads."""

    def write(file):
        file.write(content)
        return replace(MANIFEST, num_threads=num_threads)

    publish.publish(path, write)


def pair(path):
    return path.read_bytes(), publish.manifest_of(path).num_threads


def test_both_files_are_there_and_nothing_else(tmp_path):
    put(tmp_path / "m.so", b"one", 1)
    put(tmp_path / "m.so", b"two", 2)
    assert pair(tmp_path / "m.so") == (b"two", 2)
    assert Manifest.read(manifest_path(tmp_path / "m.so")).num_threads == 2
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.so", "m.so.json"]


class Stopped(BaseException):
    """What kills a process in these tests."""


@pytest.mark.parametrize("renames", [0, 1, 2])
@pytest.mark.parametrize("was_there", [False, True])
def test_stopped_before_any_rename(tmp_path, monkeypatch, renames, was_there):
    path = tmp_path / "m.so"
    if was_there:
        put(path, b"old", 1)
    real, done = os.replace, []

    def rename(source, target):
        if len(done) == renames:
            raise Stopped
        done.append(target)
        real(source, target)

    monkeypatch.setattr(os, "replace", rename)
    with pytest.raises(Stopped):
        put(path, b"new", 2)
    monkeypatch.setattr(os, "replace", real)
    # Renamed: the pending manifest, the library, the manifest.
    if renames == 2:
        assert pair(path) == (b"new", 2)
    elif was_there:
        assert pair(path) == (b"old", 1)
    else:
        assert not path.exists()
    # The next export is not disturbed, even one that stops after its own first rename.
    done.clear()
    renames = 1
    monkeypatch.setattr(os, "replace", rename)
    with pytest.raises(Stopped):
        put(path, b"third", 3)
    monkeypatch.setattr(os, "replace", real)
    if path.exists():
        assert pair(path) in [(b"old", 1), (b"new", 2), (b"third", 3)]
    put(path, b"last", 4)
    assert pair(path) == (b"last", 4)
    assert not pending_path(path).exists()


def test_a_failed_write_leaves_the_old_pair(tmp_path):
    path = tmp_path / "m.so"
    put(path, b"old", 1)

    def write(file):
        file.write(b"ne")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(ArtifactError, match=r"No space left on device; the library that was there"):
        publish.publish(path, write)
    assert pair(path) == (b"old", 1)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.so", "m.so.json"]


def test_a_link_stays_a_link(tmp_path):
    (tmp_path / "v1").mkdir()
    put(tmp_path / "v1" / "real.so", b"old", 1)
    (tmp_path / "m.so").symlink_to("v1/real.so")
    assert pair(tmp_path / "m.so") == (b"old", 1)  # with no manifest beside the link
    put(tmp_path / "m.so", b"new", 2)
    assert (tmp_path / "m.so").is_symlink()
    for name in ("m.so", "v1/real.so"):
        assert pair(tmp_path / name) == (b"new", 2)
    put(tmp_path / "v1" / "real.so", b"newer", 3)
    for name in ("m.so", "v1/real.so"):
        assert pair(tmp_path / name) == (b"newer", 3)
    # A link to the manifest stays one as well.
    manifest_path(tmp_path / "m.so").unlink()
    manifest_path(tmp_path / "m.so").symlink_to("v1/real.so.json")
    put(tmp_path / "m.so", b"newest", 4)
    assert manifest_path(tmp_path / "m.so").is_symlink()
    for name in ("m.so", "v1/real.so"):
        assert pair(tmp_path / name) == (b"newest", 4)


def test_a_manifest_that_fits_is_enough(tmp_path):
    (tmp_path / "v1").mkdir()
    put(tmp_path / "v1" / "real.so", b"old", 1)
    (tmp_path / "m.so").symlink_to("v1/real.so")
    put(tmp_path / "m.so", b"new", 2)
    assert manifest_path(tmp_path / "m.so").is_file()
    manifest_path(tmp_path / "v1" / "real.so").write_text("{")
    assert pair(tmp_path / "m.so") == (b"new", 2)


def test_permissions_follow_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        put(tmp_path / "m.so", b"x", 1)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "m.so").stat().st_mode) == 0o750
    assert stat.S_IMODE(manifest_path(tmp_path / "m.so").stat().st_mode) == 0o640


def test_a_damaged_pending_manifest_does_no_harm(tmp_path):
    path = tmp_path / "m.so"
    put(path, b"old", 1)
    pending_path(path).write_text("{")
    assert pair(path) == (b"old", 1)
    put(path, b"new", 2)
    assert pair(path) == (b"new", 2)
    assert not pending_path(path).exists()


def test_a_reader_meets_whole_pairs_only(tmp_path):
    """Two writers and readers on one name; each content belongs to its own manifest."""
    path = tmp_path / "m.so"
    put(path, b"0" * 70_000, 1)
    stop = threading.Event()

    def write(digit):
        while not stop.is_set():
            put(path, str(digit).encode() * 70_000, digit + 1)

    writers = [threading.Thread(target=write, args=(digit,)) for digit in (0, 5)]
    for thread in writers:
        thread.start()
    try:
        for _ in range(50):
            with atomic.new_file(tmp_path / "copy") as (file, _name):
                manifest = publish.copy_checked(path, file)
                file.seek(0)
                content = file.read()
            assert content == str(manifest.num_threads - 1).encode() * 70_000
    finally:
        stop.set()
        for thread in writers:
            thread.join()


def test_write_file_replaces_or_leaves(tmp_path):
    atomic.write_file(tmp_path / "x", b"one")
    with pytest.raises(FileNotFoundError):
        atomic.write_file(tmp_path / "none" / "x", b"two")
    assert (tmp_path / "x").read_bytes() == b"one"
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


# Writers of single files -------------------------------------------------------------------------


def small_report():
    torch.manual_seed(0)
    return oneshot(nn.Sequential(nn.Conv2d(3, 8, 3)).eval(), connectivity=2.0, first="prune")


WRITERS = {
    "report.json": lambda path: small_report().save(path),
    "report.md": lambda path: small_report().save(path),
    "report.html": lambda path: small_report().save(path),
    "patterns.yaml": lambda path: PatternConfig().save(path),
    "patterns.json": lambda path: PatternConfig().save(path),
    "library.png": lambda path: plot_library(small_report(), path),
    "curves.svg": lambda path: plot_search(path, []),
    "outputs.npz": lambda path: atomic.write_arrays(path, {"y": np.arange(3)}),
    "log.jsonl": lambda path: TuningLog(path).write([]),
}


@pytest.mark.filterwarnings("ignore:No artists with labels")
@pytest.mark.parametrize("name", WRITERS)
def test_what_stops_a_writer_leaves_the_old_file(tmp_path, monkeypatch, name):
    path = tmp_path / name
    path.write_bytes(b"old")

    def full_disk(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full_disk)
        with pytest.raises((OSError, LogError), match="No space left"):
            WRITERS[name](path)
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == [name]
    WRITERS[name](path)
    assert path.read_bytes() != b"old"
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_an_error_names_the_file_that_was_asked_for(tmp_path):
    path = tmp_path / "nowhere" / "out.npz"
    with pytest.raises(FileNotFoundError, match=r"nowhere/out\.npz'$"):
        atomic.write_file(path, b"")


def test_arrays_by_name(tmp_path):
    atomic.write_arrays(tmp_path / "out", {"y": np.arange(3), "output 1": np.ones((2, 2))})
    with np.load(tmp_path / "out.npz") as found:
        assert found["y"].tolist() == [0, 1, 2]
        assert found["output 1"].shape == (2, 2)
