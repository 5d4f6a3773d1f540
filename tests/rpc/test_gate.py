"""Set-ups pass one after the other while the processors are busy; nobody who waits is forgotten."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from tvm_pattern.rpc import gate
from tvm_pattern.rpc.gate import Gate, meet


class Times(tuple):
    """As psutil's: the second is idle."""

    @property
    def idle(self) -> float:
        return self[1]


@pytest.fixture
def processors(monkeypatch):
    """Whether the processors are idle, at the test's will; the first look finds the start."""
    state = {"idle": False, "times": [0.0, 0.0]}

    def cpu_times() -> Times:
        state["times"][1 if state["idle"] else 0] += 1.0
        return Times(state["times"])

    monkeypatch.setattr(gate.psutil, "cpu_times", cpu_times)
    monkeypatch.setattr(gate, "LOOK", 0.001)
    return state


def test_busy_processors_let_so_many_in(processors):
    opened, inside, most = Gate(at_once=2), [0], [0]
    lock = threading.Lock()

    def work(_: int) -> int:
        with opened.pass_through():
            with lock:
                inside[0] += 1
                most[0] = max(most[0], inside[0])
            threading.Event().wait(0.005)
            with lock:
                inside[0] -= 1
        return 1

    with ThreadPoolExecutor(12) as pool:
        assert sum(pool.map(work, range(24))) == 24
    assert most[0] == 2


def test_idle_processors_let_more_in(processors):
    """Twelve that wait for each other, as for a slow network, are all let in."""
    processors["idle"] = True
    opened, together = Gate(at_once=1), threading.Barrier(12, timeout=60)

    def work(_: int) -> int:
        with opened.pass_through():
            together.wait()
        return 1

    with ThreadPoolExecutor(12) as pool:
        assert sum(pool.map(work, range(12))) == 12


def test_a_set_up_that_fails_gives_its_place_back(processors):
    opened = Gate(at_once=1)
    for _ in range(3):
        with pytest.raises(OSError, match="gone"), opened.pass_through():
            raise OSError("gone")


def test_who_never_comes_is_waited_for_so_long(tmp_path):
    meet(str(tmp_path), "started", 0, 2, 0.05)
    meet(str(tmp_path), "started", 1, 2, 60.0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["started-0", "started-1"]
