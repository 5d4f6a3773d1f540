"""A whole search: model -> tasks -> records -> compile; resuming, warm start, lookup, commands."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from families import UNSCHEDULED
from torch import nn
from tvm.target import Target
from typer.testing import CliRunner

import tvm_pattern
from relay_passes.targets import resolve
from topi_kernels.backend import default_layout
from topi_kernels.conv_task import ConvTask
from topi_kernels.devices import DEVICES
from topi_kernels.geometry import ConvGeometry
from tvm_pattern.locks import LockError, locked
from tvm_pattern.tuning import cli, logs_cli, show
from tvm_pattern.tuning.environment import device_name, target_dict
from tvm_pattern.tuning.lookup import (
    ConfigLookup,
    config_lookup,
    config_of,
    own_device,
    shipped_logs,
)
from tvm_pattern.tuning.measure import Measurement, MeasureOptions, Measurer
from tvm_pattern.tuning.records import LogError, Record, TuningLog
from tvm_pattern.tuning.session import Search, TuneOptions, make_record, tune
from tvm_pattern.tuning.space import Space
from tvm_pattern.tuning.tasks import WeightedTask, extract_tasks

from .small import record_of, small_task, small_weight

TARGET = resolve("pattern/native")
QUICK = MeasureOptions(run_timeout=30, repeat=2, min_repeat_ms=1)
IMAGE = torch.ones(1, 8, 8, 8)


class Net(nn.Module):
    """Two equal convolutions with ReLU, one without."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(8, 8, 3, padding=1) for _ in range(3))
        with torch.no_grad():
            for conv in self.layers:
                conv.weight.copy_(torch.from_numpy(small_weight()))

    def forward(self, x):
        for conv in self.layers[:-1]:
            x = torch.relu(conv(x))
        return self.layers[-1](x)


@pytest.fixture(scope="module")
def net() -> nn.Module:
    return Net().eval()


@pytest.fixture(scope="module")
def tuned(net, tmp_path_factory):
    log = tmp_path_factory.mktemp("tuned") / "log.jsonl"
    seen = []
    options = TuneOptions(trials=9, batch=4, measure=QUICK)
    result = tune(net, IMAGE, TARGET, log, options, 1, seen.append)
    return result, seen


def imported(net):
    return tvm_pattern.frontend.import_model(net, IMAGE).mod


def test_tasks_are_distinct_and_weighted(net):
    tasks = extract_tasks(imported(net), TARGET)
    assert [t.count for t in tasks] == [2, 1] or sum(t.count for t in tasks) == 3
    assert len({t.task.key for t in tasks}) == len(tasks) < 3


def test_a_search_leaves_records_and_figures(tuned):
    result, seen = tuned
    records = TuningLog(result.log).records()
    assert len(records) == result.trials == 9
    assert all(r.ok for r in records)
    assert {r.device for r in records} == {device_name()}
    assert records[0].versions["apache-tvm"].startswith("0.27")
    assert {s.trials > 0 for s in result.states} == {True}
    assert result.network.seconds <= result.network.default_seconds < float("inf")
    assert result.network.estimated == 0
    assert 0 <= result.overhead < 1
    assert seen[-1].trials == 9
    assert seen[-1].network == result.network
    assert seen[-1].eta_seconds == 0
    assert "effective GFLOP/s" in _text(show.progress_table(seen[-1]))


def _text(table) -> str:
    from rich.console import Console

    console = Console(width=120, force_terminal=False)
    with console.capture() as capture:
        console.print(table)
    return capture.get()


def test_compile_uses_the_records_and_stays_right(net, tuned):
    result, _ = tuned
    library = tvm_pattern.compile(net, IMAGE, TARGET, tuning_log=result.log, num_threads=1)
    best = {
        name: state.space.configs[state.best_index].as_dict()
        for state in result.states
        for name in state.weighted.layers
    }
    assert [row.config for row in library.report.rows] == list(best.values())
    with torch.no_grad():
        expected = net(IMAGE).numpy()
    np.testing.assert_allclose(library(IMAGE), expected, atol=1e-4)


