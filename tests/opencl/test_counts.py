"""Executed instructions of kernels in a simulator, and the benchmark that shows them."""

from __future__ import annotations

import json
import shutil
import subprocess

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks import oclgrind, opencl
from benchmarks.arm_static import Layer
from benchmarks.oclgrind import OclgrindError
from benchmarks.opencl_layers import COUNTED_FILTERS, Case, layers_of
from benchmarks.opencl_ranking import executed_us, rank_correlation, spread_configs
from topi_kernels.schedules.opencl.config import GpuConfig
from topi_kernels.schedules.opencl.cost import work_of

HISTOGRAM = """Instructions executed for kernel 'pattern_conv2d_kernel':
          120 - call llvm.fmuladd.v4f32()
           30 - call llvm.fmuladd.f32()
           95 - load global (1520 bytes)
            4 - load local (16 bytes)
            3 - call _Z6vload4jPU3AS1Kf()
            2 - call _Z7barrierj()
            1 - ret

layer kernel: 0.0
"""
#: The least layer whose loops are long enough to be more than their beginnings.
LAYER = Layer(14, 64, 64)


def test_a_histogram_is_read():
    counted = oclgrind.parse(HISTOGRAM)
    assert counted == oclgrind.Executed(255, 4 * 120 + 30, 98, 4, 1520, 2)
    with pytest.raises(OclgrindError, match="printed no counts of instructions; it said: 'no'"):
        oclgrind.parse("no")


@pytest.fixture(scope="module")
def simulator():
    pytest.importorskip("pyopencl")
    if shutil.which("oclgrind") is None:
        pytest.skip("no oclgrind (make opencl-tools)")


#: Filters that share -> tile_rows of the tile that pruned and dense weights get.
TILES = {1: 2, 4: 1}


