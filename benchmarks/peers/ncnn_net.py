"""ncnn through its converter pnnx: float32 storage and arithmetic, Winograd allowed."""

from __future__ import annotations

import importlib
import subprocess
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from .base import Peer
from .ncnn_int8 import write_int8

INT8_NAME = "model-int8.ncnn"

_FLOAT16_OPTIONS = (
    "use_fp16_packed",
    "use_fp16_storage",
    "use_fp16_arithmetic",
    "use_bf16_storage",
    "use_bf16_packed",
)


class _NcnnRunner:
    def __init__(self, net: Any, tensor: Any) -> None:
        self._net = net
        self._input = tensor
        self._output: Any = None

    def run(self) -> None:
        extractor = self._net.create_extractor()
        extractor.input("in0", self._input)
        status, self._output = extractor.extract("out0")
        if status:
            raise RuntimeError(f"ncnn's extract failed with status {status}")

    def output(self) -> np.ndarray:
        return np.array(self._output)


def _convert(model: nn.Module, example: torch.Tensor, folder: Path) -> None:
    converter = importlib.import_module("pnnx").EXEC_PATH
    torch.jit.trace(model, example).save(str(folder / "model.pt"))
    shape = ",".join(map(str, example.shape))
    subprocess.run(
        [converter, "model.pt", f"inputshape=[{shape}]", "fp16=0"],
        cwd=folder,
        check=True,
        capture_output=True,
    )


class Ncnn(Peer):
    name = "ncnn"
    quantises = True
    packages = ("ncnn", "pnnx")
    modules = ("ncnn", "pnnx")

    def build(
        self, model: nn.Module, example: torch.Tensor, threads: int, folder: Path
    ) -> _NcnnRunner:
        if not (folder / "model.ncnn.bin").exists():
            _convert(model, example, folder)
        return _opened(_load(folder, threads, "model.ncnn"), example)

    def quantised(
        self,
        model: nn.Module,
        batches: Sequence[torch.Tensor],
        example: torch.Tensor,
        threads: int,
        folder: Path,
    ) -> _NcnnRunner:
        """See :mod:`benchmarks.peers.ncnn_int8`."""
        if not (folder / f"{INT8_NAME}.param").exists():
            if not (folder / "model.ncnn.bin").exists():
                _convert(model, example, folder)

            load = partial(_load, folder, threads, whole=True)
            write_int8(folder, load, [batch.numpy() for batch in batches], INT8_NAME)
        return _opened(_load(folder, threads, INT8_NAME), example)


def _load(folder: Path, threads: int, name: str, *, whole: bool = False) -> Any:
    """A network of ``folder``; ``whole``: all images between its layers can be read."""
    ncnn = importlib.import_module("ncnn")
    net = ncnn.Net()
    net.opt.num_threads = threads
    net.opt.use_winograd_convolution = True
    net.opt.lightmode = not whole
    for option in _FLOAT16_OPTIONS:
        if hasattr(net.opt, option):
            setattr(net.opt, option, False)
    for load, suffix in ((net.load_param, "param"), (net.load_model, "bin")):
        path = folder / f"{name}.{suffix}"
        if load(str(path)):
            raise RuntimeError(f"ncnn cannot load {path.name}")
    return net


def _opened(net: Any, example: torch.Tensor) -> _NcnnRunner:
    # clone() copies into ncnn's own channel alignment.
    return _NcnnRunner(net, importlib.import_module("ncnn").Mat(example.numpy()[0]).clone())
