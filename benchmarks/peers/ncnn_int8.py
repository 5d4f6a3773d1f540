"""ncnn's networks of bytes, written as its tools ncnn2table and ncnn2int8 do.

The wheel has the engine without these tools. Weights get a scale for each out_channel, of six bits
where ncnn's int8 Winograd wants them, images one scale; a convolution that convolutions alone read
hands on bytes. Ranges are largest magnitudes, where ncnn2table may use the divergence too: time
does not depend on that.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

#: Before weights of bytes in a file of weights.
INT8_TAG = 0x000D4B38
CONVOLUTION, DEPTHWISE, LINEAR = "Convolution", "ConvolutionDepthWise", "InnerProduct"
#: Other layers of classification networks; none has weights.
PLAIN = frozenset(
    ("BinaryOp", "Clip", "Dropout", "Eltwise", "Flatten", "Input", "Noop", "Padding", "Pooling")
    + ("ReLU", "Reshape", "Softmax", "Split")
)
LARGEST, LARGEST_WINOGRAD = 127.0, 31.0
#: Added to the kind of scales of a layer whose result is bytes too.
REQUANTISED = 100


@dataclass
class Layer:
    """A line of a .param file, and the weights that follow from it."""

    kind: str
    name: str
    inputs: list[str]
    outputs: list[str]
    knobs: dict[str, str]
    weight: np.ndarray | None = None
    bias: np.ndarray | None = None

    @classmethod
    def parse(cls, line: str) -> Layer:
        kind, name, ins, outs, *rest = line.split()
        first, last = int(ins), int(ins) + int(outs)
        knobs = dict(knob.split("=", 1) for knob in rest[last:])
        return cls(kind, name, rest[:first], rest[first:last], knobs)

    def knob(self, key: str, default: int) -> int:
        return int(self.knobs.get(key, default))

    @property
    def has_weights(self) -> bool:
        return self.kind not in PLAIN

    @property
    def largest(self) -> float:
        """Largest magnitude of a weight in bytes: Winograd's sums want room."""
        width, stride = self.knob("1", 0), self.knob("3", 1)
        square = (self.knob("11", width), self.knob("13", stride)) == (width, stride)
        winograd = self.kind == CONVOLUTION and square and (width, stride) == (3, 1)
        return LARGEST_WINOGRAD if winograd and self.knob("2", 1) == 1 else LARGEST

    def line(self) -> str:
        knobs = " ".join(f"{key}={value}" for key, value in self.knobs.items())
        places = f"{len(self.inputs)} {len(self.outputs)} {' '.join(self.inputs + self.outputs)}"
        return f"{self.kind:<24} {self.name:<24} {places} {knobs}"


def read_net(param: Path, weights: Path) -> list[Layer]:
    """The layers of a network of floats.

    Raises
    ------
    ValueError
        On a layer whose weights this file does not know, or weights that are no floats.
    """
    layers = [Layer.parse(line) for line in param.read_text().splitlines()[2:] if line.strip()]
    data, at = np.fromfile(weights, "<u4"), 0
    for layer in layers:
        if not layer.has_weights:
            continue
        if layer.kind not in (CONVOLUTION, DEPTHWISE, LINEAR):
            raise ValueError(f"{layer.name}: {layer.kind} is not among the layers quantised here")
        size = layer.knob("2" if layer.kind == LINEAR else "6", 0)
        if data[at] != 0:
            raise ValueError(f"{layer.name}: its weights are no float32 (tag {data[at]:#x})")
        filters = layer.knob("0", 0)
        layer.weight = data[at + 1 : at + 1 + size].view("<f4").reshape(filters, -1)
        at += 1 + size
        if layer.knob("1" if layer.kind == LINEAR else "5", 0):
            layer.bias = data[at : at + filters].view("<f4")
            at += filters
    if at != len(data):
        raise ValueError(f"{weights.name} has {len(data)} words, the layers {at}")
    return layers


def input_ranges(net: Any, layers: Sequence[Layer], images: Sequence[Any]) -> dict[str, float]:
    """Largest magnitude of every image that a layer with weights reads."""
    blobs = dict.fromkeys(layer.inputs[0] for layer in layers if layer.has_weights)
    ranges = dict.fromkeys(blobs, 1e-6)
    for image in images:
        extractor = net.create_extractor()
        extractor.input("in0", image)
        for blob in blobs:
            status, value = extractor.extract(blob)
            if status:
                raise RuntimeError(f"ncnn's extract of {blob} failed with status {status}")
            ranges[blob] = max(ranges[blob], float(np.abs(np.array(value)).max()))
    return ranges


def quantise(layers: Sequence[Layer], ranges: dict[str, float]) -> tuple[str, bytes]:
    """Text of the .param file and content of the .bin file of the network in bytes."""
    readers: dict[str, list[Layer]] = {}
    for layer in layers:
        for blob in layer.inputs:
            readers.setdefault(blob, []).append(layer)
    content = b""
    for layer in layers:
        if layer.weight is None:
            continue
        reach = np.maximum(np.abs(layer.weight).max(axis=1), 1e-9)
        scales = (layer.largest / reach).astype(np.float32)
        values = np.clip(np.rint(layer.weight * scales[:, None]), -LARGEST, LARGEST)
        stored = values.astype(np.int8).tobytes()
        parts = [np.uint32(INT8_TAG).tobytes(), stored, b"\0" * (-len(stored) % 4)]
        if layer.bias is not None:
            parts.append(layer.bias.tobytes())
        parts += [scales.tobytes(), np.float32(LARGEST / ranges[layer.inputs[0]]).tobytes()]
        kind = 1 if layer.kind == DEPTHWISE else 2
        following = readers.get(layer.outputs[0], [])
        images = (CONVOLUTION, DEPTHWISE)
        if layer.kind in images and following and all(f.kind in images for f in following):
            kind += REQUANTISED
            parts.append(np.float32(LARGEST / ranges[layer.outputs[0]]).tobytes())
        layer.knobs["8"] = str(kind)
        content += b"".join(parts)
    blobs = len({blob for layer in layers for blob in layer.outputs})
    head = f"7767517\n{len(layers)} {blobs}\n"
    return head + "".join(layer.line() + "\n" for layer in layers), content


def write_int8(
    folder: Path, load: Callable[[str], Any], batches: Sequence[np.ndarray], name: str
) -> None:
    """``model.ncnn.*`` in ``folder`` -> the same network in bytes, ``name.param`` and ``name.bin``.

    Parameters
    ----------
    folder : Path
    load : callable
        Name of a network's files without their ends -> the network.
    batches : sequence of numpy.ndarray
        float32 ``[1, c, h, w]``: set the ranges of images.
    name : str
    """
    ncnn = importlib.import_module("ncnn")
    files = [folder / f"model.ncnn.{end}" for end in ("param", "bin")]
    layers = read_net(files[0], files[1])
    images = [ncnn.Mat(batch[0]).clone() for batch in batches]
    ranges = input_ranges(load("model.ncnn"), layers, images)
    text, content = quantise(layers, ranges)
    (folder / f"{name}.bin").write_bytes(content)
    (folder / f"{name}.param").write_text(text)