def test_an_existing_log_is_continued_only_if_asked(net, tuned, tmp_path):
    result, _ = tuned
    log = tmp_path / "copy.jsonl"
    log.write_bytes(result.log.read_bytes() + b'{"schema": "tvm-pat')
    tasks = extract_tasks(imported(net), TARGET)
    with pytest.raises(LogError, match=r"exists; continue it with --resume"):
        Search(tasks, TARGET, TuningLog(log), TuneOptions())
    search = Search(tasks, TARGET, TuningLog(log), TuneOptions(trials=9, resume=True))
    assert search.trials == 9
    assert sum(s.trials for s in search.states) == 9
    assert sum(s.network_seconds for s in search.states) == result.network.seconds


def test_a_killed_search_resumes(net, tmp_path):
    """kill -9 in the middle; the second run measures only what is missing."""
    log = tmp_path / "log.jsonl"
    code = (
        "import torch; from tuning.test_session import *\n"
        f"tune(Net().eval(), IMAGE, TARGET, {str(log)!r},"
        " TuneOptions(trials=64, batch=1, measure=QUICK), 1)"
    )
    root = Path(__file__).resolve().parents[2]
    env_path = f"import sys; sys.path[:0] = [{str(root)!r}, {str(root / 'tests')!r}]\n"
    process = subprocess.Popen([sys.executable, "-c", env_path + code], cwd=root)
    while not (log.exists() and log.stat().st_size) and process.poll() is None:
        time.sleep(0.05)
    process.kill()
    process.wait()
    done = len(TuningLog(log).records(skip_bad=True))
    assert done >= 1
    tasks = extract_tasks(imported(net), TARGET)
    search = Search(tasks, TARGET, TuningLog(log), TuneOptions(trials=done, resume=True))
    assert search.trials == done


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_full_disk_ends_the_search_with_advice():
    task, weight = small_task()
    options = TuneOptions(trials=2, batch=1, measure=QUICK)
    search = Search([WeightedTask(task, weight, ["a"])], TARGET, TuningLog("/dev/full"), options)
    with Measurer(TARGET, 1, QUICK) as measurer, pytest.raises(LogError, match="No space left"):
        search.run(measurer)


def test_nothing_to_tune_is_an_error():
    with pytest.raises(ValueError, match="no convolution to tune"):
        Search([], TARGET, TuningLog("none.jsonl"), TuneOptions())


