"""LiteRT (TensorFlow Lite) with its default XNNPACK delegate.

The model is written by :mod:`benchmarks.peers.tflite_writer`: the official converter from torch,
litert-torch, needs typing-extensions < 4.13 and so cannot be installed beside TVM.
"""

from __future__ import annotations

import importlib
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
        self._index = interpreter.get_output_details()[0]["index"]

    def run(self) -> None:
        self._interpreter.invoke()

    def output(self) -> np.ndarray:
        value = self._interpreter.get_tensor(self._index)
        return value.transpose(0, 3, 1, 2) if value.ndim == 4 else value


class LiteRt(Peer):
    name = "litert"
    packages = ("ai-edge-litert",)
    modules = ("ai_edge_litert",)

    def build(
        self, model: nn.Module, example: torch.Tensor, threads: int, folder: Path
    ) -> _LiteRtRunner:
        path = folder / "model.tflite"
        if not path.exists():
            path.write_bytes(to_tflite(model, example))
        interpreter = importlib.import_module("ai_edge_litert.interpreter").Interpreter(
            model_path=str(path), num_threads=threads
        )
        interpreter.allocate_tensors()
        interpreter.set_tensor(
            interpreter.get_input_details()[0]["index"],
            np.ascontiguousarray(example.numpy().transpose(0, 2, 3, 1)),
        )
        return _LiteRtRunner(interpreter)
