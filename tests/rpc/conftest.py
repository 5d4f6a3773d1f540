"""A real tracker and real servers on loopback, ended with everything they started."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from tvm_pattern.rpc.client import RPCError, TrackerClient
from tvm_pattern.rpc.server import free_port

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 120.0
KEY = "board"


def await_true(condition: Callable[[], bool], what: str) -> None:
    """Poll; the generous limit is for machines with much else to do."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {PATIENCE} s for {what}")
        time.sleep(0.1)


class Farm:
    """Processes of one tracker and its servers."""

    def __init__(self) -> None:
        self.port = free_port()
        self.client = TrackerClient("127.0.0.1", self.port)
        self.processes: list[subprocess.Popen] = []
        self.tracker: subprocess.Popen | None = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def _start(self, *arguments: str) -> subprocess.Popen:
        command = [sys.executable, "-m", "tvm_pattern.cli", "rpc", *arguments]
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        self.processes.append(process)
        return process

    def start_tracker(self) -> None:
        self.tracker = self._start("tracker", "--port", str(self.port))
        await_true(self.reachable, "the tracker")

    def reachable(self) -> bool:
        try:
            self.client.summary()
        except RPCError:
            return False
        return True

    def start_server(self, key: str = KEY, *options: str) -> subprocess.Popen:
        before = self.count(key)
        command = ["server", "--tracker", self.address, "--key", key, "--port", str(free_port())]
        process = self._start(*command, *options)
        await_true(lambda: self.count(key) > before, f"a server of {key}")
        return process

    def count(self, key: str = KEY) -> int:
        return sum(s.devices for s in self.client.status() if s.key == key)

    def stop(self) -> None:
        for process in self.processes:
            family = _descendants(process.pid)
            for pid in (process.pid, *family):
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
            process.wait()
            if process.stdout is not None:
                process.stdout.close()


def _descendants(pid: int) -> list[int]:
    try:
        return [child.pid for child in psutil.Process(pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


@pytest.fixture(scope="module")
def farm() -> Iterator[Farm]:
    """A tracker with two servers of one key."""
    opened = Farm()
    try:
        opened.start_tracker()
        opened.start_server()
        opened.start_server()
        yield opened
    finally:
        opened.stop()
