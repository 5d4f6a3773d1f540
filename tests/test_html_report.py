"""The HTML page: one file, with what pruner, compiler and clock say of each layer."""

from __future__ import annotations

import base64
import json
import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from typer.testing import CliRunner

import tvm_pattern as tp
from tvm_pattern import cli, report_cli
from tvm_pattern.html_report import ReportError, layer_facts, write_html
from tvm_pattern.html_report.data import energy_curves, read_pruned, read_weights
from tvm_pattern.html_report.figures import curves, kernels, lost_energy
from tvm_pattern.profiling import Profile, StepTime
from tvm_pattern.pruning.checkpoint import save_pruned


class Page(HTMLParser):
    """Cells of the table, pictures, and addresses of other files."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.rows, self.pictures, self.addresses, self._cell = [], {}, [], None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
            self._cell = True
        if tag == "img":
            self.pictures[attributes["alt"]] = attributes["src"]
        self.addresses += [attributes[n] for n in ("href", "src") if n in attributes]

    def handle_endtag(self, tag):
        if tag in ("td", "th"):
            self._cell = None

    def handle_data(self, data):
        if self._cell:
            self.rows[-1][-1] += data


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A library, the folder of its pruning, and the weights before it."""
    folder = tmp_path_factory.mktemp("report")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 3)).eval()
    dense = {name: value.clone() for name, value in model.state_dict().items()}
    save_file(dense, folder / "dense.safetensors")
    report = tp.pruning.oneshot(model, connectivity=2.0)
    report.save(folder / "report.json")
    save_pruned(folder / "model.safetensors", model, report.assignment)
    epochs = [{"epoch": n, "accuracy": 50.0 + n, "phase": "training"} for n in range(3)]
    (folder / "history.json").write_text(json.dumps({"epochs": epochs, "unreadable": []}))
    lib = tp.compile(model, torch.zeros(1, 3, 9, 11), num_threads=1, verify=False)
    lib.export(folder / "net.so")
    return folder


def command(*arguments):
    result = CliRunner().invoke(cli.app, ["report", *map(str, arguments)])
    return result.exit_code, result.stdout, result.stderr


def test_page_of_everything(run, tmp_path):
    path = tmp_path / "page.html"
    code, output, error = command(
        run / "net.so", "--pruned", run, "--dense", run / "dense.safetensors", "--profile",
        "-o", path, "--json",
    )  # fmt: skip
    assert code == 0, error
    assert json.loads(output) == {"report": str(path), "bytes": path.stat().st_size}
    page = Page(path.read_text())
    head, *rows = page.rows
    assert head == [
        *("layer", "kind", "shape", "ms", "share", "x against dense, expected"),
        *("GFLOP, dense", "rate", "energy kept"),
    ]
    cells = {row[0]: dict(zip(head, row, strict=True)) for row in rows}
    assert cells["2"]["rate"] == "4.50x"
    expected = {row.layer: row.expected_gain for row in tp.load(run / "net.so").report.rows}
    assert cells["2"]["x against dense, expected"] == f"{expected['2']:.2f}x"
    assert re.fullmatch(r"\d+\.\d{3}", cells["0"]["ms"])
    pruned, dense = (read_weights(run / n) for n in ("model.safetensors", "dense.safetensors"))
    kept = (pruned["2"] ** 2).sum() / (dense["2"] ** 2).sum()
    assert cells["2"]["energy kept"] == f"{100 * kept:.1f} %"
    assert {
        *("Time by layer", "Energy removed by layer", "Sensitivity by layer", "Training"),
        *("Kernels of 0", "Kernels of 2"),
    } == set(page.pictures)
    # Nothing outside the file: pictures are in it, and they are pictures.
    assert all(a.startswith("data:image/svg+xml;base64,") for a in page.addresses)
    for source in page.pictures.values():
        svg = ElementTree.fromstring(base64.b64decode(source.partition(",")[2]))
        assert svg.tag.endswith("svg")
    assert "http" not in re.sub(r"base64,[^\"]*", "", path.read_text())


def test_a_part_alone(run, tmp_path):
    path = tmp_path / "page.html"
    assert command(run / "net.so", "-o", path)[0] == 0
    page = Page(path.read_text())
    assert page.pictures == {}
    assert "ms" not in page.rows[0]
    assert command("--pruned", run, "-o", path, "--kernels", "2")[0] == 0
    page = Page(path.read_text())
    assert "Kernels of 2" in page.pictures
    assert "Kernels of 0" not in page.pictures


