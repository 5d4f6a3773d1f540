"""OpenVINO's CPU plugin, one stream."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from .base import Peer, export_onnx


class _OpenVinoRunner:
    def __init__(self, request: Any) -> None:
        self._request = request

    def run(self) -> None:
        self._request.infer()

    def output(self) -> np.ndarray:
        return np.array(self._request.get_output_tensor().data)


class OpenVino(Peer):
    name = "openvino"
    packages = ("openvino", "onnx")
    modules = ("openvino", "onnx")
    reads_qdq = True

    def build(
        self, model: nn.Module, example: torch.Tensor, threads: int, folder: Path
    ) -> _OpenVinoRunner:
        return self.open(export_onnx(model, example, folder), example, threads)

    def open(self, path: Path, example: torch.Tensor, threads: int) -> _OpenVinoRunner:
        openvino = importlib.import_module("openvino")
        core = openvino.Core()
        compiled = core.compile_model(
            core.read_model(str(path)),
            "CPU",
            {
                "INFERENCE_NUM_THREADS": threads,
                "NUM_STREAMS": 1,
                # Without this it may compute in bfloat16 where the CPU has it.
                "INFERENCE_PRECISION_HINT": "f32",
                # The process is pinned already; OpenVINO's own pinning would leave its cores.
                "ENABLE_CPU_PINNING": False,
            },
        )
        request = compiled.create_infer_request()
        request.set_input_tensor(openvino.Tensor(example.numpy(), shared_memory=True))
        return _OpenVinoRunner(request)
