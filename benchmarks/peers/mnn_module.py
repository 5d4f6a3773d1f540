"""MNN's Module API, high precision (float32), Winograd allowed."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from .base import Peer, export_onnx

# The converter beneath the `mnnconvert` command, which installs a logging client with whatever pip
# is first on PATH and tries to report each conversion; a benchmark must do neither.
_CONVERT = "import MNN, _tools, sys; _tools.mnnconvert(['mnnconvert', *sys.argv[1:]])"


class _MnnRunner:
    def __init__(self, module: Any, variable: Any) -> None:
        self._module = module
        self._input = variable
        self._output: Any = None

    def run(self) -> None:
        self._output = self._module.forward([self._input])[0]

    def output(self) -> np.ndarray:
        expr = importlib.import_module("MNN.expr")
        if len(self._output.shape) == 4:
            return np.array(expr.convert(self._output, expr.NCHW).read())
        return np.array(self._output.read())


class Mnn(Peer):
    name = "mnn"
    packages = ("MNN", "onnx")
    modules = ("MNN", "onnx")

    def build(
        self, model: nn.Module, example: torch.Tensor, threads: int, folder: Path
    ) -> _MnnRunner:
        source = export_onnx(model, example, folder)
        target = folder / "model.mnn"
        command = ["-f", "ONNX", "--modelFile", str(source), "--MNNModel", str(target)]
        if not target.exists():
            subprocess.run(
                [sys.executable, "-c", _CONVERT, *command, "--bizCode", "benchmark"],
                check=True,
                capture_output=True,
            )
        expr = importlib.import_module("MNN.expr")
        network = importlib.import_module("MNN.nn")
        runtime = network.create_runtime_manager(
            ({"backend": 0, "precision": "high", "memory": "high", "numThread": threads},)
        )
        module = network.load_module_from_file(str(target), ["x"], ["y"], runtime_manager=runtime)
        variable = expr.placeholder(list(example.shape), expr.NCHW)
        variable.write(example.numpy())
        return _MnnRunner(module, variable)
