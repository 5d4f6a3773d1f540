"""PyTorch, eager mode with its default oneDNN convolutions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn

from .base import Peer


class _TorchRunner:
    def __init__(self, model: nn.Module, example: torch.Tensor) -> None:
        self._model = model
        self._input = example
        self._output = example

    def run(self) -> None:
        with torch.inference_mode():
            self._output = self._model(self._input)

    def output(self) -> np.ndarray:
        return self._output.numpy()


class Torch(Peer):
    """Threads are the process's: ``torch.set_num_threads`` is called when it is pinned."""

    name = "torch"
    packages = ("torch",)
    modules = ("torch",)

    def build(
        self, model: nn.Module, example: torch.Tensor, threads: int, folder: Path
    ) -> _TorchRunner:
        if torch.get_num_threads() != threads:
            raise RuntimeError(f"torch has {torch.get_num_threads()} threads, expected {threads}")
        return _TorchRunner(model, example)

    def reopen(
        self,
        make_model: Callable[[], nn.Module],
        example: torch.Tensor,
        threads: int,
        folder: Path,
    ) -> _TorchRunner:
        return self.build(make_model(), example, threads, folder)
