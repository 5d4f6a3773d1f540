"""The demo's parts on a small residual network."""

from __future__ import annotations

import json
import sys
from unittest.mock import Mock

import pytest
import torch
from rich.console import Console

from tvm_pattern import demo
from tvm_pattern.models import ResNet
from tvm_pattern.models.initialise import build


@pytest.fixture
def small_resnet(monkeypatch):
    network = lambda: build(lambda: ResNet((1, 1, 1, 1), num_classes=10), seed=0)  # noqa: E731
    monkeypatch.setattr(demo.models, "resnet50", network)


@pytest.fixture
def console():
    return Console(record=True, width=120, force_terminal=False)


def test_the_whole_demo(tmp_path, small_resnet, console):
    picture = demo.run_demo(tmp_path / "out", threads=1, quick=True, console=console)
    assert picture.read_bytes().startswith(b"\x89PNG")
    figures = json.loads((tmp_path / "out" / "demo.json").read_text())
    digits, resnet = figures["digits"], figures["resnet50"]
    assert digits["same_predictions"] == digits["images"] == demo.HELD_OUT
    assert digits["compression_rate"] >= 8
    assert digits["compiled_accuracy"] == digits["accuracy"]["pruned and retrained"]
    assert resnet["relative_difference"] <= demo.TOLERANCE
    assert [row["engine"] for row in resnet["latency"]] == ["torch dense", "tvm-pattern pruned"]
    names = [n for n, m in demo.models.resnet50().named_modules() if isinstance(m, torch.nn.Conv2d)]
    assert sorted(row["layer"] for row in resnet["layers"]) == sorted(names)
    assert (tmp_path / "out" / "resnet50.so.json").is_file()
    assert "speed-up" in console.export_text()


@pytest.fixture
def wrong_library(monkeypatch):
    """Instead of compiling: a library that says the opposite of what is likely."""
    compiled = Mock(side_effect=lambda image: -torch.eye(1, 10).expand(len(image), 10).numpy())
    monkeypatch.setattr(demo, "compile_library", lambda *_arguments, **_options: compiled)
    return compiled


def test_a_wrong_output_of_resnet_stops_the_demo(tmp_path, small_resnet, console, wrong_library):
    with pytest.raises(RuntimeError, match="differs from torch by"):
        demo.resnet_part(tmp_path, 32, 1, 1, console)
    wrong_library.export.assert_called_once_with(tmp_path / "resnet50.so")


def test_wrong_predictions_stop_the_demo(tmp_path, console, wrong_library):
    with pytest.raises(RuntimeError, match=r"only \d+ of 360 predictions agree"):
        demo.digits_part(tmp_path, (0, 0), console)
    assert wrong_library.call_count == demo.HELD_OUT


def test_missing_scikit_learn_is_explained(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install '\.\[demo\]' in a clone"):
        demo.load_digits()


def test_the_test_images_are_not_trained_on():
    data = demo.load_digits()
    assert len(data.test_images) == demo.HELD_OUT
    assert len(data.images) + len(data.test_images) == 1797
    assert set(data.test_labels.tolist()) == set(range(10))