def test_names_are_text(tmp_path):
    pruned = {
        "layers": [
            {
                "name": "<script>alert(1)</script>",
                "kind": "conv2d",
                "shape": [1, 1],
                "compression_rate": 2.0,
                "energy_kept": None,
                "reason": "",
                "note": "",
            }
        ],
        "compression_rate": 2.0,
        "compression_rate_pruned": 2.0,
        "method": "oneshot",
    }
    text = write_html(tmp_path / "p.html", pruned=pruned, title="a & b").read_text()
    assert "<script>" not in text
    assert "<title>a &amp; b</title>" in text


def test_times_of_a_layer_are_summed_and_sorted(tmp_path, run):
    lib = tp.load(run / "net.so")
    steps = (
        StepTime("2", "a", 1.0, 0.2),
        StepTime("0", "b", 2.0, 0.4),
        StepTime("2", "c", 2.0, 0.4),
    )
    profile = Profile(steps, 4.5)
    path = write_html(tmp_path / "p.html", library=lib, profile=profile, by_time=True)
    head, *rows = Page(path.read_text()).rows
    assert [row[0] for row in rows] == ["2", "0"]
    assert rows[0][head.index("ms")] == "3.000"
    assert rows[0][head.index("share")] == "60.0 %"


def test_gains_are_those_of_two_profiles(run, tmp_path, monkeypatch):
    path = tmp_path / "page.html"
    profiles = [
        Profile((StepTime("0", "conv", 2.0, 0.4), StepTime("0", "pack", 1.0, 0.2)), 3.0),
        Profile((StepTime("0", "conv", 6.0, 1.0),), 7.5),
    ]
    monkeypatch.setattr(report_cli, "_timed", lambda _: {"profile": profiles.pop(0)})
    more = ("--profile", "--against", run / "net.so", "-o", path)
    assert command(run / "net.so", *more)[0] == 0
    head, *rows = Page(path.read_text()).rows
    cells = {row[0]: dict(zip(head, row, strict=True)) for row in rows}
    assert cells["0"]["x against dense"] == "2.00x"
    assert cells["2"]["x against dense"] == ""
    assert "7.500 ms compiled dense: 2.50x" in path.read_text()
    code, _, error = command(run / "net.so", "--against", run / "net.so")
    assert code == 1
    assert "add --profile" in error


def test_rows_say_what_was_left_dense(run):
    report = tp.load(run / "net.so").report
    skipped = type(report)((*report.rows[:1], type(report.rows[0])("x", "nn.conv2d", False, "why")))
    rows = {row.name: row for row in layer_facts(None, skipped, {})}
    assert rows["x"].note == "compiled dense: why"


def test_energy_by_rate():
    weight = np.zeros((2, 2, 3, 3), np.float32)
    weight[:, :, 0, 0] = [[3, 1], [2, 0]]
    assert energy_curves({"a": weight})["a"][2] == (2.0, pytest.approx(100 / 14))
    assert energy_curves({"a": weight})["a"][0] == (1.0, 0.0)


def test_pictures_without_anything_to_show():
    assert curves({}, "loss") is None
    assert lost_energy([]) is None
    figure = kernels(None, np.ones((2, 3, 3, 3), np.float32))
    (axes,) = figure.axes
    assert axes.images[0].get_array().shape == (7, 11)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ((), "got neither a pruning report nor a library"),
        (("--profile",), "got no library to time"),
        (("--pruned", "none"), "no such file: none"),
    ],
)
def test_errors(arguments, text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _, error = command(*arguments)
    assert code == 1
    assert text in " ".join(error.split())


def test_bad_files(run, tmp_path):
    bad = tmp_path / "report.json"
    bad.write_text("[]")
    with pytest.raises(ReportError, match="is no report of pruning"):
        read_pruned(tmp_path)
    bad.write_text("{")
    with pytest.raises(ReportError, match="cannot read"):
        read_pruned(bad)
    with pytest.raises(ReportError, match=r"expected a \.safetensors file"):
        read_weights(bad)
    code, _, error = command("--pruned", run, "--kernels", "9")
    assert code == 1
    assert "no layer '9' with spatial kernels; expected one of 0, 2" in " ".join(error.split())
    other = {"2": np.ones((1, 1, 3, 3), np.float32)}
    weights = {"2": np.ones((4, 8, 3, 3), np.float32)}
    with pytest.raises(ReportError, match="expected weights of one network"):
        write_html(
            tmp_path / "p.html",
            pruned=read_pruned(run).report,
            weights=weights,
            dense_weights=other,
        )
