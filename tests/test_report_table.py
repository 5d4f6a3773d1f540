"""The one table of layers: names, figures, notes, and what fits."""

from __future__ import annotations

import numpy as np
import pytest
from rich.console import Console

from topi_kernels.report import LayerRow, RewriteReport
from topi_kernels.report_table import flop_text, layer_table
from tvm_pattern.profiling import Profile, StepTime, profile_text
from tvm_pattern.timing import latency, latency_line

ROWS = (
    LayerRow("features.0", "nn.conv2d", True, "", kernel_size=(3, 3), stride=(2, 2), group=4,
             config={"tile": 4}, dense_equivalent_gflop=0.9, effective_gflop=0.1),
    LayerRow("features.1[a]", "nn.conv2d", False, "groups", kernel_size=(1, 1), stride=(1, 1),
             dense_equivalent_gflop=0.3),
    LayerRow("features.2", "nn.conv2d", False, "groups", kernel_size=(1, 1), stride=(1, 1),
             dense_equivalent_gflop=0.0005),
)  # fmt: skip


def shown(table, width=200) -> str:
    console = Console(width=width, force_terminal=False)
    with console.capture() as capture:
        console.print(table)
    return capture.get()


def cells(text: str, layer: str) -> list[str]:
    line = next(line for line in text.splitlines() if layer in line)
    return [cell.strip() for cell in line.strip("│ ").split("│")]


def test_rows_of_a_report():
    text = shown(layer_table(ROWS, width=200))
    assert cells(text, "features.0") == [
        "features.0", "3x3 /2x2", "9.00x", "", "4", "25.0%", "100 M", "900 M", "tile=4",
    ]  # fmt: skip
    assert cells(text, "features.1[a]")[1:4] == ["1x1", "1.00x", "dense 1"]
    assert cells(text, "features.2")[6] == "500 k"


def test_a_shared_reason_stands_once_below_the_table():
    report = RewriteReport(ROWS, ("a note",))
    assert report.lines() == ["1: groups", "a note"]
    assert str(report).count("groups") == 1
    assert max(map(len, str(report).splitlines())) <= 80


@pytest.mark.parametrize("width", [40, 60, 80, 120])
def test_columns_are_left_out_to_fit(width):
    text = shown(layer_table(ROWS, width=width))
    assert max(map(len, text.splitlines())) <= width
    assert "features.1[a]" in text


def test_the_dearest_first():
    text = shown(layer_table(ROWS, by_cost=True))
    places = [text.index(row.layer) for row in ROWS]
    assert places[1] < places[0] < places[2]


def test_times_and_facts_in_one_table():
    steps = (
        StepTime("input", "plane_pack", 0.5, 0.125),
        StepTime("features.0", "pattern_conv2d", 1.0, 0.25),
        StepTime("features.1[a]", "conv2d", 2.5, 0.625),
    )
    profile = Profile(steps, 3.5, RewriteReport(ROWS))
    text = str(profile)
    assert cells(text, "features.0")[:5] == ["features.0", "1.000", "25.0%", "3x3 /2x2", "9.00x"]
    assert cells(text, "input")[:4] == ["input", "0.500", "12.5%", "plane_pack"]
    assert "4.000 / 3.500" in text
    assert text.endswith("1: groups")
    slow = profile_text({"a": profile, "b": profile}, 200, by_time=True)
    assert slow.index("features.1[a]") < slow.index("features.0") < slow.index("input")
    assert "b: share" in slow
    assert set(profile.as_dict()) == {"steps", "whole_ms", "sum_ms"}


def test_nothing_taken_is_a_warning():
    report = RewriteReport(ROWS[1:])
    assert "none of 2 convolutions" in report.warning
    assert "groups" in report.warning
    assert f"warning: {report.warning}" in report.lines()
    assert RewriteReport(ROWS).warning == RewriteReport(()).warning == ""


@pytest.mark.parametrize(
    ("gflop", "text"), [(2.5, "2.5 G"), (0.0123, "12.3 M"), (4e-6, "4 k"), (5e-8, "50"), (0, "0")]
)
def test_small_numbers_keep_their_digits(gflop, text):
    assert flop_text(gflop) == text


def test_percentiles():
    figures = latency(np.arange(1, 102) / 1e3)
    wanted = {"min_ms": 1, "p10_ms": 11, "median_ms": 51, "p90_ms": 91, "p99_ms": 100}
    assert {name: figures[name] for name in wanted} == pytest.approx(wanted)
    assert figures["unsteady"]
    assert "p50 51.000, p90 91.000, p99 100.000 ms over 101 runs\nunsteady" in latency_line(figures)
    steady = latency([1.0, 1.9])
    assert not steady["unsteady"]
    assert "unsteady" not in latency_line(steady)
    with pytest.raises(ValueError, match="got no times"):
        latency([])