@pytest.fixture(scope="module")
def executed(simulator, tmp_path_factory):
    """``(filters, whether pruned)`` -> case, and what its first filters executed."""
    folder = tmp_path_factory.mktemp("counted")
    result = {}
    for filters, rows in TILES.items():
        for pruned in (True, False):
            case = Case(LAYER, filters if pruned else 0, "adreno")
            case.__dict__["config"] = GpuConfig(2, filters, rows, 7, tiles_per_group=14 // rows)
            bundle = case.bundle(folder / f"{filters}{pruned}")
            result[filters, pruned] = case, oclgrind.count(bundle)
    return result


@pytest.mark.parametrize("filters", TILES)
def test_pruned_layers_execute_what_is_kept(executed, filters):
    """Of the weights 1 / 8.1 are kept, and the same tile executes less than a fifth for them."""
    (case, counted), (_, dense) = executed[filters, True], executed[filters, False]
    kept = np.count_nonzero(case.weight[:COUNTED_FILTERS]) * 14 * 14
    assert counted.multiply_adds == kept
    assert dense.multiply_adds == COUNTED_FILTERS * 64 * 9 * 14 * 14
    assert dense.total >= 5 * counted.total


def test_executed_loads_are_those_of_the_source(executed):
    """Loads of the loops, beside which the epilogue's are few."""
    for case, counted in (executed[filters, True] for filters in TILES):
        per_four = 4 * counted.global_loads / counted.multiply_adds
        promised = case.static()["loads_per_four_multiply_adds"]
        assert promised == pytest.approx(per_four, rel=0.25)


def test_the_model_ranks_as_executed(executed):
    """Pruned and dense, shared or not: in the order of what the simulator counted."""
    model, run = [], []
    for case, counted in executed.values():
        shape = case.task_of(np.ascontiguousarray(case.weight[:COUNTED_FILTERS])).shape
        work = work_of(shape, case.config, case.facts)
        model.append(work.items * max(work.operations, work.load_bytes))
        run.append(executed_us(counted, case.facts))
    assert len(model) == 4
    assert rank_correlation(model, run) == pytest.approx(1.0)


def test_rank_correlation():
    assert rank_correlation([1, 2, 3], [10, 20, 70]) == pytest.approx(1.0)
    assert rank_correlation([1, 2, 3], [3, 2, 1]) == pytest.approx(-1.0)
    # Of Spearman's formula with ties: ranks 1, 2.5, 2.5, 4 against 1, 3, 2, 4.
    assert rank_correlation([1, 5, 5, 9], [1, 3, 2, 4]) == pytest.approx(4.5 / 22.5**0.5)


def test_configs_are_spread_from_the_cheapest_to_the_dearest():
    case = Case(LAYER, 1, "adreno")
    costs = [case.task.cost(c) for c in spread_configs(case, 5)]
    assert costs == sorted(costs)
    assert len(costs) == 5
    assert costs[-1] > 2 * costs[0]


@pytest.mark.parametrize("config", [GpuConfig(4, 1, 2, 1), GpuConfig(2, 1, 3, 3, loads="anywhere")])
def test_no_race_and_nothing_outside_a_buffer(simulator, tmp_path, config):
    case = Case(Layer(6, 4, 8), 1, "adreno")
    case.__dict__["config"] = config
    assert oclgrind.count(case.bundle(tmp_path / "b"), races=True).multiply_adds > 0


def test_a_read_outside_a_buffer_is_an_error(simulator, tmp_path):
    bundle = Case(Layer(6, 4, 8), 1, "mali").bundle(tmp_path / "b")
    with np.load(bundle / "arrays.npz") as stored:
        arrays = dict(stored)
    arrays["x"] = arrays["x"][:, :2]
    np.savez(bundle / "arrays.npz", **arrays)
    with pytest.raises(
        OclgrindError, match=r"is not right in oclgrind, which said: .*Invalid read"
    ):
        oclgrind.count(bundle)


def test_without_a_simulator(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(OclgrindError, match="no oclgrind; install it by `make opencl-tools`"):
        oclgrind.count(tmp_path)


def test_a_layer_that_takes_too_long(tmp_path, monkeypatch):
    def slow(*_args, **_options):
        raise subprocess.TimeoutExpired("oclgrind", 1)

    monkeypatch.setattr(shutil, "which", lambda name: name)
    monkeypatch.setattr(subprocess, "run", slow)
    with pytest.raises(OclgrindError, match="count a smaller layer"):
        oclgrind.count(tmp_path)


def test_the_layers_of_a_network():
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.Conv2d(8, 8, 3, padding=1),
        nn.Conv2d(8, 8, 3, padding=1),
        nn.Conv2d(8, 8, 3, groups=8),
        nn.Conv2d(8, 4, 1, stride=2),
    )
    found = layers_of(model, torch.zeros(1, 3, 8, 8))
    assert found == {Layer(8, 3, 8): 1, Layer(8, 8, 8): 2, Layer(6, 8, 4, 1, 2): 1}


def test_networks_are_sums_of_their_layers(monkeypatch):
    layers = {Layer(8, 3, 8, 7): 1, Layer(8, 8, 8): 2}
    monkeypatch.setattr(opencl, "layers_of", lambda *_: layers)
    monkeypatch.setattr(opencl, "NETWORKS", {"net": nn.Identity})
    table = [
        {"workload": name, "device": "mali", "dtype": "float32", "group": group, "model_ms": ms}
        for name, group, ms in (
            ("7x7 8 3->8", 0, 5.0),
            ("3x3 8 8->8", 1, 1.0),
            ("3x3 8 8->8", 4, 0.5),
            ("3x3 8 8->8", 0, 4.0),
        )
    ]
    found = opencl.network_rows(table)
    assert [(r["group"], r["model_ms"]) for r in found] == [(1, 7.0), (4, 6.0), (0, 13.0)]
    assert {r["device"] for r in found} == {"mali"}


def test_the_benchmark(simulator, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(opencl, "QUICK", (Layer(8, 8, 8), Layer(6, 16, 16)))
    file = tmp_path / "gpu.json"
    assert opencl.main(["--quick", "--json", str(file)]) == 0
    data = json.loads(file.read_text())
    assert len(data["rows"]) == 2 * len(opencl.DEVICES) * 3
    assert all(row["note"] == data["kind"] and row["model_ms"] > 0 for row in data["rows"])
    assert all(row["static"]["dynamically_indexed"] == [] for row in data["rows"])
    counted = [row for row in data["rows"] if "executed" in row]
    assert [row["group"] for row in counted] == [1, 4] * 2
    assert all(row["executed"]["dense_over_pruned"] > 3 for row in counted)
    assert all(1 <= row["executed"]["over_kept"] < 2 for row in counted)
    text = file.with_suffix(".md").read_text()
    assert text.startswith("No figure here is a time of a GPU.")
    assert text in capsys.readouterr().out
    assert [len(r["rows"]) for r in data["ranking"]] == [2]
    assert "Spearman's rank correlation" in text
    assert file.with_suffix(".png").stat().st_size > 0


def test_no_layer(tmp_path):
    with pytest.raises(SystemExit):
        opencl.main(["--quick", "--only", "9x9", "--json", str(tmp_path / "a.json")])
