"""Reports and plots."""

from __future__ import annotations

import html.parser
import io
import json

import pytest
from rich.console import Console
from torch import nn

from tvm_pattern.pruning import PatternConfig, Rule, oneshot
from tvm_pattern.pruning.plots import (
    plot_kept_kernels,
    plot_library,
    plot_sensitivity,
    save_plots,
)

from .small import make_net


@pytest.fixture
def report():
    return oneshot(make_net(), connectivity=2.0, library=6)


def test_totals_count_the_layers_left_dense(report):
    dense = 8 * 3 * 9 + 16 * 8 * 9 + 16 * 8
    kept = 8 * 3 * 4 + 64 * 4 + 16 * 8
    assert report.compression_rate == pytest.approx(dense / kept)
    assert report.compression_rate_pruned == pytest.approx((dense - 128) / (kept - 128))
    assert report.sparsity == pytest.approx(1 - kept / dense)
    assert sum(report.pattern_counts()["natural6"].values()) == 24 + 64


def test_json_says_what_the_rows_say(report):
    data = json.loads(report.to_json())
    assert data["schema"] == 1
    assert [r["name"] for r in data["layers"]] == ["0", "3", "6"]
    assert data["layers"][1]["weights_kept"] == 256
    assert data["layers"][1]["connectivity"] == 2.0
    assert "1x1" in data["layers"][2]["reason"]


def test_every_form_names_every_layer_and_reason(report, tmp_path):
    stream = io.StringIO()
    report.print(Console(file=stream, width=200))
    texts = [stream.getvalue(), str(report), report.to_markdown(), report.to_html()]
    for text in texts:
        assert "natural6" in text
        assert "1x1 convolution, which has no patterns" in text
        assert "64/128" in text
    for suffix in (".json", ".md", ".html"):
        report.save(tmp_path / f"r{suffix}")
        assert (tmp_path / f"r{suffix}").stat().st_size > 100
    with pytest.raises(ValueError, match="expected one of"):
        report.save(tmp_path / "r.txt")


class _Balanced(html.parser.HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag, attrs):
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_html_is_well_formed_and_escaped(report):
    parser = _Balanced()
    parser.feed(report.to_html())
    assert parser.open == []
    net = nn.Sequential()
    net.add_module("<b>", nn.Conv2d(3, 4, 3))
    net.add_module("x|y", nn.Conv2d(4, 4, 3))
    odd = oneshot(net, connectivity=2.0)
    assert "<b>" not in odd.to_html().split("<table>")[1]
    assert r"x\|y" in odd.to_markdown()


def test_plots_are_written(report, tmp_path):
    epochs = [
        {"epoch": 1, "loss": 1.0, "accuracy": 50.0, "phase": "training"},
        {"epoch": 2, "loss": 0.5, "accuracy": 60.0, "phase": "frozen"},
    ]
    written = save_plots(report, tmp_path / "plots", epochs)
    assert {p.name for p in written} == {
        "kept_kernels.png", "energy.png", "library.png", "training.png",
    }  # fmt: skip
    plot_sensitivity({"a": [(2.0, 0.1), (1.0, 0.0)]}, tmp_path / "s.png")
    for path in (*written, tmp_path / "s.png"):
        assert path.read_bytes().startswith(b"\x89PNG")


def test_plots_without_patterns(tmp_path):
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1))
    config = PatternConfig(first="skip", rules=[Rule(name="1", connectivity=2.0)])
    report = oneshot(net, connectivity_1x1=2.0, rules=config.rules, first="skip")
    assert len(save_plots(report, tmp_path)) == 2
    plot_kept_kernels(report.assignment, tmp_path / "k.png", layers=1)
    with pytest.raises(ValueError, match="no library to draw"):
        plot_library(report, tmp_path / "l.png")
