"""The benchmark's networks of 1-D convolutions: what they are, and how they are pruned."""

from __future__ import annotations

import json

import pytest
import torch

from benchmarks.architectures.__main__ import read_rows, run_missing, time_missing
from benchmarks.architectures.page import render
from benchmarks.architectures.zoo import ZOO, Architecture
from benchmarks.workloads import load_workloads, network_flops
from tvm_pattern.pruning import oneshot


@pytest.mark.parametrize(
    ("name", "shape"), [("wavenet", (1, 256, 4096)), ("keyword-spotting", (1, 12))]
)
def test_networks_of_sequences(name, shape):
    spec = next(s for s in load_workloads()[1] if s.name == name)
    model, x = spec.build(), spec.example()
    with torch.no_grad():
        assert tuple(model(x).shape) == shape
    dense, effective, sparsity = network_flops(model, x)
    assert dense == effective
    assert sparsity == 0
    oneshot(model, connectivity=spec.connectivity, connectivity_1x1=spec.connectivity_1x1)
    assert network_flops(model, x)[2] > 0.6


def test_the_table_goes_on_where_it_stopped(tmp_path):
    path, ran = tmp_path / "rows.jsonl", []

    def run(architecture):
        ran.append(architecture.key)
        return {"key": architecture.key, "dense": {"status": "equal"}}

    wanted = [Architecture("a", "x"), Architecture("a", "y")]
    assert run_missing(wanted[:1], path, run) == 1
    path.write_text(path.read_text() + '{"key": "a/y", "de')  # a run that was killed
    assert run_missing(wanted, path, run) == 1
    assert ran == ["a/x", "a/y"]
    assert [row["key"] for row in read_rows(path)] == ["a/x", "a/y"]


def test_what_was_kept_is_timed_once(tmp_path):
    path, keep = tmp_path / "rows.jsonl", tmp_path / "kept"
    (keep / "a-x").mkdir(parents=True)
    (keep / "a-x" / "input.npy").touch()
    rows = [{"key": "a/x", "dense": {"status": "equal"}}, {"key": "a/y", "dense": {}}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    times = {"dense": {"p10_ms": 2.0}, "onnxruntime": {"p10_ms": 3.0}}
    assert time_missing(path, keep, 5, lambda folder, rounds: times) == 1
    assert time_missing(path, keep, 5, lambda folder, rounds: times) == 0
    timed = {"status": "equal", "p10_ms": 2.0}
    assert {row["key"]: row["dense"] for row in read_rows(path)} == {"a/x": timed, "a/y": {}}


def test_the_page_counts_and_names_what_failed():
    times = {"p10_ms": 2.0, "median_ms": 2.0}
    rows = [
        {
            "key": "a/x",
            "size": 96,
            "dense": {"status": "equal", "taken": 3, "convolutions": 4, "left": ["why"], **times},
            "pruned": {"status": "equal", "p10_ms": 1.0, "median_ms": 1.0},
            "onnxruntime": times,
        },
        {"key": "a/y", "size": 96, "error": "stopped after 9 s"},
    ]
    page = render(rows, "here", "rows.jsonl", 3.6)
    assert "2 architectures: 1 dense and 1 pruned equal torch; 1 are refused" in page
    assert "| 0.50 |" in page
    assert "- `a/x`: why" in page
    assert "- `a/y`: stopped after 9 s" in page


def test_architectures_are_named_once():
    keys = [architecture.key for architecture in ZOO]
    assert len(set(keys)) == len(keys) >= 60
