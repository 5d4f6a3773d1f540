"""One network compiled and exported in this process: its CPU seconds, stage by stage, as JSON.

Run as ``python -m benchmarks.compile_once NETWORK WEIGHTS LIBRARY``; :mod:`benchmarks.compile_time`
does. Torch is imported and the network made before; all else that ``compile`` needs counts, its
own imports too, as for the first network of a process. ``torch.export`` imports most of torch's
compiler: what that takes is a row of its own.
"""

from __future__ import annotations

import importlib
import json
import logging
import resource
import sys
import time
from pathlib import Path

import torch

import tvm_pattern

from .device import pin
from .workloads import load_workloads

#: What ``torch.export`` imports, of torch alone.
_TORCH_EXPORT = ("torch._dynamo", "torch.export._trace")
#: Stages that :mod:`tvm_pattern.stages` does not know.
TORCH, COMPILER, EXPORT, TOTAL = "import of torch.export", "import of TVM", "export", "total"


class _Stages(logging.Handler):
    """Collects what :func:`tvm_pattern.stages.stage` logs."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.seconds: dict[str, float] = {}

    def emit(self, record: logging.LogRecord) -> None:
        name, _, cpu = record.args  # type: ignore[misc]
        self.seconds[str(name)] = float(cpu)  # type: ignore[arg-type]


def _children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def measure(network: str, weights: Path, library: Path) -> dict[str, float]:
    """CPU seconds of each stage and of all; those of the linker count for ``export``.

    Parameters
    ----------
    network : str
        Name of an entry of ``workloads.toml``.
    weights : pathlib.Path
        Its ``state_dict``.
    library : pathlib.Path
        File to export to.
    """
    spec = next(spec for spec in load_workloads()[1] if spec.name == network)
    model, example = spec.build(), spec.example()
    model.load_state_dict(torch.load(weights))
    stages = _Stages()
    logger = logging.getLogger("tvm_pattern.stages")
    logger.addHandler(stages)
    logger.setLevel(logging.INFO)
    seconds = stages.seconds
    start = time.process_time()
    for module in _TORCH_EXPORT:
        importlib.import_module(module)
    seconds[TORCH] = time.process_time() - start
    compile_network = tvm_pattern.compile  # imports all that it needs
    seconds[COMPILER] = time.process_time() - start - seconds[TORCH]
    compiled = compile_network(model, (example,), num_threads=1)
    before = time.process_time()
    compiled.export(library)
    seconds[EXPORT] = time.process_time() - before + _children()
    seconds[TOTAL] = time.process_time() - start + _children()
    return seconds


def main(network: str, weights: str, library: str) -> None:
    """Measure and print."""
    pin(1)
    print(json.dumps(measure(network, Path(weights), Path(library))))


if __name__ == "__main__":
    main(*sys.argv[1:])
