"""Spaces, tuners, the cost model and the scheduler, on recorded times: nothing is measured."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from topi_kernels.geometry import ConvGeometry
from topi_kernels.layout import PlaneLayout
from topi_kernels.pattern import Pattern
from topi_kernels.schedules.config import ConvConfig, knobs_of
from tvm_pattern.tuning.cost_model import Line, RankModel
from tvm_pattern.tuning.features import FEATURES
from tvm_pattern.tuning.lookup import config_of
from tvm_pattern.tuning.plots import plot_search
from tvm_pattern.tuning.records import LogError
from tvm_pattern.tuning.scheduler import (
    NetworkEstimate,
    TaskState,
    network_estimate,
    next_task,
)
from tvm_pattern.tuning.session import warm_start_sets
from tvm_pattern.tuning.space import EmptySpaceError, Space
from tvm_pattern.tuning.tasks import WeightedTask
from tvm_pattern.tuning.tuners import TUNERS, make_tuner

from .small import record_of, small_task, synthetic_times


@pytest.fixture(scope="module")
def space() -> Space:
    task, _ = small_task(size=14, family="x86-avx512", out_channels=16, in_channels=16)
    return Space(task)


@pytest.fixture(scope="module")
def times(space) -> np.ndarray:
    return synthetic_times(space)


def search(tuner, times: np.ndarray, trials: int, batch: int = 8) -> list[int]:
    order: list[int] = []
    while len(order) < trials:
        picked = tuner.propose(min(batch, trials - len(order)))
        if not picked:
            break
        order += picked
        tuner.update(picked, times[picked])
    return order


def test_a_space_is_legal_and_has_the_default(space):
    assert len(space) == len(set(space.configs)) > 100
    assert all(space.task.illegal_reason(c) is None for c in space.configs)
    assert space.default is not None
    assert space.position(space.configs[5]) == 5
    assert {c.loop_order for c in space.configs} == {"tile_outer", "filter_outer"}


def test_points_outside_the_rules_are_dropped_with_a_reason():
    task, _ = small_task()
    space = Space(task, {"tile_rows": (100,)})
    assert any("accumulators exceed the budget" in reason for reason in space.dropped)
    assert all(c.tile_rows <= 8 for c in space.configs)


def test_the_widths_of_a_space():
    task, _ = small_task(family="x86-avx512")
    narrow, default, wide = (Space(task, knobs_of(w)) for w in ("schedule", "default", "wide"))
    assert len(narrow) < len(default) < len(wide)
    assert len({c.loop_order for c in narrow.configs}) == 1
    assert {c.prefetch for c in default.configs} == {0, 1}
    assert {c.prefetch for c in wide.configs} == {0, 1, 2, 4, 8}
    assert {c.taps_per_step for c in wide.configs} == {1, 2, 4}
    assert {c.shift for c in narrow.configs} == {"load", "rotate"}
    one_tap = replace(
        task,
        geometry=ConvGeometry((1, 1)),
        patterns=(Pattern((1, 1), ((0, 0),)),),
        kept_weights=task.kept_kernels,
    )
    space = Space(one_tap, {"taps_per_step": (2,)})
    bodies = [config.body for config in space.configs]
    assert set(bodies) == {"patterns", "copied", "taps"}
    assert space.dropped["taps_per_step 2 exceeds the 1 taps of a kernel"] == bodies.count(
        "patterns"
    )
    with pytest.raises(ValueError, match=r"width of the space 'huge'; expected one of"):
        knobs_of("huge")


def test_an_empty_space_is_an_error_that_says_why():
    task, _ = small_task()
    narrow = PlaneLayout(5, 5, 1, 6, 7, 50)
    with pytest.raises(EmptySpaceError, match=r"empty search space.*row stride 6"):
        Space(replace(task, out_layout=narrow, in_layout=narrow, max_group=1))


def test_features_are_finite_and_named(space):
    rows = space.features(range(10))
    assert rows.shape == (10, len(FEATURES))
    assert np.isfinite(rows).all()


def test_neighbours_and_children_stay_in_the_space(space, rng):
    for _ in range(50):
        point = space.neighbour(3, rng)
        assert 0 <= point < len(space)
        assert 0 <= space.cross(point, 4, rng) < len(space)


@pytest.mark.parametrize("name", sorted(TUNERS))
def test_tuners_never_repeat_and_can_use_up_a_space(name):
    task, _ = small_task(size=4)
    space = Space(task, {})
    order = search(make_tuner(name, space, 0), synthetic_times(space), len(space) + 10)
    assert sorted(order) == list(range(len(space)))


@pytest.mark.parametrize("name", sorted(TUNERS))
def test_tuners_are_repeatable(name, space, times):
    runs = [search(make_tuner(name, space, 3), times, 24) for _ in range(2)]
    assert runs[0] == runs[1]


def test_tuners_survive_failures(space):
    failing = np.full(len(space), np.inf)
    for name in TUNERS:
        assert len(search(make_tuner(name, space, 0), failing, 32)) == 32


def test_grid_follows_the_space(space, times):
    assert search(make_tuner("grid", space, 0), times, 20) == list(range(20))


@pytest.mark.parametrize("name", ["xgb", "genetic"])
def test_guided_tuners_beat_random(name, space, times):
    """Against the mean of random, on times the schedule's estimate explains in part."""
    trials, seeds = 48, range(3)
    found = {
        n: np.mean([times[search(make_tuner(n, space, s), times, trials)].min() for s in seeds])
        for n in (name, "random")
    }
    assert found[name] < found["random"]


