"""Adreno GPUs by OpenCL. There are no schedules yet: their convolutions are left to TVM."""

from __future__ import annotations

from ..device import Registry
from .opencl import opencl_device


def register(registry: Registry) -> None:
    """Add the device."""
    registry.add(opencl_device("adreno"))
