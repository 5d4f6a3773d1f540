"""The benchmark of compile time; its processes are played."""

import json
import logging
import time

import pytest

from benchmarks import compile_once, compile_time
from benchmarks.compile_once import TOTAL
from benchmarks.compile_time import EMPTY, FILLED, Row
from tvm_pattern.stages import stage


def test_the_cpu_seconds_of_stages_are_read_from_the_log():
    stages = compile_once._Stages()
    logger = logging.getLogger("tvm_pattern.stages")
    level = logger.level
    logger.addHandler(stages)
    logger.setLevel(logging.INFO)
    try:
        start = time.process_time()
        with stage("packing"):
            sum(range(200_000))
        most = time.process_time() - start
    finally:
        logger.removeHandler(stages)
        logger.setLevel(level)
    assert list(stages.seconds) == ["packing"]
    assert 0 < stages.seconds["packing"] <= most


def test_rows_are_medians_with_the_spread_of_the_whole():
    runs = [{"a": 1.0, TOTAL: 4.0}, {"a": 3.0, TOTAL: 9.0}, {"a": 2.0, TOTAL: 5.0}]
    row = Row.of("vgg16", EMPTY, runs)
    assert row.cpu_seconds == {"a": 2.0, TOTAL: 5.0}
    assert (row.rounds, row.least, row.most) == (3, 4.0, 9.0)
    assert compile_time.line(row) == "vgg16, empty cache: 5.00 (4.00 to 9.00) CPU s: a 2.00"


def test_each_round_compiles_with_an_empty_cache_and_then_with_that_one(monkeypatch, tmp_path):
    asked = []

    def played(network, weights, folder):
        assert weights.exists()
        was_there = (folder / "cache").exists()
        (folder / "cache").mkdir(exist_ok=True)
        asked.append((network, was_there))
        return {TOTAL: 1.0 if was_there else 2.0}

    monkeypatch.setattr(compile_time, "run_once", played)
    monkeypatch.setattr(compile_time, "_bytecode", lambda: None)
    monkeypatch.setattr(compile_time.device, "pin", lambda _threads: [0])
    monkeypatch.setattr(compile_time, "pruned", lambda model, _spec, _group: model)
    path = tmp_path / "rows.json"
    compile_time.main(path, "mobilenet_v2", 2)
    assert asked == [("mobilenet_v2", False), ("mobilenet_v2", True)] * 2
    rows = json.loads(path.read_text())["rows"]
    found = {row["cache"]: row["cpu_seconds"] for row in rows}
    assert found == {EMPTY: {TOTAL: 2.0}, FILLED: {TOTAL: 1.0}}


def test_unknown_networks_are_refused():
    with pytest.raises(ValueError, match=r"--only resnet5000: expected among .*resnet50"):
        compile_time.main(None, "resnet50,resnet5000", 1)


def test_a_process_that_fails_says_why(tmp_path):
    with pytest.raises(RuntimeError, match=r"resnet50 in a process of its own: .*missing\.pt"):
        compile_time.run_once("resnet50", tmp_path / "missing.pt", tmp_path)
