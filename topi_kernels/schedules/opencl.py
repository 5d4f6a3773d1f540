"""What mobile GPUs share: how a device with OpenCL is described and recognised."""

from __future__ import annotations

from tvm.target import Target

from ..device import Device


def opencl_device(name: str) -> Device:
    """The GPU whose OpenCL targets have ``name`` as their attribute ``device``; no schedules."""

    def matches(target: Target) -> bool:
        return target.kind.name == "opencl" and str(target.attrs.get("device", "")) == name

    config = {
        "kind": "opencl",
        "device": name,
        "keys": [name, "opencl", "gpu"],
        "host": {"kind": "llvm", "mtriple": "aarch64-linux-gnu"},
    }
    return Device(name, matches, tags={name: config}, kind="opencl")
