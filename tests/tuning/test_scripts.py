"""The scripts around tuning, on layers that are small enough: tables, the study, shipped logs."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from benchmarks import rpc_throughput, tuning_logs, tuning_study, tuning_table
from benchmarks.rpc_throughput import FARM, SINGLE, Round
from benchmarks.workloads import load_workloads
from relay_passes.targets import resolve
from tvm_pattern.tuning import logs_cli, lookup, shipped
from tvm_pattern.tuning.lookup import ConfigLookup
from tvm_pattern.tuning.records import TuningLog
from tvm_pattern.tuning.space import Space
from tvm_pattern.tuning.tasks import WeightedTask

from .small import FAMILY, record_of, small_task

NATIVE = "pattern/native"


def small_network_tasks(_network, group, targets, _threads=1):
    """In the place of :func:`shipped.network_tasks`: two layers, one of them twice."""
    layers = [small_task(group=group), small_task(group=group, activation="none", size=6)]
    tasks = [WeightedTask(*layers[0], ["a", "b"]), WeightedTask(*layers[1], ["c"])]
    return [tasks for _ in targets]


@pytest.fixture
def small_networks(monkeypatch):
    for module in (tuning_table, tuning_logs, shipped):
        monkeypatch.setattr(module, "network_tasks", small_network_tasks)


def table_of(family: str, size: int, seed: int) -> list:
    """Records of a whole space, plausible but invented."""
    task, _ = small_task(size=size, family=family, out_channels=16, in_channels=16)
    space = Space(task, {})
    noise = np.exp(0.05 * np.random.default_rng(seed).standard_normal(len(space)))
    times = space.estimates * noise * 1e-9
    return [record_of(task, c, float(t)) for c, t in zip(space.configs, times, strict=True)]


def test_the_study_reads_all_tables_and_compares(tmp_path):
    first = TuningLog(tmp_path / "table-a.jsonl")
    first.write(table_of("x86-avx512", 8, 0) + table_of("x86-avx512", 14, 1))
    second = TuningLog(tmp_path / "table-b.jsonl")
    second.write(table_of("x86-avx2", 14, 2) + table_of("x86-avx2", 8, 3)[:5])
    packed = tmp_path / "table-b.jsonl.gz"
    tuning_table.pack(second, packed)
    out = tmp_path / "study"
    tuning_study.main([first.path, packed], out, seeds=2, trials=24, most=10_000, smallest=10)
    rows = json.loads((out / "study.json").read_text())
    assert len(rows) == 3
    for row in rows:
        tuners = row["tuners"]
        assert set(tuners) >= {tuning_study.XGB, tuning_study.BLIND, tuning_study.FROM_TARGET}
        assert all(len(t["trials_to_95"]) == 2 for t in tuners.values())
    text = (out / "study.md").read_text()
    assert "xgb, no prior : random =" in text
    assert "of the other target : xgb, no prior =" in text
    assert "configurations are not measured" in text
    assert (out / "study.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(typer.BadParameter, match="measured completely"):
        tuning_study.main([packed], out, smallest=10_000, most=10_000)


def test_a_stale_table_is_left_out(tmp_path):
    records = table_of("x86-avx512", 8, 0)
    strange = replace(records[0], config={**records[0].config, "warp": 1})
    TuningLog(tmp_path / "t.jsonl").write([strange, *records[1:]])
    layers, left_out = tuning_study.read_layers([tmp_path / "t.jsonl"], "schedule", 10_000)
    assert not layers
    assert "unknown knobs ['warp']" in left_out[0]


@pytest.mark.parametrize(("points", "good"), [(2, 1), (9, 1), (40, 3), (100, 100)])
def test_the_median_of_random_is_exact(points, good):
    times = np.ones(points) * 2.0
    times[:good] = 1.0
    median = tuning_study.random_median(times, points)

    def reached(trials: int) -> float:
        return 1 - math.comb(points - good, trials) / math.comb(points, trials)

    assert reached(median) >= 0.5
    assert median == 1 or reached(median - 1) < 0.5
    assert tuning_study.random_median(times, 1) == 1


def test_large_spaces_are_sampled_alike_every_time():
    task, _ = small_task(size=14, family="x86-avx512", out_channels=16, in_channels=16)
    space = Space(task, {})
    chosen = tuning_table.sample(space, 20)
    assert len(chosen) == len(set(chosen)) == 20
    assert chosen == tuning_table.sample(Space(task, {}), 20)
    best = np.argsort(space.estimates, kind="stable")[:10]
    assert {space.configs[i] for i in best} <= set(chosen)
    assert tuning_table.sample(space, 10_000) == space.configs


def test_a_table_is_measured_in_turns(small_networks, tmp_path):
    """The dearest layer first; a call continues another; no time means no trial."""
    log, out = tmp_path / "t.jsonl", tmp_path / "out" / "t.jsonl.gz"
    quick = {
        "log": log,
        "out": out,
        "target": NATIVE,
        "repeat": 1,
        "min_repeat_ms": 1,
        "group": [2],
    }
    log.touch()
    tuning_table.main(most=2, minutes=0, **quick)
    assert TuningLog(log).records() == []
    tuning_table.main(most=2, **quick)
    records = tuning_study.read_table(out)
    assert [r.error_kind for r in records] == ["ok"] * 4
    assert len({r.task_key for r in records[:2]}) == 1
    before = log.read_bytes()
    tuning_table.main(most=2, **quick)
    assert log.read_bytes() == before
    tuning_table.main(most=2, plan=True, **quick)


def test_jobs_of_networks_are_distinct_and_ordered(small_networks):
    jobs = tuning_table.network_jobs(["vgg16", "resnet50"], [1, 2], resolve(NATIVE), {})
    assert len(jobs) == 4
    assert [j.importance for j in jobs] == sorted((j.importance for j in jobs), reverse=True)
    assert {j.task.max_group for j in jobs} == {1, 2}


@pytest.mark.parametrize("text", ["nowhere:1", "7x7x512:many"])
def test_unknown_layers_are_refused(text):
    with pytest.raises(typer.BadParameter, match=r"expected LAYER:GROUP"):
        tuning_table.listed_jobs([text], FAMILY, {})


def test_level_0_is_shipped_unless_something_is_faster():
    task, _ = small_task(family="x86-avx512")
    space = Space(task)
    default, other = space.configs[space.default], space.configs[space.default - 1]
    level0 = record_of(task, default, 1.005)
    assert tuning_logs.winner([record_of(task, other, 1.0), level0], space) == level0
    faster = record_of(task, other, 0.9)
    assert tuning_logs.winner([level0, faster], space) == faster
    assert tuning_logs.winner([record_of(task, other, None)], space) is None


def test_shipping_replaces_what_is_old_or_of_no_use(tmp_path):
    task, _ = small_task()
    other, _ = small_task(size=6)
    third, _ = small_task(size=10)
    space = Space(task)
    keep = record_of(other, Space(other).configs[0])
    strange = record_of(third, Space(third).configs[0])
    strange = replace(strange, config={**strange.config, "warp": 1})
    log = TuningLog(tmp_path / "networks.jsonl")
    log.write([record_of(task, space.configs[0]), keep, strange])
    new = record_of(task, space.configs[1])
    tuning_logs.ship(log, new)
    assert log.records() == [keep, new]


def test_what_logs_lack_is_tuned_and_shipped(small_networks, tmp_path):
    quick = {"target": [NATIVE], "network": ["vgg16"], "group": [2], "work": tmp_path}
    quick |= {"shipped": tmp_path / "logs", "trials": 2, "repeat": 1, "min_repeat_ms": 1}
    tuning_logs.main(minutes=0, **quick)
    log = TuningLog(tmp_path / "logs" / FAMILY / "networks.jsonl")
    assert not log.path.exists()
    tuning_logs.main(**quick)
    tasks = small_network_tasks(None, 2, [None])[0]
    rows = shipped.coverage(tasks, ConfigLookup(log.records()))
    assert [row.state for row in rows] == [shipped.EXACT] * 2
    before = log.path.read_bytes()
    tuning_logs.main(**quick)
    assert log.path.read_bytes() == before


def test_coverage_tells_exact_similar_stale_and_missing():
    weighted = small_network_tasks(None, 2, [None])[0][0]
    task, config = weighted.task, Space(weighted.task).configs[0]
    good = record_of(task, config)
    stale = replace(good, config={**good.config, "warp": 1})
    near, _ = small_task(seed=5)
    similar = record_of(replace(near, kept_weights=task.kept_weights), config)
    older = {k: v for k, v in good.config.items() if k != "prefetch"}
    for records, state in (
        ([good, stale], shipped.EXACT),
        ([replace(good, config=older)], shipped.OLDER),
        ([stale, similar], shipped.SIMILAR),
        ([stale], shipped.STALE),
        ([], shipped.MISSING),
    ):
        (row,) = shipped.coverage([weighted], ConfigLookup(records))
        assert (row.state, row.served) == (state, state not in (shipped.STALE, shipped.MISSING))
    assert shipped.coverage([weighted], ConfigLookup([stale]))[0].reasons


def test_check_without_logs_looks_at_the_shipped_ones(small_networks, monkeypatch, tmp_path):
    folder = tmp_path / FAMILY
    monkeypatch.setattr(lookup, "log_folder", lambda: tmp_path)
    first, second = small_network_tasks(None, 2, [None])[0]
    good = record_of(first.task, Space(first.task).configs[0])
    other = record_of(second.task, Space(second.task).configs[0])
    stale = replace(other, config={**other.config, "warp": 1})
    TuningLog(folder / "networks.jsonl").write([good, stale])
    command = ["check", "--target", "pattern/native", "--network", "vgg16", "--group", "2"]
    checked = CliRunner().invoke(logs_cli.app, command)
    assert checked.exit_code == 1
    assert "2 records, 0 of failed trials, 1 stale" in checked.output
    assert "2 layers: 1 exact, 1 stale" in checked.output
    assert "stale 3x3 8->8 6x6: a recorded config has unknown knobs ['warp']" in checked.output
    TuningLog(folder / "networks.jsonl").write([good, other])
    assert CliRunner().invoke(logs_cli.app, command).exit_code == 0


def test_shipped_networks_are_those_of_the_benchmarks():
    specs = {s.name: s for s in load_workloads()[1]}
    for network in shipped.networks():
        spec = specs[network.name]
        assert (network.connectivity, network.connectivity_1x1) == (
            spec.connectivity,
            spec.connectivity_1x1,
        )
        assert network.input == spec.input
        assert set(shipped.GROUPS) <= set(spec.groups)
    with pytest.raises(ValueError, match=r"no shipped logs are for \['lenet'\]"):
        shipped.networks(["lenet"])


def test_throughput_is_summed_up_with_its_spread():
    rounds = [
        Round(SINGLE, 1, 10, 0, 10.0, 10.0),
        Round(FARM, 2, 10, 0, 5.0, 10.0),
        Round(FARM, 2, 10, 1, 6.0, 9.0),
        Round(SINGLE, 1, 10, 0, 12.0, 8.0),
    ]
    alone, whole, failed = rpc_throughput.summary(rounds)
    assert alone.startswith("measuring alone: 1 server 55.0 trials/min (50.0 to 60.0), 2 servers")
    assert "ratio 1.90 (1.80 to 2.00) over 2 pairs" in alone
    assert "1 server 30.0 trials/min" in whole
    assert failed == "1 of 40 trials failed"
