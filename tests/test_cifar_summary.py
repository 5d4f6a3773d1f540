"""The CIFAR-10 study's table, plot and latency table, on made-up rows and times."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks.cifar import latency, summary
from benchmarks.cifar.rows import Row, as_fields
from benchmarks.harness import Timing

DENSE, BASE = Row("vgg", "dense"), Row("vgg", "gradual", 8.0)
FILTERS = Row("vgg", "filter-latency", 8.0)
LATENCY = {
    "device": {"cpu": "made up", "threads": 1},
    "batch": 1,
    "warm_up": "two calls",
    "networks": {
        "vgg": {
            "pattern": [{"rate": 8.0, "group": 1, "ratio": 0.3}],
            "thin": [{"fraction": f, "ratio": f} for f in (0.25, 0.5, 1.0)],
        }
    },
}


def line(row: Row, seed: int, test: float | None, fraction: float | None = None) -> dict[str, Any]:
    rate = {**as_fields(row), "seed": seed, "test": test, "seconds": 1.0}
    return {**rate, "compression_rate": row.rate, "fraction": fraction}


def study_lines() -> list[dict[str, Any]]:
    return [
        line(DENSE, 0, 93.0), line(DENSE, 1, 93.4), line(DENSE, 2, 93.2),
        line(BASE, 0, 92.9), line(BASE, 1, 93.1), line(BASE, 2, 93.2),
        line(FILTERS, 0, 90.0, 0.25), line(FILTERS, 1, 90.6, 0.25),
        line(Row("vgg", "admm", 8.0), 0, None),
        line(Row("vgg", "unstructured", 8.0), 0, 93.05),
    ]  # fmt: skip


def test_differences_are_of_equal_seeds_and_noise_is_pooled() -> None:
    table = summary.Table(study_lines())
    found = table.difference(BASE, DENSE)
    assert found is not None
    # Differences -0.1, -0.3, 0.0 and, of the filters, -3.0, -2.8: squares of deviations summed
    # by hand, over (3 - 1) + (2 - 1) degrees of freedom.
    deviation = np.sqrt((0.0466666667 + 0.02) / 3)
    assert table.pooled("vgg") == (pytest.approx(deviation), 3)
    assert found.mean == pytest.approx(-0.4 / 3)
    assert found.spread == pytest.approx(0.152752523)
    assert found.noise == pytest.approx(3.182446305 * deviation / np.sqrt(3))
    assert (found.seeds, found.verdict) == (3, "within noise")
    filters = table.difference(FILTERS, DENSE)
    assert filters is not None
    assert (filters.seeds, filters.verdict) == (2, "lower")
    raised = table.difference(DENSE, FILTERS)
    assert raised is not None
    assert raised.verdict == "higher"
    assert table.difference(Row("vgg", "admm", 8.0), DENSE) is None


def test_one_seed_of_everything_has_no_verdict() -> None:
    table = summary.Table([line(DENSE, 0, 93.0), line(BASE, 0, 80.0)])
    found = table.difference(BASE, DENSE)
    assert found is not None
    assert found.verdict == "one seed"


@pytest.mark.parametrize(
    ("row", "fraction", "expected"),
    [
        (DENSE, None, 1.0),
        (BASE, None, 0.3),
        (FILTERS, 0.5, 0.5),
        (Row("vgg", "filter-weights", 8.0), 0.375, 0.375),  # between two measured widths
        (FILTERS, 0.1, None),  # narrower than any
        (Row("vgg", "gradual", 8.0, group=4), None, None),
        (Row("vgg", "gradual", 8.0, library="pconv4"), None, None),
        (Row("vgg", "unstructured", 8.0), None, None),
        (Row("resnet20", "dense"), None, None),
    ],
)
def test_latency_is_given_where_it_was_measured(
    row: Row, fraction: float | None, expected: float | None
) -> None:
    assert summary.ratio_of(LATENCY, row, fraction) == expected
    assert summary.ratio_of(None, row, fraction) is None


def test_command_writes_table_and_plot_of_partial_rows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows, table = tmp_path / "rows.jsonl", tmp_path / "latency.json"
    table.write_text(json.dumps(LATENCY))
    run = {"settings": {"epochs": 20, "pretrain_epochs": 16}, "device": "made up GPU"}
    rows.write_text("".join(json.dumps(value) + "\n" for value in [run, *study_lines()]))
    assert summary.main([str(rows), "--latency", str(table)]) == 0
    text = (tmp_path / "rows.md").read_text()
    assert "| gradual 8x | 8.00x | 0.30 | 93.07 ± 0.15 | 3 | -0.13 ± 0.15 | within noise |" in text
    assert "| 0 (1 diverged) |" in text
    assert "| 8x against filter pruning of equal latency | +2.70 ± 0.28 |" in text
    assert "made up GPU" in text
    assert (tmp_path / "rows.png").read_bytes().startswith(b"\x89PNG")
    rows.write_text(json.dumps(run) + "\n")
    assert summary.main([str(rows)]) == 2
    assert "no finished rows" in capsys.readouterr().err


# Latency ----------------------------------------------------------------------------------------


def test_ratios_compare_the_best_calls_of_a_round() -> None:
    # Two rounds; the second one ran at half the speed, which the ratio does not see.
    mine, dense = [1.0, 9.0, 2.0, 2.5], [4.0, 2.0, 9.0, 4.0, 4.0, 7.0]
    np.testing.assert_allclose(latency.ratios(mine, dense, 2), [0.5, 0.5])
    figures = latency.entry(Timing(mine, 1.0, 1.0), Timing(dense, 1.0, 1.0), 2)
    assert (figures["ratio"], figures["ratio_quartiles"]) == (0.5, [0.5, 0.5])
    assert (figures["milliseconds"], figures["min_ms"], figures["runs"]) == (2.25, 1.0, 4)


def test_pruned_variants_have_the_rate_over_all_convolutions() -> None:
    for variant in (latency.Variant("resnet20", 8.0, 4), latency.Variant("resnet20", 2.25, 1)):
        convs = [p for p in variant.model().parameters() if p.ndim == 4]
        kept = sum(int((p != 0).sum()) for p in convs)
        rate = sum(p.numel() for p in convs) / kept
        assert rate == pytest.approx(variant.rate, rel=0.02)
    assert latency.variants("vgg")[0] == latency.Variant("vgg", fraction=1.0)


def test_a_library_is_checked_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def tiny(variant: latency.Variant) -> nn.Module:
        torch.manual_seed(0)
        conv = nn.Conv2d(3, 4, 3, padding=1)
        return nn.Sequential(conv, nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()

    monkeypatch.setattr(latency.Variant, "model", tiny)
    variant = latency.Variant("vgg", fraction=0.5)
    latency.build(variant, 1, tmp_path)()
    written = variant.file(tmp_path, 1).stat().st_mtime_ns
    latency.build(variant, 1, tmp_path)()
    assert variant.file(tmp_path, 1).stat().st_mtime_ns == written
    monkeypatch.setattr(latency, "WORST", -1.0)
    with pytest.raises(RuntimeError, match=r"vgg width 0\.5 differs from torch"):
        latency.build(variant, 1, tmp_path)


def test_latency_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def build(variant: latency.Variant, threads: int, folder: Path) -> Callable[[], object]:
        return lambda: None

    monkeypatch.setattr(latency, "build", build)
    monkeypatch.setattr(latency.device, "pin", lambda threads: [0])
    path = tmp_path / "latency.json"
    values = ["--quick", "--json", str(path), "--network", "resnet20"]
    assert latency.main(values) == 0
    table = json.loads(path.read_text())
    found = table["networks"]["resnet20"]
    assert {key: found["thin"][0][key] for key in ("fraction", "ratio")} == {
        "fraction": 1.0,
        "ratio": 1.0,
    }
    assert [(p["rate"], p["group"]) for p in found["pattern"]] == [(8.0, 1)]
    assert table["device"]["threads"] == 1
    assert latency.main([*values, "--compile-only", "--libraries", str(tmp_path)]) == 0
    with pytest.raises(SystemExit):
        latency.main([*values, "--compile-only"])
