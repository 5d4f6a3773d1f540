"""Dense engines on networks of bytes that they make by their own rules."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks import session
from benchmarks.harness import INT8_ERROR, Budget
from benchmarks.peers import LiteRt, Ncnn, Torch
from benchmarks.peers.base import Peer
from benchmarks.peers.ncnn_int8 import INT8_TAG, Layer, quantise, read_net

EXAMPLE = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
BATCHES = [EXAMPLE, 0.5 * EXAMPLE]


class Net(nn.Module):
    """Every kind of layer that is quantised: 3x3, strided, depthwise, 1x1, linear; an addition."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.down = nn.Conv2d(16, 16, 3, stride=2, padding=1)
        self.alone = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.point = nn.Conv2d(16, 16, 1)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(16, 10)
        self.relu = nn.ModuleList(nn.ReLU() for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.relu[1](self.down(self.relu[0](self.stem(x))))
        x = self.point(self.relu[2](self.alone(x))) + x
        return self.head(torch.flatten(self.pool(self.relu[3](x)), 1))


@pytest.fixture(scope="module")
def net() -> nn.Module:
    torch.manual_seed(0)
    return Net().eval()


def error(output: np.ndarray, net: nn.Module) -> float:
    with torch.inference_mode():
        expected = net(EXAMPLE).numpy()
    return float(np.linalg.norm(output.reshape(expected.shape) - expected)) / float(
        np.linalg.norm(expected)
    )


@pytest.fixture(scope="module")
def ncnn_folder(net, tmp_path_factory) -> Path:
    pytest.importorskip("ncnn")
    pytest.importorskip("pnnx")
    folder = tmp_path_factory.mktemp("ncnn")
    Ncnn().build(net, EXAMPLE, 1, folder)
    return folder


def test_ncnn_in_bytes(net, ncnn_folder) -> None:
    """Near the network of floats, not equal to it, and kept for the next time."""
    runner = Ncnn().quantised(net, BATCHES, EXAMPLE, 1, ncnn_folder)
    runner.run()
    assert 1e-4 < error(runner.output(), net) < INT8_ERROR
    again = Ncnn().quantised(nn.Identity(), [], EXAMPLE, 1, ncnn_folder)
    again.run()
    np.testing.assert_array_equal(again.output(), runner.output())


def test_ncnn_layers_in_bytes(ncnn_folder) -> None:
    """Which scales each layer has, and how large weights are."""
    layers = read_net(*(ncnn_folder / f"model.ncnn.{end}" for end in ("param", "bin")))
    ranges = dict.fromkeys((x for layer in layers for x in layer.inputs), 2.0)
    text, content = quantise(layers, ranges)
    weighted = [layer for layer in layers if layer.weight is not None]
    kinds = [(layer.kind, layer.knobs["8"]) for layer in weighted]
    # The second image is added later too, so it stays real; the 1x1 is added to it.
    assert kinds == [
        ("Convolution", "102"),
        ("Convolution", "2"),
        ("ConvolutionDepthWise", "101"),
        ("Convolution", "2"),
        ("InnerProduct", "2"),
    ]
    assert [layer.largest for layer in weighted] == [31, 127, 127, 127, 127]
    assert [Layer.parse(line).kind for line in text.splitlines()[2:]] == [n.kind for n in layers]
    assert content[:4] == np.uint32(INT8_TAG).tobytes()
    weights = np.frombuffer(content[4 : 4 + 16 * 27], np.int8).reshape(16, 27)
    assert (np.abs(weights.astype(int)).max(axis=1) == 31).all()


def files(folder: Path, lines: list[str], words: list[int]) -> tuple[Path, Path]:
    """A network of these layers."""
    param, weights = folder / "x.param", folder / "x.bin"
    param.write_text("\n".join(["7767517", f"{len(lines)} 1", *lines]))
    np.array(words, "<u4").tofile(weights)
    return param, weights


LINEAR = "InnerProduct fc 1 1 a b 0=1 1=0 2=2"


@pytest.mark.parametrize(
    ("line", "words", "message"),
    [
        ("PReLU p 1 1 a b 0=1", [0], "PReLU is not among the layers"),
        (LINEAR, [0x01306B47, 0, 0], "weights are no float32"),
        (LINEAR, [0, 0, 0, 7], "x.bin has 4 words, the layers 3"),
    ],
)
def test_networks_that_ncnn_cannot_have_in_bytes(tmp_path, line, words, message) -> None:
    with pytest.raises(ValueError, match=message):
        read_net(*files(tmp_path, [line], words))


def test_litert_in_bytes(net, tmp_path) -> None:
    pytest.importorskip("ai_edge_litert")
    pytest.importorskip("ai_edge_quantizer")
    runner = LiteRt().quantised(net, BATCHES, EXAMPLE, 1, tmp_path)
    runner.run()
    assert 1e-4 < error(runner.output(), net) < INT8_ERROR


def test_litert_names_the_quantiser(monkeypatch, net, tmp_path) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(RuntimeError, match="not installed: ai-edge-quantizer"):
        LiteRt().quantised(net, BATCHES, EXAMPLE, 1, tmp_path)


class Own(Torch):
    """Quantises by its own rules."""

    quantises = True

    def quantised(self, model, batches, example, threads, folder):
        raise RuntimeError(f"{len(batches)} batches, {folder.name}")


def test_engines_that_quantise_get_the_network_of_floats(monkeypatch, net, tmp_path) -> None:
    monkeypatch.setattr(session, "PEERS", (Own(),))
    run = session.Session.start(
        "t", threads=1, cores=None, only=None, budget=Budget.quick(), json_path=tmp_path / "r",
        dtype="int8",
    )  # fmt: skip
    arguments = ("w", tmp_path / "x.onnx", EXAMPLE, np.zeros(1), 1)
    assert run.add_int8_peers(*arguments) == []
    (row,) = run.add_int8_peers(*arguments, (net, BATCHES))
    assert f"2 batches, {tmp_path.name}" in row.note


def test_engines_that_do_not_say_so(net, tmp_path) -> None:
    with pytest.raises(ValueError, match="torch quantises no networks here"):
        Peer.quantised(Torch(), net, BATCHES, EXAMPLE, 1, tmp_path)