def test_a_family_without_schedules_has_no_tasks(net, monkeypatch):
    monkeypatch.setitem(DEVICES._devices, UNSCHEDULED.name, UNSCHEDULED)
    with pytest.raises(ValueError, match="no search space to tune"):
        extract_tasks(imported(net), Target({"kind": "llvm", "keys": ["pattern", "toy-npu"]}))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tuner": "oracle"}, "unknown tuner"),
        ({"trials": 0}, "at least 1"),
        ({"early_stop": 0}, "early_stop"),
        ({"epsilon": 2.0}, "fraction"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        TuneOptions(**options)


def test_lookup_prefers_the_task_then_its_likes():
    task, _ = small_task()
    space = Space(task)
    fast, other = space.configs[3], space.configs[7]
    records = [record_of(task, fast, 1e-3), record_of(task, other, 2e-3)]
    assert ConfigLookup(records)(task) == fast
    two_threads = record_of(task, other, 3e-3, num_threads=2)
    assert ConfigLookup([*records, two_threads], 2)(task) == other
    relative, _ = small_task(seed=5)
    near = replace(relative, kept_weights=task.kept_weights + 1)
    assert near.key != task.key
    assert ConfigLookup(records)(near) == fast
    assert ConfigLookup(records)(replace(task, kept_weights=3 * task.kept_weights)) is None
    assert ConfigLookup([record_of(task, fast, None)])(task) is None


def records_of_devices(task: ConvTask, *devices: str, target=TARGET) -> list[Record]:
    """One record per device, each with a configuration of its own, the later the faster."""
    configs = Space(task).configs
    return [
        record_of(task, configs[i], 1.0 / (i + 1), device=d, target=target_dict(target))
        for i, d in enumerate(devices)
    ]


@pytest.mark.parametrize("order", [1, -1])
def test_the_own_device_comes_first_and_devices_are_not_mixed(order):
    task, _ = small_task()
    other, _ = small_task(size=12)
    configs = Space(task).configs
    records = records_of_devices(task, "a", "b", "c") + records_of_devices(other, "b", "c")[1:]
    for device, expected in (("a", configs[0]), ("b", configs[1]), ("c", configs[2])):
        lookup = ConfigLookup(records[::order], 1, device, target_dict(TARGET))
        assert lookup(task) == expected
        assert lookup.find(task).device == device
        assert not lookup.notes()
    # "a" has no record of the other task: one other device serves, the one with most tasks.
    lookup = ConfigLookup(records[::order], 1, "a", target_dict(TARGET))
    assert lookup.find(other).device == "c"
    # A device without records: all come from one.
    lookup = ConfigLookup(records[::order], 1, "z", target_dict(TARGET))
    assert {lookup.find(t).device for t in (task, other)} == {"c"}
    assert (lookup(task), lookup(other)) != (None, None)
    first, second = lookup.notes()
    assert "2 convolutions use records of c, not of this device (z)" in first
    assert second == "tuning: records of other devices are not used: a, b"


def test_a_device_of_the_same_target_comes_before_one_of_the_family():
    task, _ = small_task(family="arm-neon")
    other, _ = small_task(size=12, family="arm-neon")
    a72, a76 = (resolve(f"pattern/cortex-{core}") for core in ("a72", "a76"))
    records = [
        *records_of_devices(task, "pi", target=a72),
        *records_of_devices(other, "pi", target=a72),
        *records_of_devices(task, "phone", target=a76),
    ]
    assert ConfigLookup(records, 1, None, target_dict(a76)).find(task).device == "phone"
    assert ConfigLookup(records, 1, None, target_dict(a72)).find(task).device == "pi"
    x1 = target_dict(resolve("pattern/cortex-x1"))
    assert ConfigLookup(records, 1, None, x1).find(task).device == "pi"


def test_records_from_before_a_knob_give_way_to_it():
    """A 1x1 layer of AVX2 that level 0 computes on copied tiles, which old searches did not try."""
    layout = default_layout(7, 7, 0, "x86-avx2")
    kept = np.random.default_rng(0).random((256, 512, 1, 1)) < 0.3
    task = ConvTask.from_weight(
        kept.astype(np.float32), ConvGeometry((1, 1)), layout, layout, family="x86-avx2"
    )
    best = task.default_config()
    assert best.body == "copied"
    patterns = [config for config in task.configs() if config.body == "patterns"]
    config = min(patterns, key=task.cost)
    assert task.cost(best) < 0.97 * task.cost(config)
    new = record_of(task, config, device="elsewhere")
    old = replace(new, config={k: v for k, v in config.as_dict().items() if k != "body"})

    def lookup(record, device):
        found = ConfigLookup([record], 1, device)
        return found(task), found.notes()

    assert lookup(new, "here")[0] == config
    assert lookup(old, "elsewhere") == (config, ())
    chosen, (note,) = lookup(old, "here")
    assert chosen is None
    assert "1 convolutions do without records of elsewhere, which came before a knob" in note


def test_whose_device_a_target_means():
    assert own_device(resolve("pattern/native")) == device_name()
    assert own_device(resolve("pattern/armv7")) is None


def test_compile_says_whose_records_it_used(net, tmp_path):
    tasks = [w.task for w in extract_tasks(imported(net), TARGET)]
    log = TuningLog(tmp_path / "merged.jsonl")
    log.write(r for t in tasks for r in records_of_devices(t, "elsewhere"))
    with log.path.open("a") as file:
        file.write("{half a li")
    library = tvm_pattern.compile(net, IMAGE, TARGET, tuning_log=log.path, num_threads=1)
    text = str(library.report)
    assert f"line {len(tasks) + 1}: not JSON" in text
    assert "3 convolutions use records of elsewhere, not of this device" in text
    log.write(r for t in tasks for r in records_of_devices(t, device_name(), "elsewhere"))
    library = tvm_pattern.compile(net, IMAGE, TARGET, tuning_log=log.path, num_threads=1)
    assert "elsewhere" not in str(library.report)
    own = [Space(t).configs[0].as_dict() for t in tasks]
    assert all(row.config in own for row in library.report)


@pytest.mark.parametrize("times", [(0.0,), (1e-3, -1.0), (float("nan"),), (float("inf"),)])
def test_times_that_no_call_takes_are_failed_trials(times):
    task, _ = small_task()
    outcome = Measurement(times, "ok", "")
    made = make_record(task, Space(task).configs[0], outcome, TARGET, "here", 1, {})
    assert not made.ok
    assert "the timer gave" in made.error


def test_a_log_has_one_search_at_a_time(net, tmp_path):
    log = tmp_path / "log.jsonl"
    with (
        locked(log, "tuning into"),
        pytest.raises(LockError, match=rf"process {os.getpid()} .* is tuning into"),
    ):
        tune(net, IMAGE, TARGET, log, TuneOptions(trials=1, measure=QUICK), 1)
    assert not log.exists()


def unusable_records(task: ConvTask, config) -> dict[str, Record]:
    """Records that an older or newer version may have left, by why they are unusable now."""
    good = record_of(task, config)
    return {
        "accumulators exceed": record_of(task, replace(config, tile_rows=99)),
        "unknown knobs ['warp']": replace(good, config={**good.config, "warp": 4}),
        "knobs ['tile_rows'] of another type": replace(
            good, config={**good.config, "tile_rows": "4"}
        ),
        "out of range": replace(good, config={**good.config, "filter_lanes": 0}),
        "lacks ['tile_rows']": replace(
            good, config={k: v for k, v in good.config.items() if k != "tile_rows"}
        ),
        "a task has the fields": replace(good, task={**good.task, "colour": "red"}),
    }


@pytest.mark.parametrize(
    "why",
    [
        "accumulators exceed",
        "unknown knobs ['warp']",
        "lacks ['tile_rows']",
        "knobs ['tile_rows'] of another type",
    ],
)
def test_an_unusable_record_is_passed_over_for_the_next(why, caplog):
    task, _ = small_task()
    relative, _ = small_task(seed=5)
    config = Space(task).configs[0]
    bad = unusable_records(task, config)[why]
    lookup = ConfigLookup([bad])
    assert lookup(task) is None
    assert why in caplog.text
    assert any(why in reason for reason in lookup.find(task).skipped)
    # A good record of a like layer, slower, still serves.
    near = replace(relative, kept_weights=task.kept_weights)
    assert near.key != task.key
    found = ConfigLookup([bad, record_of(near, config, 1.0)]).find(task)
    assert (found.config, found.exact) == (config, False)
    slower = ConfigLookup([bad, record_of(task, config, 2.0)]).find(task)
    assert (slower.config, slower.exact) == (config, True)


def test_a_record_of_another_kind_of_task_still_serves_its_own(caplog):
    task, _ = small_task()
    config = Space(task).configs[0]
    bad = unusable_records(task, config)["a task has the fields"]
    assert ConfigLookup([bad])(task) == config
    assert "a task has the fields" in caplog.text


def test_compile_does_without_records_it_cannot_use(net, tmp_path, caplog):
    """What an operator whose space changed since makes of its old logs."""
    tasks = [w.task for w in extract_tasks(imported(net), TARGET)]
    log = TuningLog(tmp_path / "old.jsonl")
    log.write(r for t in tasks for r in unusable_records(t, Space(t).configs[0]).values())
    library = tvm_pattern.compile(net, IMAGE, TARGET, tuning_log=log.path, num_threads=1)
    assert "unknown knobs ['warp']" in caplog.text
    with torch.no_grad():
        expected = net(IMAGE).numpy()
    np.testing.assert_allclose(library(IMAGE), expected, atol=1e-4)


def test_a_resumed_search_measures_unusable_records_again(net, tmp_path, caplog):
    tasks = extract_tasks(imported(net), TARGET)
    log = TuningLog(tmp_path / "old.jsonl")
    log.write(
        replace(r, device=device_name())
        for r in unusable_records(tasks[0].task, Space(tasks[0].task).configs[0]).values()
    )
    search = Search(tasks, TARGET, log, TuneOptions(resume=True))
    # The record whose task has one field too many is found by its key.
    assert search.trials == 1
    assert "unknown knobs ['warp']" in caplog.text


def test_shipped_logs_are_readable_and_used_by_default():
    families = [name for name in DEVICES.names() if shipped_logs(name)]
    assert families == ["x86-avx2", "x86-avx512", "x86-avx512-client", "x86-avx512-zen4"]
    for family in families[:2]:
        lookup = config_lookup(None, resolve(f"pattern/{family}"))
        records = [r for path in shipped_logs(family) for r in TuningLog(path).records()]
        assert len(lookup) == len({r.task_key for r in records}) > 20
        used = 0
        for record in records:
            task = ConvTask.from_dict(record.task)
            found = lookup.find(task)
            used += found.config == config_of(record)
            assert found.config is not None or found.skipped
        assert used > len(records) // 2
    assert len(config_lookup(None, resolve("pattern/mali"))) == 0


def test_records_serve_a_device_that_takes_after_theirs(monkeypatch):
    """A Zen 4 finds what was recorded under its old name, where its own facts expect no gain."""
    task, _weight = small_task(family="x86-avx512")
    own, _ = small_task(family="x86-avx512-zen4")
    config = Space(task).configs[-1]
    lookup = ConfigLookup([record_of(task, config)], device="here")
    found = lookup.find(own)
    assert (found.config, found.exact, found.family) == (config, True, "x86-avx512")
    better = own.default_config()
    assert better != config
    assert lookup(own) is None
    assert "are of another kind of device" in lookup.notes()[0]
    monkeypatch.setattr(ConvTask, "cost", lambda self, config: 1.0)
    assert lookup(own) == config
    mine = record_of(own, better, device="", seconds=2e-3)
    lookup = ConfigLookup([record_of(task, config, device=""), mine], device="")
    assert lookup(own) == better
    assert lookup(task) == config
    with pytest.raises(ValueError, match="unknown device"):
        shipped_logs("x86-avx521")


def test_keys_of_shipped_tasks_are_what_they_were():
    """No change of the task's description may make a record unfindable."""
    paths = [path for family in DEVICES.names() for path in shipped_logs(family)]
    records = [record for path in paths for record in TuningLog(path).records()]
    assert len(records) > 200
    for record in records:
        task = ConvTask.from_dict(record.task)
        assert (task.key, task.as_dict()) == (record.task_key, record.task)


def test_an_explicit_log_is_checked(tmp_path):
    log = tmp_path / "log.jsonl"
    log.write_text('{"schema": "tvm-pattern/tuning-record", "version": 2}\n')
    with pytest.raises(LogError, match=r"line 1: schema version 2"):
        config_lookup(log, TARGET)


def test_logs_commands(tmp_path):
    runner = CliRunner()
    task, _ = small_task()
    space = Space(task)
    first, second, out = (tmp_path / name for name in ("a.jsonl", "b.jsonl", "out.jsonl"))
    TuningLog(first).write([record_of(task, space.configs[0], 2e-3)])
    TuningLog(second).write([record_of(task, space.configs[1], 1e-3)])
    merged = runner.invoke(logs_cli.app, ["merge", str(first), str(second), "-o", str(out)])
    assert merged.output == f"2 records in {out}\n"
    best = runner.invoke(logs_cli.app, ["best", str(out), "--json"])
    assert [row["seconds"] for row in json.loads(best.output)] == [1e-3]
    assert "3x3 8->8 8x8" in runner.invoke(logs_cli.app, ["best", str(out)]).output
    assert runner.invoke(logs_cli.app, ["check", str(out)]).exit_code == 0
    with out.open("a") as file:
        file.write("{half a li")
    checked = runner.invoke(logs_cli.app, ["check", str(out)])
    assert checked.exit_code == 1
    assert "line 3: not JSON" in checked.output


def test_default_log_names():
    assert cli.default_log("pattern/x86-avx2", "a/net.onnx") == Path(
        "tuning_logs/x86-avx2/net.jsonl"
    )
