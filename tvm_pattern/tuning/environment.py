"""Facts on this machine and its tools that a record keeps."""

from __future__ import annotations

import json
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

from tvm.target import Target

_TOOLS = ("apache-tvm", "tvm-pattern")


def tool_versions() -> dict[str, str]:
    """Versions of what decides how fast a candidate is."""
    versions = {"python": platform.python_version()}
    for name in _TOOLS:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "source"
    return versions


def device_name() -> str:
    """Name of this machine's processor."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        facts: dict[str, str] = {}
        for line in cpuinfo.read_text().splitlines():
            name, _, value = line.partition(":")
            facts.setdefault(name.strip(), value.strip())
        if "model name" in facts:
            # Virtual machines often hide the name; family and model tell processors apart.
            return f"{facts['model name']} {facts.get('cpu family', '')}/{facts.get('model', '')}"
    return platform.processor() or platform.machine()


def target_dict(target: Target) -> dict[str, Any]:
    """A target as plain data."""
    return json.loads(str(target))
