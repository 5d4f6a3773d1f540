"""On which device of this computer code for a target runs, and why on none."""

from __future__ import annotations

from typing import Any

import tvm
from tvm.target import Target

from relay_passes.targets import CPU_KINDS
from topi_kernels.devices import DEVICES

from .opencl import OpenCLError, facts, load_runtime

OPENCL = "opencl"
# Our device -> words that are in the names of such GPUs.
_WORDS = {device.name: device.words for device in DEVICES if device.words}


def prepare(target: Target) -> None:
    """Load what this process needs before it opens a library for ``target``.

    Raises
    ------
    OpenCLError
        If it needs an OpenCL runtime and none can be had.
    """
    if target.kind.name == OPENCL:
        load_runtime()


def device_of(target: Target, session: Any = tvm) -> tvm.runtime.Device:
    """The device, here or at the other end of an RPC session; it need not be there."""
    kind = target.kind.name
    return session.cpu(0) if kind in CPU_KINDS else session.device(kind, 0)


def why_no_device(target: Target) -> str | None:
    """Why this computer has no device for ``target``, and what to do; None if it has one."""
    kind = target.kind.name
    if kind in CPU_KINDS:
        return None
    try:
        prepare(target)
    except OpenCLError as error:
        return str(error)
    device = device_of(target)
    if not device.exist:
        return facts.why_none() if kind == OPENCL else f"this TVM runtime finds no {kind} device"
    return why_wrong_gpu(target, str(device.device_name)) if kind == OPENCL else None


def why_not_there(target: Target, session: Any) -> str | None:
    """Why the machine at the other end of an RPC session has no device for ``target``, or None."""
    kind = target.kind.name
    if kind in CPU_KINDS:
        return None
    device = device_of(target, session)
    if not device.exist:
        return (
            f"its server has no {kind} device; start `tvm-pattern rpc server --opencl`, or on a"
            " phone a tvm_rpc that is built with OpenCL (docs/phones.md)"
        )
    return why_wrong_gpu(target, str(device.device_name)) if kind == OPENCL else None


def why_wrong_gpu(target: Target, device_name: str) -> str | None:
    """Why the GPU of this name is another than ``target`` is for; None if it may be it.

    Devices that are neither Mali nor Adreno run libraries for both, so that these can be tried on
    any computer.
    """
    wanted = str(target.attrs.get("device", ""))
    words = set(device_name.lower().replace("(", " ").replace("-", " ").split())
    found = [name for name, signs in _WORDS.items() if words.intersection(signs)]
    if wanted not in _WORDS or not found or wanted in found:
        return None
    return (
        f"it is compiled for {wanted} and the device here is {device_name!r}; compile it for"
        f" pattern/{found[0]}"
    )
