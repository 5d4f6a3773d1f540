"""Families to test with, from the list of devices, so that a new one is tested without a word."""

from __future__ import annotations

from topi_kernels.device import Device
from topi_kernels.devices import DEVICES
from topi_kernels.schedules.family import Family
from topi_kernels.schedules.opencl.config import GpuFacts

#: Every CPU that has schedules.
FAMILIES = sorted(d.name for d in DEVICES if isinstance(d.facts, Family))
#: Every OpenCL device that has schedules.
GPU_FAMILIES = sorted(d.name for d in DEVICES if isinstance(d.facts, GpuFacts))
#: A device that is known and has none; add it to ``DEVICES`` and remove it again.
UNSCHEDULED = Device("toy-npu", lambda target: "toy-npu" in target.keys)

#: One for each number of lanes: plane operators see little else.
PLANE_FAMILIES = sorted(
    {DEVICES.facts(name).vector_width: name for name in FAMILIES[::-1]}.values()
)
