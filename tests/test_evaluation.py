"""Accuracy of networks in torch and compiled over a folder of pictures, against a count by hand."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from typer.testing import CliRunner

import tvm_pattern as tp
from tvm_pattern.cli import app
from tvm_pattern.evaluation import EvaluationError, evaluate, of_library, of_module
from tvm_pattern.pruning.data import open_validation
from tvm_pattern.pruning.pictures import DataError

NAMES = ["ant", "bee", "cat", "dog", "elk", "fox", "gnu"]
SIZE = 16


def net(num_classes: int = len(NAMES)) -> nn.Module:
    """Found by the factory syntax of the command line."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1),
        nn.AdaptiveAvgPool2d(4),
        nn.Flatten(),
        nn.Linear(128, num_classes),
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three of the classes, eleven pictures in all, one of them broken."""
    root = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for name, count in (("bee", 5), ("dog", 4), ("gnu", 2)):
        (root / "val" / name).mkdir(parents=True)
        for i in range(count):
            pixels = rng.integers(0, 255, (20 + i, 24, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(root / "val" / name / f"{i}.png")
    (root / "val" / "dog" / "1.png").write_bytes(b"no picture")
    (root / "names.txt").write_text("\n".join(NAMES))
    return root


@pytest.fixture(scope="module")
def files(folder):
    """Dense weights, pruned weights, and a library of batch 3."""
    torch.manual_seed(0)
    network = net().eval()
    for layer in (network[0], network[2], network[5]):  # answers that differ by picture
        nn.init.zeros_(layer.bias)
    save_file(network.state_dict(), folder / "dense.safetensors")
    report = tp.pruning.oneshot(network, 2.0)
    tp.pruning.save_pruned(folder / "pruned.safetensors", network, report.assignment)
    library = tp.compile(network, torch.randn(3, 3, SIZE, SIZE), num_threads=1)
    library.export(folder / "net.so")
    return folder


def by_hand(folder, weights):
    """Outputs ``[10, 7]`` and labels, pictures read and normalised anew."""
    network = net().eval()
    tp.pruning.load_pruned(weights, network) if "pruned" in weights.name else (
        network.load_state_dict(dict(tp.pruning.checkpoint._read_weights(weights)))
    )
    images, labels = [], []
    for path in sorted((folder / "val").glob("*/*.png")):
        if path.parts[-2:] == ("dog", "1.png"):
            continue
        with Image.open(path) as raw:
            width, height = raw.size
            side = min(width, height) * 7 / 8
            left, top = (width - side) / 2, (height - side) / 2
            crop = raw.resize(
                (SIZE, SIZE), Image.Resampling.BILINEAR, (left, top, left + side, top + side)
            )
        pixels = np.asarray(crop, np.float32) / 255
        pixels = (pixels - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225)
        images.append(pixels.transpose(2, 0, 1).astype(np.float32))
        labels.append(NAMES.index(path.parts[-2]))
    with torch.no_grad():
        return network(torch.from_numpy(np.stack(images))).numpy(), np.array(labels)


def command(files, *more):
    arguments = ["evaluate", "--data", str(files), "--workers", "0", *map(str, more)]
    return CliRunner().invoke(app, arguments)


def whole(files):
    return (
        "--model", f"{__name__}:net", "--weights", files / "dense.safetensors",
        "--pruned", files / "pruned.safetensors", "--lib", files / "net.so",
        "--classes", files / "names.txt",
    )  # fmt: skip


def test_accuracy_and_agreement_are_those_counted_by_hand(files):
    result = command(files, *whole(files), "--batch", 4, "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert (found["pictures"], found["image_size"]) == (10, SIZE)
    assert [name.split("/")[-2:] for name in found["unreadable"]] == [["dog", "1.png"]]
    outputs = {name: by_hand(files, files / f"{name}.safetensors") for name in ("dense", "pruned")}
    outputs["compiled"] = outputs["pruned"]
    for score in found["scores"]:
        logits, labels = outputs[score["name"]]
        ranks = (logits > logits[np.arange(10), labels][:, None]).sum(1)
        assert score["top1"] == pytest.approx(10 * (ranks < 1).sum())
        assert score["top5"] == pytest.approx(10 * (ranks < 5).sum())
        assert score["top1"] < score["top5"] < 100
    pairs = {(a["first"], a["second"]): a for a in found["agreements"]}
    same = (outputs["dense"][0].argmax(1) == outputs["pruned"][0].argmax(1)).sum()
    assert 0 < same < 10
    assert pairs["dense", "pruned"]["same_answer"] == pytest.approx(10 * same)
    difference = np.abs(outputs["dense"][0] - outputs["pruned"][0]).max()
    assert pairs["dense", "pruned"]["max_abs_difference"] == pytest.approx(difference, rel=1e-4)
    assert pairs["pruned", "compiled"]["same_answer"] == 100
    assert pairs["pruned", "compiled"]["max_abs_difference"] < 1e-4


def test_the_table_names_every_network(files):
    result = command(files, *whole(files))
    assert result.exit_code == 0, result.output
    for word in ("10 pictures", "dense", "pruned", "compiled", "answers as dense", "1 pictures"):
        assert word in result.stdout
    assert "compiled answers as pruned for 100.00 %" in result.stdout
    assert "dog/1.png" in result.stderr


def test_a_library_alone(files):
    result = command(
        files, "--lib", files / "net.so", "--classes", files / "names.txt", "--limit", 4
    )
    assert result.exit_code == 0, result.output
    assert "4 pictures" in result.stdout or "3 pictures" in result.stdout


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--lib", "net.so"), "compiled has 7 classes, the pictures have 3; name the classes"),
        (("--lib", "net.so", "--image-size", "20"), "expected one input float32 [N, 3, 20, 20]"),
        (("--lib", "net.so", "--classes", "none.txt"), "no such file"),
        (("--lib", "net.so", "--classes", "twice.txt"), "2 names, 1 of them different"),
        (("--lib", "net.so", "--classes", "other.txt"), "got unknown ['dog', 'gnu']"),
        (("--model", "vgg16", "--lib", "net.so"), "--model vgg16 has no weights"),
        (("--weights", "dense.safetensors"), "name it with --model"),
        ((), "name --weights, --pruned or --lib"),
        (("--model", "m.onnx", "--weights", "w"), "holds its own weights"),
    ],
)
def test_bad_arguments_end_with_one_clear_line(files, more, message, monkeypatch):
    monkeypatch.chdir(files)
    (files / "twice.txt").write_text("bee\nbee\n")
    (files / "other.txt").write_text("bee\n")
    result = command(files, *more)
    assert result.exit_code in (1, 2)
    said = " ".join(result.stderr.replace("│", " ").split())
    assert message in said
    assert "Traceback" not in result.output


def test_outputs_that_say_nothing_are_refused(files):
    pictures, names = open_validation(str(files), image_size=SIZE, classes=NAMES)
    broken = net()
    with torch.no_grad():
        broken[5].bias[3] = float("nan")
    with pytest.raises(EvaluationError, match="outputs that are not finite"):
        evaluate({"dense": of_module(broken)}, pictures, names)
    with pytest.raises(EvaluationError, match=r"Conv2d gives \[.*\], expected one output"):
        evaluate({"dense": of_module(nn.Conv2d(3, 7, 1))}, pictures, names)
    with pytest.raises(EvaluationError, match="got no network"):
        evaluate({}, pictures, names)
    with pytest.raises(EvaluationError, match="got batch=0"):
        evaluate({"dense": of_module(net())}, pictures, names, batch=0)
    library = tp.load(files / "net.so")
    with pytest.raises(EvaluationError, match=r"takes float32\[3, 3, 16, 16\]"):
        of_library(library, 32)


def test_folders_without_pictures(tmp_path, files):
    with pytest.raises(DataError, match="no such folder"):
        open_validation(str(tmp_path / "none"))
    with pytest.raises(DataError, match="class folders"):
        open_validation(str(tmp_path))
    (tmp_path / "bee").mkdir()
    (tmp_path / "bee" / "0.png").write_bytes(b"")
    pictures, names = open_validation(str(tmp_path), image_size=SIZE)
    assert names == ["bee"]
    with pytest.raises(EvaluationError, match="none of 1 pictures could be read"):
        evaluate({"dense": of_module(net(1))}, pictures, names)


def test_cifar_and_digits(tmp_path):
    record = np.zeros((2, 3073), np.uint8)
    (tmp_path / "test_batch.bin").write_bytes(record.tobytes())
    pictures, names = open_validation(str(tmp_path))
    assert (len(pictures), len(names), pictures[0, 0][0].shape[-1]) == (2, 10, 32)
    pictures, names = open_validation("digits", image_size=10)
    assert (len(names), pictures[0, 0][0].shape[-1]) == (10, 10)
