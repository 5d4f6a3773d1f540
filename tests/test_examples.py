"""The examples at small size; the detector is compiled only in the long form (``make docs``)."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

FOLDER = Path(__file__).resolve().parent.parent / "examples"
LONG = os.environ.get("TVM_PATTERN_DOCS") == "long"


def load(name):
    spec = importlib.util.spec_from_file_location(f"example_{name}", FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def arguments(text, folder):
    return [*text.split(), "--output", str(folder)]


def test_super_resolution(tmp_path):
    example = load("super_resolution")
    small = "--steps 20 --size 16 --batch 2 --width 8 --tests 2"
    figures = example.main(arguments(small, tmp_path))
    assert figures["rate"] > 2.5
    assert all(np.isfinite(value) for value in figures["psnr"].values())
    assert Image.open(tmp_path / "pictures.png").size == (4 * (4 * 16 + 8), 4 * 16 + 16)
    assert (tmp_path / "super_resolution.so").is_file()


def test_psnr_and_pairs():
    example = load("super_resolution")
    small, large = example.pair(np.random.default_rng(0), 2, 8)
    assert (small.shape, large.shape) == ((2, 1, 4, 4), (2, 1, 8, 8))
    assert example.psnr(torch.full((1, 4), 0.5), torch.full((1, 4), 0.4)) == pytest.approx(20, 1e-4)


def test_text_recognition(tmp_path):
    example = load("text_recognition")
    small = "--steps 300 --height 16 --width 32 --batch 8 --channels 16 --tests 16 --length 2"
    figures = example.main(arguments(small, tmp_path))
    assert figures["as_onnxruntime"] == 1.0
    assert figures["read"] > 0.3  # by chance 0.01
    assert (tmp_path / "reader.so").is_file()


def test_strings_of_ctc():
    example = load("text_recognition")
    steps = np.eye(4)[[1, 1, 0, 1, 3, 3, 0]][None]
    assert example.decode(steps, "abc") == "aac"


def test_a_recogniser_without_characters_is_refused(tmp_path):
    import onnx
    from onnx import helper

    example = load("text_recognition")
    model = helper.make_model(helper.make_graph([], "empty", [], []))
    onnx.save(model, tmp_path / "rec.onnx")
    with pytest.raises(SystemExit, match="has no metadata 'character'"):
        example.characters_of(tmp_path / "rec.onnx")
    helper.set_model_props(model, {"character": "a\nb"})
    onnx.save(model, tmp_path / "rec.onnx")
    assert example.characters_of(tmp_path / "rec.onnx") == ["a", "b", " "]


def test_boxes_and_their_score():
    """A map that says what is in a picture gives exactly that."""
    example = load("detector")
    maps = [np.full((1, 7, n, n), -9.0, np.float32) for n in (8, 4)]
    maps[0][0, :, 2, 3] = [1, 0.5, 2, 1.5, -9, 5, -9]  # a square at the centre (28, 20)
    maps[1][0, :, 3, 0] = [0.5, 0.5, 0.5, 0.5, -9, -9, 5]
    found = example.decode(tuple(maps))
    assert [kind for kind, _, _ in found] == [1, 2]
    assert found[0][2] == [20.0, 16.0, 44.0, 32.0]
    truth = [[(1, [20, 16, 44, 32]), (0, [0, 48, 16, 64])]]
    assert example.score([found], truth) == pytest.approx(2 * 1 / 4)
    # The same boxes twice: the better one is kept.
    maps[0][0, :, 2, 4] = [2, 0.5, 1, 1.5, -9, 4, -9]
    assert len(example.decode(tuple(maps))) == 2


def test_detector_is_trained_and_pruned(tmp_path):
    example = load("detector")
    from tvm_pattern.pruning import Gradual, PatternConfig, Pruner, Rule

    args = type("Arguments", (), {"batch": 2, "size": 32})
    torch.manual_seed(0)
    model = example.Detector(4)
    example.train(model, 4, args, None)
    rules = (Rule(name="heads.*.1", skip=True),)
    pruner = Pruner(model, PatternConfig(connectivity=2.0, rules=rules), Gradual(steps=2))
    example.train(model, 6, args, pruner)
    assert pruner.finalize().compression_rate > 1.5
    images, truth = next(example.batches(np.random.default_rng(1), 1, 2, 32))
    example.draw(
        images, {"truth": [[(k, 1.0, b) for k, b in t] for t in truth]}, tmp_path / "b.png"
    )
    assert Image.open(tmp_path / "b.png").size == (128, 64 + 14)


@pytest.mark.skipif(not LONG, reason="in the long form, make docs: it compiles thirty convolutions")
def test_detector(tmp_path):
    small = "--steps 20 --size 32 --batch 2 --width 4 --tests 2"
    figures = load("detector").main(arguments(small, tmp_path))
    assert figures["rate"] > 2
    assert figures["f1"]["pruned"] == figures["f1"]["pruned, compiled"]
    assert (tmp_path / "boxes.png").is_file()
