"""LiteRT (TensorFlow Lite) with its default XNNPACK delegate.

The model is written by :mod:`benchmarks.peers.tflite_writer`: the official converter from torch,
litert-torch, needs typing-extensions < 4.13 and so cannot be installed beside TVM. Networks of
bytes are made from it by ai-edge-quantizer.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from .base import Peer
from .tflite_writer import to_tflite


class _LiteRtRunner:
    def __init__(self, interpreter: Any) -> None:
        self._interpreter = interpreter
        self._details = interpreter.get_output_details()[0]

    def run(self) -> None:
        self._interpreter.invoke()

    def output(self) -> np.ndarray:
        value = self._interpreter.get_tensor(self._details["index"])
        if value.dtype == np.int8:
            scale, zero_point = self._details["quantization"]
            value = (value.astype(np.float32) - zero_point) * np.float32(scale)
        return value.transpose(0, 3, 1, 2) if value.ndim == 4 else value


class LiteRt(Peer):
    name = "litert"
    packages = ("ai-edge-litert",)
    modules = ("ai_edge_litert",)
    quantises = True

    def build(
        self, model: nn.Module, example: torch.Tensor, threads: int, folder: Path
    ) -> _LiteRtRunner:
        return self._open(_written(model, example, folder), example, threads)

    def quantised(
        self,
        model: nn.Module,
        batches: Sequence[torch.Tensor],
        example: torch.Tensor,
        threads: int,
        folder: Path,
    ) -> _LiteRtRunner:
        """By ai-edge-quantizer: bytes with a scale for each out_channel, and for each image.

        Raises
        ------
        RuntimeError
            If the quantiser is not installed.
        """
        path = folder / "model-int8.tflite"
        if not path.exists():
            if importlib.util.find_spec("ai_edge_quantizer") is None:
                raise RuntimeError(
                    "not installed: ai-edge-quantizer (pip install '.[bench]' in a clone)"
                )
            quantizer = importlib.import_module("ai_edge_quantizer.quantizer")
            recipe = importlib.import_module("ai_edge_quantizer.recipe").static_wi8_ai8()
            maker = quantizer.Quantizer(str(_written(model, example, folder)), recipe)
            data = [{"x0": _channels_last(batch)} for batch in batches]
            maker.quantize(maker.calibrate({"serving_default": data})).export_model(str(path))
        return self._open(path, example, threads)

    @staticmethod
    def _open(path: Path, example: torch.Tensor, threads: int) -> _LiteRtRunner:
        interpreter = importlib.import_module("ai_edge_litert.interpreter").Interpreter(
            model_path=str(path), num_threads=threads
        )
        interpreter.allocate_tensors()
        source, image = interpreter.get_input_details()[0], _channels_last(example)
        if source["dtype"] == np.int8:
            scale, zero_point = source["quantization"]
            image = np.clip(np.rint(image / scale) + zero_point, -128, 127).astype(np.int8)
        interpreter.set_tensor(source["index"], image)
        return _LiteRtRunner(interpreter)


def _channels_last(images: torch.Tensor) -> np.ndarray:
    return np.ascontiguousarray(images.numpy().transpose(0, 2, 3, 1))


def _written(model: nn.Module, example: torch.Tensor, folder: Path) -> Path:
    """The network of floats as a file."""
    path = folder / "model.tflite"
    if not path.exists():
        path.write_bytes(to_tflite(model, example))
    return path
