"""When a device is kept for the next candidate, and whose fault a failure is; without devices."""

from __future__ import annotations

import threading
import time

import pytest

from tvm_pattern.rpc.client import KeyStatus, NoDeviceError, TrackerUnreachableError
from tvm_pattern.tuning import held_devices
from tvm_pattern.tuning.held_devices import Devices, Evaluation, HeldDevices, Job

PATIENCE = 60.0


class Session:
    """What a tracker gives; counts what is done with it."""

    def __init__(self) -> None:
        self.removed: list[str] = []

    def remove(self, name: str) -> None:
        self.removed.append(name)


class Tracker:
    """As a TrackerClient; ``pending`` others wait for a device."""

    def __init__(self) -> None:
        self.sessions: list[Session] = []
        self.pending = 0
        self.gone = False

    def request(self, key, session_timeout, wait):
        if self.gone:
            raise NoDeviceError("there is none")
        self.sessions.append(Session())
        return self.sessions[-1]

    def status(self):
        if self.gone:
            raise TrackerUnreachableError("no answer")
        return [KeyStatus("k", 2, 0, self.pending)]


@pytest.fixture
def held(monkeypatch):
    """Devices whose candidates do what ``held.acts`` says, one after the other, then well."""
    devices = HeldDevices(Devices("h", 1, "k", 30.0, 0.0, lambda *_: [], Evaluation(1, 1, 1)))
    devices._client = devices.tracker = Tracker()
    devices.acts = []
    devices.cut = []
    devices.used = []

    def on(device, job):
        devices.used.append(device.session)
        device.candidates += 1
        act = devices.acts.pop(0) if devices.acts else None
        if act is not None:
            raise act
        return (1.0,)

    monkeypatch.setattr(devices, "_on", on)
    monkeypatch.setattr(held_devices.line, "cut", devices.cut.append)
    yield devices
    devices.close()


JOB = Job("a/b.so", "cpu", [])


def run(devices: HeldDevices, count: int = 1) -> list[str | None]:
    return [devices.submit(JOB).result(PATIENCE).error_msg for _ in range(count)]


def test_a_device_is_kept_from_candidate_to_candidate(held):
    assert run(held, 5) == [None] * 5
    assert len(held.tracker.sessions) == 1
    assert held.tracker.sessions[0].removed == ["b.so"] * 5
    assert held.cut == []


def test_a_failure_counts_only_on_a_device_that_starts_with_it(held):
    """The first is broken by what its forerunner left behind, the second everywhere."""
    run(held)
    held.acts = [RuntimeError("WrongResult: left behind")]
    assert run(held) == [None]
    held.acts = [RuntimeError("WrongResult: first"), RuntimeError("WrongResult: again")]
    assert run(held) == ["RuntimeError: WrongResult: again"]
    first, second, third = held.tracker.sessions
    assert held.used == [first, first, second, second, third]
    assert held.cut == [first, second, third]


def test_a_device_that_others_wait_for_is_given_back(held):
    held.tracker.pending = 1
    assert run(held, 2) == [None, None]
    assert held.cut == held.tracker.sessions
    assert len(held.cut) == 2


def test_a_tracker_that_does_not_answer_takes_no_device_away(held):
    run(held)
    held.tracker.gone = True
    assert run(held, 2) == [None, None]
    assert held.cut == []
    held.acts = [RuntimeError("closed")]
    assert run(held) == ["NoDeviceError: there is none"]


@pytest.mark.parametrize(
    ("limit", "value"), [("_SESSION_TIMES", 1.0), ("_MOST_CANDIDATES", 1), ("_MOST_BYTES", -1)]
)
def test_a_session_has_an_end(held, monkeypatch, limit, value):
    monkeypatch.setattr(held_devices, limit, value)
    assert run(held, 2) == [None, None]
    assert held.cut == held.tracker.sessions


def test_a_device_without_work_is_given_back(held, monkeypatch):
    monkeypatch.setattr(held_devices, "_IDLE_SECONDS", 0.01)
    run(held)
    deadline = time.monotonic() + PATIENCE
    while not held.cut and time.monotonic() < deadline:
        time.sleep(0.01)
    assert held.cut == held.tracker.sessions


def test_a_device_that_cannot_remove_files_starts_afresh(held, monkeypatch):
    def refuse(_session, _name):
        raise RuntimeError("unknown function tvm.rpc.server.remove")

    monkeypatch.setattr(Session, "remove", refuse)
    assert run(held, 2) == [None, None]
    assert held.cut == held.tracker.sessions


def test_a_candidate_whose_time_is_over_is_not_tried_again(held, monkeypatch):
    run(held)
    held.acts = [RuntimeError("the line was cut")]
    over = []
    monkeypatch.setattr(held_devices.line, "is_over", lambda session: bool(over))
    monkeypatch.setattr(held_devices.line, "end_in", lambda session, seconds: over.append(seconds))
    assert run(held) == ["SessionTimeout: RuntimeError: the line was cut"]
    assert len(held.tracker.sessions) == 1


def test_closing_gives_everything_back(held, monkeypatch):
    """One device is idle, one is at work; what that answers yet does not keep it."""
    go, begun = threading.Event(), threading.Event()

    def on(device, job):
        begun.set()
        assert go.wait(PATIENCE)
        return (1.0,)

    run(held)
    idle = held.tracker.sessions[0]
    monkeypatch.setattr(held, "_take_idle", lambda: None)
    monkeypatch.setattr(held, "_on", on)
    future = held.submit(JOB)
    assert begun.wait(PATIENCE)
    held.close()
    assert set(held.cut) == {idle, held.tracker.sessions[1]}
    go.set()
    assert future.result(PATIENCE).error_msg is None
    assert not held._idle
