"""The table of shares of the FMA peak."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tvm

from benchmarks import ours, peak_shares
from benchmarks.peak import PeakMeter
from benchmarks.workloads import LayerSpec, sparse_weights
from relay_passes.targets import resolve
from topi_kernels.backend import Backend

SMALL = LayerSpec("small", 16, 16, (6, 9), 2.0, (1, 4))


@pytest.fixture(scope="module")
def meter() -> PeakMeter:
    return PeakMeter()


@pytest.fixture(scope="module")
def objects(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("objects")


@pytest.fixture
def small_table(monkeypatch: pytest.MonkeyPatch, meter: PeakMeter) -> None:
    """One layer at two sharings, without binding this process to a core."""
    monkeypatch.setattr(peak_shares, "PeakMeter", lambda: meter)
    monkeypatch.setattr(peak_shares, "LAYERS", ("small",))
    monkeypatch.setattr(peak_shares, "GROUPS", (4, None))
    monkeypatch.setattr(peak_shares, "TARGETS", {"pattern/native": meter.widths[0]})
    monkeypatch.setattr(peak_shares, "load_workloads", lambda: ((SMALL,), ()))
    monkeypatch.setattr(peak_shares.device_info, "pin", lambda _threads: [0])


def _run(path: Path, objects: Path, only: str | None = None) -> list[dict[str, object]]:
    peak_shares.main(json_path=path, only=only, seconds=0.05, objects=objects)
    return json.loads(path.read_text())["rows"]


@pytest.mark.usefixtures("small_table")
def test_a_run_measures_every_row_and_writes_both_files(tmp_path: Path, objects: Path) -> None:
    rows = _run(tmp_path / "shares.json", objects)
    assert [(r["workload"], r["group"]) for r in rows] == [("small", 4), ("small", "dense")]
    for row in rows:
        assert row["runs"] >= 3
        assert 0 < row["share"] <= row["best"]
        flops = row["share"] * row["median_ms"]
        assert flops == pytest.approx(row["best"] * row["p10_ms"])
    page = (tmp_path / "shares.md").read_text()
    assert f"({rows[0]['best']:.0%})" in page


@pytest.mark.usefixtures("small_table")
def test_rows_of_an_earlier_run_stay_if_the_processor_is_the_same(
    tmp_path: Path, objects: Path
) -> None:
    path = tmp_path / "shares.json"
    first = _run(path, objects, "dense")
    both = _run(path, objects, "F4")
    assert [r["group"] for r in both] == [4, "dense"]
    assert both[1] == first[0]
    document = json.loads(path.read_text())
    document["device"]["cpu"] = "another"
    path.write_text(json.dumps(document))
    assert [r["group"] for r in _run(path, objects, "F4")] == [4]


def test_the_page_keeps_rows_of_targets_that_a_run_does_not_measure(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(peak_shares, "TARGETS", {"pattern/znver4": 512})
    rows = [
        peak_shares.ShareRow("56x56x64", target, 1, share=share, best=0.9)
        for target, share in (("pattern/x86-avx512", 0.7), ("pattern/znver4", 0.8))
    ]
    page = peak_shares.markdown(rows, {"cpu": "a processor", "caches": {}})
    assert "| 56x56x64 | pattern/znver4 | 80% (90%) |" in page
    assert "| 56x56x64 | pattern/x86-avx512 | 70% (90%) |" in page


@pytest.mark.usefixtures("small_table")
def test_the_faster_of_two_runs_is_kept_if_asked_for(tmp_path: Path, objects: Path) -> None:
    path = tmp_path / "shares.json"
    (row,) = _run(path, objects, "F4")
    document = json.loads(path.read_text())
    for config, best, kept in (
        (row["config"], 9.0, 9.0),
        ("another", 9.0, 0),
        (row["config"], 0, 0),
    ):
        document["rows"] = [{**row, "config": config, "best": best}]
        path.write_text(json.dumps(document))
        peak_shares.main(path, "F4", 0.05, objects, keep_best=True)
        (new,) = json.loads(path.read_text())["rows"]
        assert (new["best"] == kept) == bool(kept)


@pytest.mark.usefixtures("small_table")
def test_vectors_that_the_machine_lacks_are_said_to_be_not_measured(
    tmp_path: Path, objects: Path, meter: PeakMeter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peak_shares, "TARGETS", {"pattern/x86-avx512": 4096})
    rows = _run(tmp_path / "shares.json", objects)
    assert [row["share"] for row in rows] == [None, None]
    assert "no vectors of 4096 bits" in (tmp_path / "shares.md").read_text()
    with pytest.raises(ValueError, match="4096 bits: this machine has"):
        meter.at_width(4096)


@pytest.mark.usefixtures("small_table")
def test_compiled_objects_are_taken_again(
    tmp_path: Path, objects: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    peak_shares.main(json_path=tmp_path / "x.json", only="F4", objects=objects, build_only=True)
    assert not (tmp_path / "x.json").exists()
    assert list(objects.glob("*.so"))

    def refuse(*_: object) -> None:
        raise AssertionError("compiled again")

    monkeypatch.setattr(tvm, "compile", refuse)
    _run(tmp_path / "shares.json", objects, "F4")
    with pytest.raises(AssertionError, match="compiled again"):
        _run(tmp_path / "shares.json", tmp_path / "empty", "F4")


@pytest.mark.usefixtures("small_table")
def test_a_wrong_output_is_not_timed(
    tmp_path: Path, objects: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = np.zeros((1, 16, 6, 9), np.float32)
    monkeypatch.setattr(ours.LayerEngine, "output", lambda _: wrong)
    with pytest.raises(ValueError, match="differs from torch"):
        _run(tmp_path / "shares.json", objects, "F4")


def test_layers_get_the_order_that_a_network_of_them_would_get() -> None:
    backend = Backend.of(resolve("pattern/x86-avx512"), 1)
    same = LayerSpec("56", 64, 64, (56, 56), 3.6, (1,))
    strided = LayerSpec("56-s2", 64, 64, (56, 56), 3.6, (1,), stride=2)
    weight, _ = sparse_weights(same, 1)
    layout, out_layout = ours.layer_layouts(same, weight, backend)
    assert layout.is_interleaved
    assert layout == out_layout
    layout, out_layout = ours.layer_layouts(strided, weight, backend)
    assert layout.is_interleaved
    assert out_layout.keeps_lanes_of(layout, (2, 2))
    assert (out_layout.height, out_layout.width) == (28, 28)
    layout, out_layout = ours.layer_layouts(replace(strided, size=(55, 57)), weight, backend)
    assert not layout.is_interleaved
    assert (out_layout.height, out_layout.width) == (28, 29)
