"""How much memory an engine holds at most: opened and run in a process of its own.

Run as ``python -m benchmarks.resident ENGINE NETWORK FOLDER THREADS BATCH``, it prints megabytes.
``FOLDER`` holds what the engine's conversion left there (:meth:`benchmarks.peers.Peer.build`), or
our library, so that converting and compiling count for nobody. Counted is what opening the network
and two runs add to the resident set at its peak, beyond what the process held with the engine
imported and the input made: weights in every copy that is made of them on the way, activations,
scratch space, and pages of files that are mapped.
"""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from .device import pin
from .harness import OURS, Runner
from .peers import PEERS, UNTUNED
from .workloads import NetworkSpec, load_workloads

_STATUS = Path("/proc/self/status")
_RESET = Path("/proc/self/clear_refs")


def peak_mb(engine: str, network: str, folder: Path, threads: int, batch: int = 1) -> float:
    """Megabytes (10^6 bytes) that ``engine`` adds at its peak, measured in a new process.

    Parameters
    ----------
    engine : str
        A peer's name, or ours followed by the name of the library file in ``folder``:
        ``tvm-pattern:F4.so``.
    network : str
        Name of an entry of ``workloads.toml``.
    folder : pathlib.Path
    threads, batch : int

    Raises
    ------
    RuntimeError
        If the process fails, or the system does not say what a process holds.
    """
    if not _RESET.exists():
        raise RuntimeError(f"no {_RESET}: the peak of a process is measured on Linux alone")
    command = [sys.executable, "-m", "benchmarks.resident", engine, network, str(folder)]
    done = subprocess.run(
        [*command, str(threads), str(batch)],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no output"])[-1]
        raise RuntimeError(f"{engine} on {network} in a process of its own: {last}")
    return float(done.stdout.split()[-1])


def _import(engine: str) -> None:
    if engine.startswith(OURS):
        modules: tuple[str, ...] = ("tvm", "tvm_pattern.artifact", "tvm_pattern.loading")
    else:
        modules = next(peer.modules for peer in (*PEERS, UNTUNED) if peer.name == engine)
    for module in modules:
        if module != "pnnx":  # a converter
            importlib.import_module(module)


def _open(engine: str, spec: NetworkSpec, example: torch.Tensor, folder: Path, n: int) -> Runner:
    if engine.startswith(OURS):
        from .ours import NetworkEngine

        return NetworkEngine.load(folder / engine.removeprefix(f"{OURS}:"), example, n)
    peer = next(peer for peer in (*PEERS, UNTUNED) if peer.name == engine)
    return peer.reopen(spec.build, example, n, folder)


def added_peak(function: Callable[[], object]) -> int:
    """Bytes that the resident set of this process grows by at most while ``function`` runs."""
    before = _held("VmRSS")
    _RESET.write_text("5")  # the peak starts anew
    function()
    return _held("VmHWM") - before


def _held(key: str) -> int:
    """A line of the process's status, in bytes."""
    for line in _STATUS.read_text(encoding="utf-8").splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"{_STATUS} has no {key}")


def main(engine: str, network: str, folder: str, threads: str, batch: str) -> None:
    """Measure in this process and print megabytes."""
    pin(int(threads))
    spec = next(spec for spec in load_workloads()[1] if spec.name == network)
    example = spec.with_batch(int(batch)).example()
    _import(engine)

    def use() -> None:
        runner = _open(engine, spec, example, Path(folder), int(threads))
        for _ in range(2):
            runner.run()

    print(f"{added_peak(use) / 1e6:.1f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
