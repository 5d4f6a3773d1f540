"""``tvm-pattern quantize``: pictures and weights in, a network out that compile takes."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from typer.testing import CliRunner

from tvm_pattern.cli import app
from tvm_pattern.pruning import oneshot, save_pruned
from tvm_pattern.pruning.carried import carried_layers
from tvm_pattern.sources import open_model

pytest.importorskip("torchao")

FACTORY = "tests.quantization.test_cli:network"


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 4),
    ).eval()


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("quantize")
    generator = np.random.default_rng(0)
    (folder / "pictures").mkdir()
    for number in range(5):
        pixels = generator.integers(0, 255, (20, 24, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(folder / "pictures" / f"{number}.png")
    model = network()
    oneshot(model, connectivity=2)
    save_pruned(folder / "pruned.safetensors", model, carried_layers(model))
    return folder


def run(files, *options):
    arguments = ["quantize", FACTORY, "--weights", str(files / "pruned.safetensors"),
                 "--calibration", str(files / "pictures"), "--image-size", "16"]  # fmt: skip
    return CliRunner().invoke(app, [*arguments, *options])


def test_pictures_in_a_network_out(files, tmp_path):
    output = tmp_path / "network.pt2"
    result = run(files, "-o", str(output), "--json", "--skip", "6", "--batch", "2")
    assert result.exit_code == 0, result.output
    facts = json.loads(result.stdout)
    assert facts["settings"]["inputs"] == 5
    assert {row["layer"]: row["reason"] for row in facts["layers"]} == {
        "0": "", "3": "", "6": "skip names it",
    }  # fmt: skip
    opened = open_model(str(output))
    assert opened.structures["3"].kept.sum() == 8 * 8 // 2 * 4
    assert opened(torch.zeros(1, 3, 16, 16)).shape == (1, 4)


def test_a_table_for_people(files, tmp_path):
    output = tmp_path / "network.pt2"
    result = run(files, "-o", str(output), "--method", "minmax", "--no-bias-correction")
    assert result.exit_code == 0, result.output
    assert "calibrated on 5 pictures" in result.output
    assert "Quantisation" in result.output


def test_an_onnx_file(files, tmp_path):
    pytest.importorskip("onnxscript")
    output = tmp_path / "network.onnx"
    assert run(files, "-o", str(output)).exit_code == 0
    assert output.stat().st_size > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["-o", "network.so"], "expected a name ending in .pt2 or .onnx"),
        (["-o", "n.pt2", "--weight-bits", "5"], "expected 7 or 8"),
        (["-o", "n.pt2", "--skip", "nothing"], "matches no layer"),
        (["-o", "n.pt2", "--calibration", "nowhere"], "nowhere: no such folder"),
        (["-o", "nowhere/n.pt2"], "no such folder: nowhere; create it first"),
    ],
)
def test_mistakes_are_named(files, options, message):
    result = run(files, *options)
    assert result.exit_code == 1
    assert message in " ".join(result.output.split())


def test_files_are_no_networks_to_quantise(files):
    result = CliRunner().invoke(
        app, ["quantize", "model.onnx", "--data", str(files), "-o", "network.pt2"]
    )
    assert result.exit_code == 1
    assert "expected a network that torch can trace" in " ".join(result.output.split())
