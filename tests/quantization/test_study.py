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

    images = torch.zeros(25, 1)
    labels = torch.zeros(25, dtype=torch.long)
    labels[:10] = 1
    got = study.accuracy(lambda x: torch.tensor([[1.0, 0.0]]).repeat(len(x), 1), images, labels, 20)
    assert got == 50.0


def test_the_same_command_on_cifar(tmp_path, monkeypatch, capsys):
    """Quick, on noise: a pruned network in bytes, kept and resumed."""
    monkeypatch.setattr(study, "KINDS", (KINDS[1],))
    monkeypatch.setattr(study, "METHODS", ("mse",))
    arguments = ["--json", str(tmp_path / "c.json"), "--work", str(tmp_path), "--quick"]
    arguments += ["--cifar", "cifar"]
    assert study.main(arguments) == 0
    data = json.loads((tmp_path / "c.json").read_text())
    assert data["images"] == "CIFAR-10"
    assert [row["network"] for row in data["rows"]] == [KINDS[1].name]
    assert all(0 <= data["rows"][0][n] <= 100 for n in ("float32", "int8 mse", "int8 tuned"))
    assert "on CIFAR-10" in (tmp_path / "c.md").read_text()
    monkeypatch.setattr(study, "row_of", None)
    assert study.main(arguments) == 0
    with pytest.raises(SystemExit):
        study.main([*arguments, "--tuning-epochs", "5"])
    assert "rows of another schedule" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        study.main([*arguments[:4], "--cifar", str(tmp_path / "none")])
    assert "does not exist" in capsys.readouterr().err


def test_a_shorter_schedule_on_some_images():
    from benchmarks import quantization_cifar as cifar
    from benchmarks.cifar import data

    settings = study.shortened(cifar.SETTINGS, 4)
    assert (settings.pretrain_epochs, settings.epochs, settings.gradual_epochs) == (4, 4, 1)
    whole = data.synthetic(80, 40)
    some = cifar.part(whole, 30)
    assert some.train.shape[0] == len(some.train_labels) == 30
    assert len(np.unique(some.train.reshape(30, -1), axis=0)) == 30
    at = [int(np.flatnonzero((whole.train == image).all((1, 2, 3)))[0]) for image in some.train]
    assert (whole.train_labels[at] == some.train_labels).all()
    assert some.test is whole.test


def test_networks_of_cifar_are_pruned_eightfold():
    """ResNet-20 at 8x whatever the group, 1x1 layers in blocks."""
    from benchmarks import quantization_cifar as cifar
    from tvm_pattern.pruning import Pruner
    from tvm_pattern.pruning.methods import OneShot

    for kind in (KINDS[1], KINDS[3], KINDS[6]):
        model = cifar.fresh(kind)
        pruner = Pruner(model, cifar.config(kind, cifar.SETTINGS), OneShot())
        pruner.freeze()
        pruner.finalize()
        weights = [w for w in model.parameters() if w.ndim == 4]
        kept = sum(int((w != 0).sum()) for w in weights) / sum(w.numel() for w in weights)
        assert 0.11 < kept < (0.14 if kind.network == "plain" else 0.4)
