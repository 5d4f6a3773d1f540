"""The int8 study: its table, and what the page says of its results."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torchao")

from benchmarks import quantization as study
from benchmarks.quantization_training import KINDS

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results" / "quantization.json"


def changes(rows, network, column):
    mine = [row for row in rows if row["network"] == network]
    return np.array([row[column] - row["float32"] for row in mine])


def test_the_table_pairs_seeds():
    rows = [
        {"network": "n", "seed": s, "float32": f, "int8 tuned": f - 1,
         **{f"int8 {m}": f + d for m in study.METHODS}}
        for s, f, d in ((0, 90.0, 0.5), (1, 92.0, -0.5))
    ]  # fmt: skip
    line = study.table(rows).splitlines()[2]
    assert line.startswith("| n | 2 | 91.00 ± 1.41 | 91.00 (+0.00 ± 0.71) |")
    assert line.endswith("| 90.00 (-1.00 ± 0.00) |")


def test_results_are_whole_and_within_what_is_promised():
    rows = json.loads(RESULTS.read_text())["rows"]
    assert {row["network"] for row in rows} == {kind.name for kind in KINDS}
    for kind in KINDS:
        assert len(changes(rows, kind.name, "int8 mse")) >= 5
        assert changes(rows, kind.name, "int8 mse").mean() > -0.5
        assert changes(rows, kind.name, "int8 tuned").mean() > -0.2
    assert RESULTS.with_suffix(".md").read_text().endswith(study.table(rows))


def test_the_page_has_the_figures():
    page = (RESULTS.parents[2] / "docs" / "quantization.md").read_text()
    for line in study.table(json.loads(RESULTS.read_text())["rows"]).splitlines()[2:]:
        for cell in line.split(" | ")[3:]:
            assert cell.strip(" |") in page


def test_accuracy_counts_whole_batches():
    import torch

    images = torch.zeros(study.BATCH + 5, 1)
    labels = torch.zeros(study.BATCH + 5, dtype=torch.long)
    labels[: study.BATCH // 2] = 1
    got = study.accuracy(lambda x: torch.tensor([[1.0, 0.0]]).repeat(len(x), 1), images, labels)
    assert got == 50.0
