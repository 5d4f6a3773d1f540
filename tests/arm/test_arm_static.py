"""The static ARM benchmark: figures from known loops, tables that say what they are."""

from __future__ import annotations

import json

import pytest

from benchmarks import arm_assembly, arm_static


def test_quick_run(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(arm_static, "QUICK", [arm_static.Layer(14, 32, 32)])
    file = tmp_path / "arm.json"
    assert arm_static.main(["--quick", "--json", str(file)]) == 0
    data = json.loads(file.read_text())
    assert data["kind"].startswith("model:")
    assert len(data["rows"]) == 9
    for row in data["rows"]:
        assert row["note"] == data["kind"]
        assert 0 < row["fmla_bound_share"] <= 1
        assert row["fmla_over_ideal"] >= 1
        assert row["spills"] == 0
        assert row["predicted_ms"] > 0
    counted = [row for row in data["rows"] if "counts" in row]
    assert [row["group"] for row in counted] == [1, 4, 0]
    # Pruned layers execute fewer of everything.
    dense = counted.pop()["counts"]
    for row in counted:
        assert row["counts"]["fmla"] < dense["fmla"] / 4
        assert row["counts"]["total"] < dense["total"]
    assert "model" in capsys.readouterr().out
    assert file.with_suffix(".png").stat().st_size > 0
    assert file.with_suffix(".md").read_text().startswith("All figures: model")


def test_no_layer(tmp_path):
    with pytest.raises(SystemExit):
        arm_static.main(["--quick", "--only", "9x9", "--json", str(tmp_path / "a.json")])


@pytest.mark.parametrize(
    ("lines", "share", "word"),
    [
        (("\tfmla v0.4s, v1.4s, v2.4s",), 0.97, "multiply-adds"),
        (("\tfmla v0.4s, v1.4s, v2.4s", "\tldr q1, [sp, #16]"), 0.5, "spills"),
        (("\tfmla v0.4s, v1.4s, v2.4s", "\tldr q1, [x1]"), 0.5, "loads"),
        (("\tfmla v0.4s, v1.4s, v2.4s",), 0.5, "latency"),
    ],
)
def test_bound(lines, share, word):
    assert arm_static.bound_by(arm_assembly.InnerLoop(lines), share) == word
