"""What mobile GPUs share: how a device with OpenCL is described and recognised."""

from __future__ import annotations

from tvm.target import Target

from ...device import Device
from .config import GpuFacts


def opencl_device(facts: GpuFacts, *words: str) -> Device:
    """The GPU whose OpenCL targets have its name as their attribute ``device``.

    Its driver's name for it has one of ``words`` in it.
    """
    name = facts.name

    def matches(target: Target) -> bool:
        return target.kind.name == "opencl" and str(target.attrs.get("device", "")) == name

    config = {
        "kind": "opencl",
        "device": name,
        "keys": [name, "opencl", "gpu"],
        "max_num_threads": facts.max_work_items,
        "max_threads_per_block": facts.max_work_items,
        "host": {"kind": "llvm", "mtriple": "aarch64-linux-gnu"},
    }
    return Device(
        name,
        matches,
        facts=facts,
        why_no_float16=lambda _target: "",
        tags={name: config},
        kind="opencl",
        words=words,
    )
