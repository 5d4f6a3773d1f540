"""What a search shows while it runs and when it is done; nothing is measured."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tvm_pattern.tuning import show
from tvm_pattern.tuning.scheduler import TaskState
from tvm_pattern.tuning.session import Plan, Progress, TuneOptions, TuneResult
from tvm_pattern.tuning.show import summary, tune_shown
from tvm_pattern.tuning.space import Space
from tvm_pattern.tuning.tasks import WeightedTask
from tvm_pattern.tuning.tuners import make_tuner

from .small import small_task


@pytest.fixture
def states() -> list[TaskState]:
    """Three tasks without a trial."""
    found = []
    for size in (8, 12, 16):
        task, weight = small_task(size=size)
        space = Space(task, {})
        tuner = make_tuner("random", space, 0)
        found.append(TaskState(WeightedTask(task, weight, ["a", "b"]), space, tuner))
    return found


def result_of(states: list[TaskState]) -> TuneResult:
    return TuneResult(Path("net.jsonl"), tuple(states), 3, 1, 10.0, 9.0)


def test_unmeasured_layers_are_said_to_be_estimated(states):
    progress = Progress(states, states[0], 0, 10, 0, 1.0)
    rows = show._rows(progress)
    assert rows["best"] == "none worked so far"
    assert rows["structure"].endswith("filters share; known from zeros")
    assert rows["network"].startswith("about ")
    assert rows["network"].endswith("ms in tuned convolutions, 3 of 3 layers estimated")
    assert "inf" not in rows["network"]
    for state in states:
        state.update([state.space.default], [2e-3])
    rows = show._rows(progress)
    assert rows["network"] == "12.00 ms in tuned convolutions"
    assert rows["best"].startswith("2.000 ms, ")


def test_the_summary_names_what_was_not_measured(states):
    first, second, _ = states
    first.update([first.space.default, first.space.default + 1], [2e-3, 1e-3])
    second.update([second.space.default], [np.inf])
    lines = summary(result_of(states))
    assert "level 0 2.000 ms, best 1.000 ms (+100.0%)" in lines[0]
    assert lines[1].endswith("none worked")
    assert lines[2].endswith("left at level 0")
    assert "2 layers estimated; 3 trials, 1 failed, 10.0% of 10 s was not measuring" in lines[3]
    second.update([0], [3e-3])
    assert "best 3.000 ms (level 0 failed)" in summary(result_of(states))[1]


def test_a_quiet_search_says_what_came_out(states, tmp_path, monkeypatch, capsys):
    def tune(*_args, on_plan, **_):
        on_plan(Plan(states, 3, 4.5, 1))
        _args[6](Progress(states, states[0], 1, 3, 0, 1.0))
        return result_of(states)

    monkeypatch.setattr(show, "tune", tune)
    monkeypatch.setattr(show, "is_quiet", lambda: True)
    tune_shown(None, None, "pattern/native", tmp_path / "log", TuneOptions())
    shown = capsys.readouterr().out
    assert "trials of" not in shown
    assert "records in net.jsonl" in shown


def test_the_plan_counts_what_is_left(states):
    lines = show.plan_lines(Plan(states, 10, 7200.0, 1))
    assert lines[-1].startswith(f"{len(states)} tasks, 10 trials of ")
    assert "about 2.0 h; " in lines[-1]
    spaces = sum(min(len(state.space), 100) for state in states)
    assert f"{spaces} trials are sensible here" in lines[-1]


@pytest.mark.parametrize("terminal", [False, True])
def test_a_search_is_shown_live_or_line_by_line(states, terminal, tmp_path, monkeypatch, capsys):
    def tune(*arguments, interleaved_lanes, on_plan):
        callback = arguments[6]
        assert interleaved_lanes is None
        on_plan(Plan(states, 3, 4.5, 2))
        for state in states:
            state.update([state.space.default], [1e-3])
            callback(Progress(states, state, 1, 3, 0, 1.0))
        return result_of(states)

    monkeypatch.setattr(show, "tune", tune)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("TTY_COMPATIBLE", "1" if terminal else "0")
    plot = tmp_path / "curves.png"
    tune_shown(None, None, "pattern/native", tmp_path / "log", TuneOptions(), 1, plot)
    shown = capsys.readouterr().out
    assert "3x3 8->8 16x16 (2 x), 1 of" in shown
    assert shown.count("\n") > 5
    plan = shown[: shown.index("3 trials of")]
    assert all(layer in plan for state in states for layer in state.weighted.layers)
    assert f"{len(states)} tasks, 3 trials of " in shown
    assert "on 2 devices: about 4 s; " in shown
    assert ("1 of 3 layers estimated; 1 s" in shown) != terminal
    assert "records in net.jsonl; use them by --tuning-log" in shown
    assert plot.exists()


def test_a_plot_that_cannot_be_written_is_refused_before_the_search(tmp_path, monkeypatch):
    monkeypatch.setattr(show, "tune", lambda *_, **__: pytest.fail("it was measured"))
    for path in (tmp_path / "curves.foo", tmp_path / "curves"):
        with pytest.raises(ValueError, match=r"curves.*expected a picture's name ending in .pdf"):
            tune_shown(None, None, None, Path("net.jsonl"), TuneOptions(), plot=path)
