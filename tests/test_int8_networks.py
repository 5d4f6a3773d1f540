"""The benchmark of networks of bytes: its rows, peers, and what both are held against."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest
import torch
from torch import nn

import tvm_pattern
from benchmarks import networks, session
from benchmarks.dot_peak import DotPeak
from benchmarks.harness import INT8_ERROR, OURS, Budget, Contender
from benchmarks.peers import OnnxRuntime, Torch
from benchmarks.workloads import NetworkSpec
from relay_passes import targets
from topi_kernels.backend import Backend

SPEC = NetworkSpec("tiny", "tiny", (1, 3, 12, 12), 2.0, (), 2.0, groups_int8=(2,))
FLOAT_ONLY = NetworkSpec("float", "tiny", (1, 3, 12, 12), 2.0, (1,))


def tiny() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 1), nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(),
    )  # fmt: skip


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    if not Backend.of(targets.resolve("pattern/native")).int8:
        pytest.skip("this computer has no instructions for bytes")
    monkeypatch.setattr(tvm_pattern.models, "tiny", tiny, raising=False)
    monkeypatch.setattr(networks, "load_workloads", lambda: ((), (SPEC, FLOAT_ONLY)))
    monkeypatch.setattr(session, "PEERS", (Torch(), OnnxRuntime()))
    monkeypatch.setattr(Budget, "quick", lambda: Budget(0.01, 1))


def test_rows(small, tmp_path) -> None:
    path = tmp_path / "rows.json"
    networks.main(path, quick=True, dtype="int8")
    data = json.loads(path.read_text())
    rows = [(r["workload"], r["engine"], r["group"], r["dtype"]) for r in data["rows"]]
    assert rows == [
        ("tiny", "onnxruntime", None, "int8"),
        ("tiny", OURS, None, "int8"),
        ("tiny", OURS, 2, "int8"),
    ]
    assert all(row["median_ms"] > 0 for row in data["rows"])
    pruned = data["rows"][2]
    assert pruned["effective_gflops"] < 0.6 * pruned["dense_equivalent_gflops"]
    assert data["dot_peak_gops"] > 0
    assert "Peak of the dot products of bytes" in path.with_suffix(".md").read_text()


def test_kept_libraries_are_measured_as_they_are(small, monkeypatch, tmp_path) -> None:
    """What --prepare left in --keep is neither quantised nor compiled again."""
    path = tmp_path / "rows.json"
    networks.main(path, quick=True, dtype="int8", keep=tmp_path, prepare=True, only="F2")
    assert not path.exists()
    monkeypatch.setattr(tvm_pattern, "compile", None)
    monkeypatch.setattr(tvm_pattern.quantization, "quantize", None)
    networks.main(path, quick=True, dtype="int8", keep=tmp_path, only="tiny/(tvm.*F2|onnx)")
    rows = json.loads(path.read_text())["rows"]
    assert [(r["engine"], r["group"]) for r in rows] == [("onnxruntime", None), (OURS, 2)]
    assert all(row["median_ms"] > 0 for row in rows)
    networks.main(path, quick=True, dtype="int8", keep=tmp_path, only="tvm-pattern/F2")
    assert [row["group"] for row in json.loads(path.read_text())["rows"]] == [2]


def test_peers_that_read_no_bytes_say_so(tmp_path) -> None:
    with pytest.raises(ValueError, match="torch reads no networks of bytes here"):
        Torch().open(tmp_path / "x.onnx", torch.zeros(1), 1)


class Refusing(OnnxRuntime):
    def open(self, path: Path, example: torch.Tensor, threads: int) -> NoReturn:
        raise RuntimeError(f"no operator of {path.name} is known")


def test_a_peer_that_refuses_is_a_note(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(session, "PEERS", (Refusing(),))
    run = session.Session.start(
        "t", threads=1, cores=None, only=None, budget=Budget.quick(), json_path=tmp_path / "r",
        dtype="int8",
    )  # fmt: skip
    assert isinstance(run.peak, DotPeak)
    (row,) = run.add_int8_peers("w", tmp_path / "x.onnx", torch.zeros(1), np.zeros(1), 1)
    assert row.runner is None
    assert "cannot read: RuntimeError: no operator of x.onnx is known" in row.note


class Given:
    """A runner with this output."""

    def __init__(self, output: np.ndarray) -> None:
        self.result = output

    def run(self) -> None:
        """Nothing."""

    def output(self) -> np.ndarray:
        return self.result


@pytest.mark.parametrize("error", [0.5 * INT8_ERROR, 2 * INT8_ERROR, np.nan])
def test_bytes_are_held_against_the_network_of_bytes(error: float) -> None:
    reference = np.ones(100, np.float32)
    contender = Contender("w", OURS, Given(reference + error), dtype="int8", reference=reference)
    contender.check()
    assert (contender.runner is not None) == (error < INT8_ERROR)
    assert contender.note == "" or "of the result's length" in contender.note
