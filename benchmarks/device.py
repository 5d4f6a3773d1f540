"""What machine this is, and keeping a run on chosen cores of it."""

from __future__ import annotations

import datetime
import os
import platform
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

# CPU features that decide which code an engine runs.
_FEATURES = (
    "fma",
    "avx2",
    "avx_vnni",
    "avx512f",
    "avx512bw",
    "avx512_vnni",
    "avx512_bf16",
    "avx512_fp16",
    "amx_tile",
    "amx_bf16",
    "amx_int8",
    "asimd",
    "asimdhp",
    "asimddp",
    "i8mm",
    "bf16",
    "sve",
)
_PACKAGES = ("apache-tvm", "apache-tvm-ffi", "numpy", "torch", "tvm-pattern")


def pin(threads: int, cores: Sequence[int] | None = None) -> list[int]:
    """Bind this process to ``threads`` cores and give the libraries that many threads.

    ``cores`` defaults to the last ones this process may use: the first is where the system's own
    work tends to be.

    Raises
    ------
    ValueError
        If there are fewer cores than threads, or a core is not available.
    """
    if threads < 1:
        raise ValueError(f"threads: got {threads}, expected at least 1")
    if hasattr(os, "sched_getaffinity"):
        allowed = sorted(os.sched_getaffinity(0))
        chosen = sorted(set(cores)) if cores else allowed[-threads:]
        missing = sorted(set(chosen) - set(allowed))
        if missing:
            raise ValueError(f"cores {missing} are not available; this process may use {allowed}")
        if len(chosen) < threads:
            raise ValueError(
                f"{threads} threads need as many cores, got {chosen}; lower --threads or free cores"
            )
        os.sched_setaffinity(0, chosen)
    else:
        chosen = []
    for variable in ("OMP_NUM_THREADS", "TVM_NUM_THREADS"):
        os.environ[variable] = str(threads)
    torch.set_num_threads(threads)
    return chosen


def _cpuinfo(path: Path = Path("/proc/cpuinfo")) -> tuple[str, list[str]]:
    """Name and features of the first processor.

    Virtual machines give unlike processors one name: on x86 family and model stand beside it.
    """
    facts: dict[str, str] = {}
    if path.exists():
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            facts.setdefault(key.strip(), value.strip())
    model = facts.get("model name") or platform.processor() or platform.machine()
    if {"cpu family", "model"} <= set(facts):
        model += f" (family {facts['cpu family']}, model {facts['model']})"
    flags = set(f"{facts.get('flags', '')} {facts.get('Features', '')}".split())
    return model, [f for f in _FEATURES if f in flags]


def _caches() -> dict[str, str]:
    caches = {}
    for index in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        level, kind = ((index / n).read_text().strip() for n in ("level", "type"))
        if kind != "Instruction":
            caches[f"L{level}"] = (index / "size").read_text().strip()
    return caches


def package_version(name: str) -> str | None:
    """Version of an installed distribution, or None."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def describe(threads: int, cores: Sequence[int], engines: dict[str, str]) -> dict[str, Any]:
    """The ``device`` entry of a result file. ``engines`` maps engine -> version."""
    model, features = _cpuinfo()
    return {
        "cpu": model,
        "machine": platform.machine(),
        "logical_cores": os.cpu_count(),
        "caches": _caches(),
        "features": features,
        "threads": threads,
        "pinned_to": list(cores),
        "load_average": list(os.getloadavg()) if hasattr(os, "getloadavg") else [],
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "packages": {p: v for p in _PACKAGES if (v := package_version(p))},
        "engines": engines,
        "command": " ".join(["python", "-m", *_module_command()]),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }


def _module_command() -> list[str]:
    name = Path(sys.argv[0]).stem
    return [f"benchmarks.{name}", *sys.argv[1:]]