def test_learning_alone_beats_random_too(space, times):
    trials, seeds = 64, range(3)
    blind = [search(make_tuner("xgb", space, s, prior=False), times, trials) for s in seeds]
    chance = [search(make_tuner("random", space, s), times, trials) for s in seeds]
    assert np.mean([times[o].min() for o in blind]) < np.mean([times[o].min() for o in chance])


def test_xgb_measures_level_0_first(space, times):
    assert search(make_tuner("xgb", space, 0), times, 1) == [space.default]


def test_warm_start_ranks_before_the_first_measurement(space, times):
    points = range(0, len(space), 5)
    records = [record_of(space.task, space.configs[i], float(times[i])) for i in points]
    records.append(record_of(space.task, space.configs[1], None))
    sets = warm_start_sets(records)
    assert [len(t) for _, t in sets] == [len(records)]
    assert np.isinf(sets[0][1][-1])
    tuner = make_tuner("xgb", space, 0, warm_start=sets, epsilon=0.0)
    first = tuner.propose(16)
    assert np.median(times[first]) < np.quantile(times, 0.2)


def test_a_log_of_other_layers_saves_trials(times, space):
    """Without the schedule's knowledge, the first guess lands near the best."""
    sources = []
    for size, channels in ((8, 8), (28, 32)):
        task, _ = small_task(
            size=size, family="x86-avx2", out_channels=channels, in_channels=channels
        )
        other = Space(task)
        slow = other.estimates / other.estimates.min()
        points = range(0, len(other), 3)
        sources += [record_of(task, other.configs[i], float(slow[i])) for i in points]
    exact = space.estimates / space.estimates.min()
    sets = warm_start_sets(sources)
    assert len(sets) == 2
    warm = make_tuner("xgb", space, 0, prior=False, warm_start=sets, epsilon=0.0).propose(8)
    blind = make_tuner("xgb", space, 0, prior=False, epsilon=0.0).propose(8)
    assert len(blind) == 4
    assert np.median(exact[warm]) < 1.3 < np.median(exact[blind])


def test_a_large_log_is_thinned_evenly(space, rng):
    sets = [(rng.standard_normal((n, len(FEATURES))), np.arange(1.0, n + 1)) for n in (3000, 1500)]
    tuner = make_tuner("xgb", space, 0, warm_start=sets)
    assert [len(t) for _, t in tuner.warm_start] == [1365, 683]
    for x, t in tuner.warm_start:
        source = sets[0][0] if len(t) == 1365 else sets[1][0]
        np.testing.assert_array_equal(x, source[t.astype(int) - 1])


def test_large_spaces_are_annealed(space, times):
    """The same proposals, nearly, as scoring every point."""
    found = [
        search(make_tuner("xgb", space, 0, prior=False, exhaustive=size), times, 64)
        for size in (0, len(space))
    ]
    chance = search(make_tuner("random", space, 0), times, 64)
    assert len(set(found[0])) == 64
    assert times[found[0]].min() <= times[chance].min()


