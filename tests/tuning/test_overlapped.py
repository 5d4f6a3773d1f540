"""A search over several devices, played: nothing is proposed twice, lost, or waited for."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from relay_passes.targets import resolve
from tvm_pattern.tuning.measure import Measurement, MeasureOptions
from tvm_pattern.tuning.records import LogError, TuningLog
from tvm_pattern.tuning.session import Search, TuneOptions
from tvm_pattern.tuning.tasks import WeightedTask
from tvm_pattern.tuning.tuners import TUNERS

from .small import small_task, synthetic_times

TARGET = resolve("pattern/native")
DEVICES = 5


class Farm:
    """As a Measurer and its Pipeline: answers come in any order, but for one that comes last.

    Parameters
    ----------
    seed : int
        Of the order.
    stuck : int
        The candidate that is answered once nothing else is on its way, by its number.
    """

    devices = DEVICES

    def __init__(self, times: dict, seed: int = 0, stuck: int = -1) -> None:
        self.build_seconds = self.run_seconds = 0.0
        self._times, self._random, self._stuck = times, random.Random(seed), stuck
        self.flying: dict[int, object] = {}
        self.measured: list[object] = []
        self.most = self.answered_beside_stuck = 0

    def pipeline(self):
        return self

    def candidate(self, task, weight, config, structure):
        return (task.key, config), 0

    def add(self, function, token) -> int:
        number = len(self.measured) + len(self.flying)
        self.flying[number] = function
        self.most = max(self.most, len(self.flying))
        return number

    def next(self):
        ready = sorted(set(self.flying) - {self._stuck}) or sorted(self.flying)
        number = self._random.choice(ready)
        self.answered_beside_stuck += self._stuck in self.flying and number != self._stuck
        self.measured.append(self.flying.pop(number))
        return number, Measurement((self._times[self.measured[-1]],))


@pytest.fixture(scope="module")
def tasks():
    return [WeightedTask(*small_task(size=size), [f"l{size}"]) for size in (8, 12)]


def search_of(tasks, log, trials: int, *, resume: bool = False, **options) -> Search:
    chosen = TuneOptions(trials=trials, batch=4, resume=resume, measure=MeasureOptions(), **options)
    return Search(tasks, TARGET, TuningLog(log), chosen)


def farm_of(search: Search, **how) -> Farm:
    times = {}
    for state in search.states:
        seconds = synthetic_times(state.space)
        for config, value in zip(state.space.configs, seconds, strict=True):
            times[state.weighted.task.key, config] = float(value)
    return Farm(times, **how)


@pytest.mark.parametrize("tuner", sorted(TUNERS))
def test_every_trial_is_another_one_and_is_recorded(tasks, tmp_path, tuner):
    search = search_of(tasks, tmp_path / "log", 60, tuner=tuner)
    farm, told = farm_of(search, seed=1), []
    result = search.run(farm, told.append)
    assert result.trials == search.trials == 60
    assert max(Counter(farm.measured).values()) == 1
    assert len(TuningLog(tmp_path / "log").records()) == 60
    assert sum(state.trials for state in search.states) == 60
    assert {state.pending for state in search.states} == {0}
    assert all(state.default_seconds < float("inf") for state in search.states)
    assert DEVICES <= farm.most <= 2 * DEVICES + 4
    assert [state.trials for state in told] == sorted(state.trials for state in told)


def test_the_first_of_each_task_is_level_0(tasks, tmp_path):
    search = search_of(tasks, tmp_path / "log", 24)
    farm = farm_of(search, seed=2)
    search.run(farm)
    for state in search.states:
        assert state.space.configs[state.space.default] in {config for _, config in farm.measured}


def test_one_slow_device_holds_up_no_other(tasks, tmp_path):
    search = search_of(tasks, tmp_path / "log", 60)
    farm = farm_of(search, stuck=0)
    search.run(farm)
    assert farm.answered_beside_stuck == 59


def test_a_whole_space_comes_to_its_end(tmp_path):
    task = WeightedTask(*small_task(), ["l"])
    search = search_of([task], tmp_path / "log", 10**6, tuner="random", early_stop=None)
    farm = farm_of(search)
    result = search.run(farm)
    assert result.trials == len(search.states[0].space) == len(set(farm.measured))


def test_it_goes_on_where_a_log_ends(tasks, tmp_path):
    """The second half knows the first one, in whatever order that was written."""
    log = tmp_path / "log"
    first = search_of(tasks, log, 20)
    before = farm_of(first, seed=3)
    first.run(before)
    again = search_of(tasks, log, 44, resume=True)
    assert again.trials == 20
    assert [s.best_seconds for s in again.states] == [s.best_seconds for s in first.states]
    after = farm_of(again, seed=4)
    again.run(after)
    assert len(after.measured) == 24
    assert not set(before.measured) & set(after.measured)


def test_what_was_measured_before_a_full_disk_is_kept(tasks, tmp_path, monkeypatch):
    log = tmp_path / "log"
    search = search_of(tasks, log, 40)
    real, left = search.log.append, [7]

    def append(record):
        left[0] -= 1
        if left[0] < 0:
            raise LogError("no space left")
        real(record)

    monkeypatch.setattr(search.log, "append", append)
    with pytest.raises(LogError, match="no space left"):
        search.run(farm_of(search))
    assert len(TuningLog(log).records()) == 7


def test_it_learns_from_what_came_meanwhile(tmp_path):
    """Better than as many points at random: what is still on its way costs little."""
    # Nothing is built, so the space is the same whatever processor this is.
    tasks = [WeightedTask(*small_task(size=8, family="x86-avx512"), ["l8"])]
    found = {}
    for tuner in ("xgb", "random"):
        best = []
        for seed in range(2):
            search = search_of(tasks, tmp_path / f"{tuner}{seed}", 40, tuner=tuner, seed=seed)
            search.run(farm_of(search, seed=seed))
            best.append(search.states[0].best_seconds)
        found[tuner] = sum(best)
    assert found["xgb"] < found["random"]
