"""Adreno GPUs by OpenCL. There are no schedules yet: their convolutions are left to TVM."""

from __future__ import annotations

from tvm.target import Target

from ..device import Device, Registry

NAME = "adreno"
CONFIG = {
    "kind": "opencl",
    "device": NAME,
    "keys": [NAME, "opencl", "gpu"],
    "host": {"kind": "llvm", "mtriple": "aarch64-linux-gnu"},
}


def matches(target: Target) -> bool:
    """Whether the attribute ``device`` of an OpenCL target says so."""
    return target.kind.name == "opencl" and str(target.attrs.get("device", "")) == NAME


def register(registry: Registry) -> None:
    """Add the device."""
    registry.add(Device(NAME, matches, tags={NAME: CONFIG}))
