"""Who gets the next candidate: whoever has a device for it; a process that ends loses none."""

from __future__ import annotations

from concurrent.futures import Future

import pytest

from tvm_pattern.rpc.client import TrackerClient
from tvm_pattern.rpc.session_process import ProcessEndedError, SessionProcess
from tvm_pattern.tuning import device_pool
from tvm_pattern.tuning.device_pool import Answer, DevicePool, Devices, Job
from tvm_pattern.tuning.held_devices import Evaluation
from tvm_pattern.tuning.measure import classify_run_error

JOB = Job("a.so", "cpu", [])


class Place(SessionProcess):
    """Measures nothing: the test answers."""

    def __init__(self) -> None:
        self.futures: list[Future] = []
        self._ended = False
        self.closed = False

    def submit(self, argument: Job) -> Future:
        self.futures.append(Future())
        return self.futures[-1]

    def close(self) -> None:
        self.closed = True

    @property
    def open(self) -> list[Future]:
        return [future for future in self.futures if not future.done()]


@pytest.fixture
def places(monkeypatch) -> list[Place]:
    made: list[Place] = []

    def measures(_pool, _processes):
        made.append(Place())
        return made[-1]

    monkeypatch.setattr(DevicePool, "_measures", measures)
    monkeypatch.setattr(device_pool, "SESSIONS_PER_PROCESS", 3)
    return made


def pool_of(devices: int, monkeypatch) -> DevicePool:
    monkeypatch.setattr(TrackerClient, "count", lambda client, key: devices)
    return DevicePool(Devices("h", 1, "k", 30.0, 0.0, lambda *_: [], Evaluation(1, 1, 1)))


def test_as_many_at_a_time_as_devices_spread_over_processes(places, monkeypatch):
    pool, answers = pool_of(5, monkeypatch), []
    for _ in range(9):
        pool.submit(JOB, answers.append)
    assert sorted(len(place.futures) for place in places) == [2, 3]
    while not all(future.done() for place in places for future in place.futures):
        place = max(places, key=lambda place: len(place.open))
        place.open[0].set_result(Answer((1.0,)))
        assert sum(len(place.open) for place in places) <= 5
        assert max(len(place.open) for place in places) <= 3
    assert answers == [Answer((1.0,))] * 9


def test_a_slow_device_holds_up_nothing_else(places, monkeypatch):
    """One candidate of the first process never ends; all others are measured."""
    pool, answers = pool_of(4, monkeypatch), []
    for _ in range(12):
        pool.submit(JOB, answers.append)
    stuck = places[0].futures[0]
    while any(future is not stuck for place in places for future in place.open):
        next(f for place in places for f in place.open if f is not stuck).set_result(Answer((1.0,)))
    assert len(answers) == 11


def test_a_process_that_ends_is_replaced_and_its_candidates_count_as_lost(places, monkeypatch):
    pool, answers = pool_of(3, monkeypatch), []
    for _ in range(4):
        pool.submit(JOB, answers.append)
    (first,) = places
    first._ended = True
    for future in first.futures:
        future.set_exception(ProcessEndedError("a process ended (exit code -9)"))
    assert len(places) == 2
    assert len(places[1].futures) == 1
    kinds = {classify_run_error(str(a.error_msg), remote=True) for a in answers}
    assert (len(answers), kinds) == (3, {"device_lost"})


def test_more_devices_are_used_once_they_are_known(places, monkeypatch):
    pool = pool_of(1, monkeypatch)
    for _ in range(4):
        pool.submit(JOB, lambda answer: None)
    assert len(places[0].futures) == 1
    monkeypatch.setattr(TrackerClient, "count", lambda client, key: 3)
    monkeypatch.setattr(device_pool, "_LOOK_SECONDS", 0.0)
    assert pool.devices == 3
    pool.submit(JOB, lambda answer: None)
    assert len(places[0].futures) == 3
    pool.close()
    assert places[0].closed
