"""Locks: who holds one, what remains of a process that was killed, and what needs none."""

from __future__ import annotations

import errno
import logging
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tvm_pattern import locks
from tvm_pattern.demo import run_demo
from tvm_pattern.locks import LockError, lock_path, locked, locked_folder
from tvm_pattern.prune_cli import app as prune_app

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def holder(tmp_path):
    """A process that holds the locks of ``tmp_path`` and of ``tmp_path / "log.jsonl"``."""
    code = f"""
        import sys
        from tvm_pattern.locks import locked
        with locked({str(tmp_path)!r}, "at"), locked({str(tmp_path / "log.jsonl")!r}, "at"):
            print("held", flush=True)
            sys.stdin.read()
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=ROOT,
    )
    assert process.stdout.readline() == b"held\n"
    yield process
    process.kill()
    process.wait()
    process.stdin.close()
    process.stdout.close()


def test_the_holder_is_named(holder, tmp_path):
    log = tmp_path / "log.jsonl"
    said = rf"process {holder.pid} on .* since \d{{4}}-\d\d-\d\d .* is tuning into {log}; wait"
    with pytest.raises(LockError, match=said), locked(log, "tuning into"):
        pass
    assert not log.exists()


def test_a_killed_holder_leaves_no_lock(holder, tmp_path):
    holder.kill()
    holder.wait()
    assert str(holder.pid) in lock_path(tmp_path).read_text()
    with locked(tmp_path, "at"):
        assert str(os.getpid()) in lock_path(tmp_path).read_text()


def test_a_lock_ends_with_its_block(tmp_path):
    with (
        pytest.raises(LockError, match=rf"process {os.getpid()} "),
        locked(tmp_path, "at"),
        locked(tmp_path, "at"),
    ):
        pass
    with locked(tmp_path, "at"):
        pass


def test_a_lock_file_of_garbage_names_nobody(tmp_path):
    with locked(tmp_path, "at"):
        lock_path(tmp_path).write_text("[1]")
        with pytest.raises(LockError, match="another process is at"), locked(tmp_path, "at"):
            pass


def test_folders_are_made(tmp_path):
    with locked_folder(tmp_path / "a" / "b", "at"):
        assert lock_path(tmp_path / "a" / "b") == tmp_path / "a" / "b" / ".lock"
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(LockError, match="cannot make"),
        locked_folder(tmp_path / "file" / "x", "at"),
    ):
        pass
    with pytest.raises(LockError, match="cannot lock"), locked(tmp_path / "file" / "x", "at"):
        pass


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EIO])
def test_file_systems_without_locks(code, tmp_path, monkeypatch, caplog):
    def refuse(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(locks.fcntl, "flock", refuse)
    if code == errno.EIO:
        with pytest.raises(LockError, match="cannot lock"), locked(tmp_path, "at"):
            pass
        return
    with caplog.at_level(logging.WARNING), locked(tmp_path, "at"):
        assert "takes no locks" in caplog.text


def test_systems_without_locks(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(locks, "fcntl", None)
    with caplog.at_level(logging.WARNING), locked(tmp_path, "at"):
        assert "no locks on this system" in caplog.text


def test_two_runs_in_one_folder(holder, tmp_path):
    with pytest.raises(LockError, match=rf"process {holder.pid}"):
        run_demo(tmp_path, quick=True)
    arguments = ["--model", "vgg16", "--data", "digits", "--output", str(tmp_path)]
    result = CliRunner().invoke(prune_app, arguments)
    assert result.exit_code == 1
    assert f"process {holder.pid}" in result.output.replace("\n", "")