def test_failures_and_other_levels_do_not_mislead_the_line(rng):
    x = rng.standard_normal((40, 2))
    seconds = 2.0 ** x[:, 0]
    seconds[3] = np.inf
    line = Line([(x, seconds), (x, 1000 * 2.0 ** x[:, 0])], [1.0, 1.0])
    assert np.corrcoef(line.scores(x), x[:, 0])[0, 1] < -0.99


def test_records_of_other_knobs_teach_nothing(space, caplog):
    strange = record_of(space.task, space.configs[0], 1.0)
    strange = replace(strange, config={**strange.config, "warp": 3})
    plain = [record_of(space.task, space.configs[i], 1.0) for i in (1, 2)]
    assert [len(t) for _, t in warm_start_sets([strange, *plain])] == [2]
    assert "unknown knobs ['warp']" in caplog.text
    assert warm_start_sets([strange]) == []


def test_the_rank_model_orders(rng):
    x = rng.standard_normal((80, 3)).astype(np.float32)
    model = RankModel()
    with pytest.raises(RuntimeError, match="not trained"):
        model.predict(x)
    model.fit([(x, np.full(80, np.inf))])
    assert not model.trained
    model.fit([(x, np.exp(x[:, 0].astype(float)))])
    assert np.corrcoef(model.predict(x), x[:, 0])[0, 1] < -0.8


def test_an_unknown_tuner_is_refused(space):
    with pytest.raises(ValueError, match="unknown tuner 'oracle'"):
        make_tuner("oracle", space, 0)


def states(space, counts=(1, 4)) -> list[TaskState]:
    return [
        TaskState(
            WeightedTask(space.task, np.zeros(0), ["layer"] * count),
            space,
            make_tuner("random", space, 0),
        )
        for count in counts
    ]


def test_the_scheduler_starts_every_task_then_follows_the_gain(space):
    once, often = states(space)
    assert next_task([once, often]) is often
    often.update([0], [1.0])
    assert next_task([once, often]) is once
    once.update([0], [1.0])
    assert next_task([once, often]) is often
    for i in range(1, 60):
        often.update([i], [1.0])
    assert next_task([once, often]) is once


def test_a_network_is_estimated_until_it_is_measured(space):
    once, often = states(space)
    guess = network_estimate([once, often])
    assert guess.estimated == 2
    assert 0 < guess.seconds == guess.default_seconds < 1
    often.update([space.default, 0], [2.0, np.inf])
    half = network_estimate([once, often])
    # Both are the same convolution: the other one is taken to last as long.
    assert half == NetworkEstimate(pytest.approx(10.0), pytest.approx(10.0), 1)
    once.update([1], [1.0])
    assert network_estimate([once, often]) == NetworkEstimate(9.0, pytest.approx(10.0), 0)
    failed = states(space, (1,))
    failed[0].update([0, 1], [np.inf, 3.0])
    assert network_estimate(failed) == NetworkEstimate(3.0, pytest.approx(3.0), 0)


def test_tasks_finish(space):
    (state,) = states(space, (1,))
    state.early_stop = 3
    state.update([0, 1, 2], [1.0, 2.0, 3.0])
    assert not state.finished
    state.update([3], [4.0])
    assert state.finished
    assert next_task([state]) is None
    assert state.curve == [(1, 1.0)]


def test_search_curves_are_plotted(space, tmp_path):
    both = states(space)
    both[0].update([0, 1], [2e-3, 1e-3])
    plot_search(tmp_path / "curves.png", both)
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_old_records_get_the_default_of_new_knobs(space):
    config = space.configs[0]
    record = record_of(space.task, config)
    older = {k: v for k, v in record.config.items() if k not in ("isa", "fetch_ahead")}
    # Code of that time fetched ahead wherever the family does.
    assert space.task.machine.fetch_ahead
    expected = replace(config, isa=ConvConfig.isa, fetch_ahead=True)
    assert config_of(replace(record, config=older)) == expected
    assert not config_of(replace(record, config={**older, "fetch_ahead": False})).fetch_ahead
    on_arm = replace(record, config=older, task={**record.task, "family": "arm-neon"})
    assert not config_of(on_arm).fetch_ahead
    with pytest.raises(LogError, match=r"unknown knobs \['warp'\].*tune again"):
        config_of(replace(record, config={**older, "warp": 9}))
    del older["tile_rows"]
    with pytest.raises(LogError, match=r"lacks \['tile_rows'\]"):
        config_of(replace(record, config=older))
