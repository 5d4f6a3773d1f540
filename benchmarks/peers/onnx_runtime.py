"""ONNX Runtime's CPU execution provider, input and output bound in place."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from .base import Peer, export_onnx


class _OrtRunner:
    def __init__(self, session: Any, array: np.ndarray) -> None:
        (source,), result = session.get_inputs(), session.get_outputs()[0]
        self._session = session
        self._input = array
        self._binding = session.io_binding()
        self._binding.bind_cpu_input(source.name, array)
        self._binding.bind_output(result.name, "cpu")

    def run(self) -> None:
        self._session.run_with_iobinding(self._binding)

    def output(self) -> np.ndarray:
        return self._binding.copy_outputs_to_cpu()[0]


class OnnxRuntime(Peer):
    name = "onnxruntime"
    packages = ("onnxruntime", "onnx")
    modules = ("onnxruntime", "onnx")
    reads_qdq = True

    def build(
        self, model: nn.Module, example: torch.Tensor, threads: int, folder: Path
    ) -> _OrtRunner:
        return self.open(export_onnx(model, example, folder), example, threads)

    def open(self, path: Path, example: torch.Tensor, threads: int) -> _OrtRunner:
        ort = importlib.import_module("onnxruntime")
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.log_severity_level = 3
        session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        return _OrtRunner(session, example.numpy())
