"""What the kernel says of this machine's processor. No TVM.

The names differ from LLVM's, so that a feature which is not found here may be there all the same.
"""

from __future__ import annotations

import platform
from collections.abc import Iterable
from pathlib import Path

_CPUINFO = Path("/proc/cpuinfo")
_ALIASES = {"amd64": "x86_64", "x86-64": "x86_64", "arm64": "aarch64"}
# LLVM's name -> Linux's, where they differ by more than punctuation.
_LINUX = {"sse3": "pni", "lzcnt": "abm", "bmi": "bmi1", "crc32": "sse4_2", "neon": "asimd",
          "fp-armv8": "fp", "lse": "atomics"}  # fmt: skip


def normalise_architecture(name: str) -> str:
    """``x86_64``, ``aarch64`` or ``arm`` from the spellings of triples and ``uname``."""
    name = _ALIASES.get(name.lower(), name.lower())
    return "arm" if name.startswith(("armv", "thumb")) else name


def machine_architecture() -> str:
    """Architecture of this machine."""
    return normalise_architecture(platform.machine())


def surely_has(features: Iterable[str], cpuinfo: str | None = None) -> bool:
    """Whether the kernel names all of these features; False where that is not known.

    Parameters
    ----------
    features : iterable of str
        LLVM's names.
    cpuinfo : str, optional
        Text of ``/proc/cpuinfo``; default: this machine's.
    """
    if cpuinfo is None:
        cpuinfo = _CPUINFO.read_text() if _CPUINFO.exists() else ""
    for line in cpuinfo.splitlines():
        name, _, value = line.partition(":")
        if name.strip() in ("flags", "Features"):
            flags = {_plain(flag) for flag in value.split()}
            return all(_plain(_LINUX.get(feature, feature)) in flags for feature in features)
    return False


def _plain(name: str) -> str:
    return name.replace("_", "").replace(".", "").replace("-", "")
