"""TVM itself: the dense network through the default CPU pipeline, without tuning."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import tvm
from torch import nn
from tvm import relax
from tvm.relax.frontend.torch import from_exported_program

from relay_passes.targets import resolve
from tvm_pattern.threads import run_on

from .base import Peer


class _TvmRunner:
    def __init__(self, machine: Any, array: np.ndarray, threads: int) -> None:
        self._main = machine["main"]
        self._input = tvm.runtime.tensor(array)
        self._threads = threads
        self._output: Any = None

    def run(self) -> None:
        self._output = run_on(self._threads, self._main, self._input)

    def output(self) -> np.ndarray:
        return self._output.numpy()


class TvmDefault(Peer):
    """Plain TVM for this machine's CPU; its schedules are those of the release, untuned."""

    name = "tvm"
    packages = ("apache-tvm",)
    modules = ("tvm",)

    def build(
        self, model: nn.Module, example: torch.Tensor, threads: int, folder: Path
    ) -> _TvmRunner:
        path = folder / f"tvm-{threads}.so"
        if not path.exists():
            program = torch.export.export(model, (example,))
            mod = from_exported_program(program, unwrap_unit_return_tuple=True)
            facts = resolve("pattern/native").export()
            plain = {key: facts[key] for key in ("kind", "mtriple", "mcpu") if key in facts}
            target = tvm.target.Target({**plain, "num-cores": threads})
            with target:
                built = tvm.compile(mod, target, relax_pipeline=relax.get_default_pipeline(target))
            built.export_library(str(path))
        machine = relax.VirtualMachine(tvm.runtime.load_module(str(path)), tvm.cpu())
        return _TvmRunner(machine, example.numpy(), threads)
