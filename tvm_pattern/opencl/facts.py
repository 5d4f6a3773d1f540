"""What OpenCL devices this computer has, and what each can do."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import tvm
from pydantic import TypeAdapter

from .errors import OpenCLError
from .runtime import load_runtime


@dataclass(frozen=True)
class DeviceFacts:
    """One OpenCL device.

    Parameters
    ----------
    name, vendor, platform, version, driver : str
        As the driver says.
    kind : str
        ``gpu``, ``cpu`` or ``accelerator``.
    float16, images : bool
        Whether kernels may compute in ``half``, and read ``image2d``.
    image_width, image_height : int
        Largest image, in pixels.
    compute_units, clock_mhz : int
    max_work_group : int
        Work-items in one work-group.
    max_work_items : tuple of int
        The same, in each of the three dimensions.
    local_memory_kind : str
        ``local``, or ``global`` where local memory is emulated.
    local_memory, global_memory, max_buffer : int
        Bytes; ``max_buffer`` is the largest single allocation.
    image_texels : int
        Largest image of a buffer's memory, in texels of 128 bits; 0 without images.
    """

    name: str
    vendor: str
    platform: str
    version: str
    driver: str
    kind: str
    float16: bool
    images: bool
    image_width: int
    image_height: int
    compute_units: int
    clock_mhz: int
    max_work_group: int
    max_work_items: tuple[int, int, int]
    local_memory_kind: str
    local_memory: int
    global_memory: int
    max_buffer: int
    image_texels: int = 0


_ADAPTER = TypeAdapter(DeviceFacts)


def devices() -> list[DeviceFacts]:
    """The OpenCL devices of this computer, GPUs first; ``tvm.opencl(n)`` is the n-th.

    Raises
    ------
    OpenCLError
        If the runtime cannot be had; a computer without a driver has an empty list.
    """
    load_runtime()
    count = _function("count")
    return [facts_from(str(_function("describe")(number))) for number in range(int(count()))]


def facts_from(text: str) -> DeviceFacts:
    """Facts of the JSON that the runtime gives, here or over RPC."""
    return _ADAPTER.validate_python(json.loads(text))


def why_none() -> str:
    """Why :func:`devices` is empty, and what to do."""
    load_runtime()
    problem = str(_function("problem")())
    reason = problem or "no OpenCL driver has a device"
    return (
        f"no OpenCL device: {reason}; install the GPU's driver, or on Debian and Ubuntu:"
        " apt-get install ocl-icd-libopencl1 pocl-opencl-icd, which runs OpenCL on the CPU"
    )


def _function(name: str) -> Any:
    found = tvm.get_global_func(f"tvm_pattern.opencl.{name}", allow_missing=True)
    if found is None:
        raise OpenCLError(
            "this TVM was built with an OpenCL runtime of its own, which does not list its devices;"
            " ask tvm.opencl(0) for its attributes"
        )
    return found
