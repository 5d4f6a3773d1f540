"""Winograd's filtering in whole networks: report, switch, and what the check allows for."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import tvm_pattern as tp
from topi_kernels.report import LayerRow, RewriteReport
from tvm_pattern.cli import app
from tvm_pattern.frontend import import_model
from tvm_pattern.verification.compare import tolerance_of

TARGET = "pattern/x86-avx2"


def network() -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 1)]
    return nn.Sequential(*layers).eval()


@pytest.fixture(scope="module")
def example() -> torch.Tensor:
    return torch.randn(1, 16, 12, 12, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def library(example) -> tp.Library:
    return tp.compile(network(), example, TARGET, num_threads=1)


def test_report_and_manifest_say_so(library) -> None:
    rows = library.report.rows
    assert [row.winograd for row in rows] == [4, 0]
    notes = [note for note in library.manifest.notes if "Winograd" in note]
    assert notes == list(library.report.winograd_notes())
    assert "1 dense 3x3 convolutions" in notes[0]
    assert "--no-winograd" in notes[0]


def test_the_check_allows_for_it_and_says_so(library, example) -> None:
    found, plain = library.manifest.verification, tolerance_of(import_model(network(), example).mod)
    assert found["tolerance"] == pytest.approx(2 * plain.value)
    assert found["basis"].endswith("2 times that, for layers computed by Winograd's filtering")
    assert 0 < found["max_error"] < plain.value


def test_the_switch_computes_plain_sums(library, example) -> None:
    other = tp.compile(network(), example, TARGET, num_threads=1, winograd=False)
    assert [row.winograd for row in other.report.rows] == [0, 0]
    assert other.report.winograd_notes() == ()
    assert "Winograd" not in other.manifest.verification["basis"]
    torch.testing.assert_close(library(example), other(example), rtol=0, atol=1e-5)


def test_growth_is_that_of_the_largest_tiles() -> None:
    rows = [LayerRow("a", "nn.conv2d", True, config={"body": body}) for body in ("gemm", "taps")]
    assert RewriteReport(tuple(rows)).error_growth == 1.0
    rows.append(LayerRow("b", "nn.conv2d", True, config={"body": "winograd2"}))
    assert RewriteReport(tuple(rows)).error_growth == 1.0
    rows.append(LayerRow("c", "nn.conv2d", True, config={"body": "winograd4"}))
    assert RewriteReport(tuple(rows)).error_growth == 2.0


def test_the_command_has_the_switch() -> None:
    shown = CliRunner().invoke(app, ["compile", "--help"], env={"COLUMNS": "200"})
    assert "--no-winograd" in shown.output
