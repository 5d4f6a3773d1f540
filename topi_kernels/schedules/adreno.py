"""Adreno GPUs by OpenCL, of the class of an Adreno 640 (Snapdragon 855).

Figures: 6 shader processors, 585 MHz, 407 G multiply-adds a second of float32 and twice as many of
float16, 192 GB/s from the texture caches, 88 GB/s from local memory, just below 30 GB/s from main
memory (measured: Chips and Cheese, "Inside the Snapdragon 855's iGPU" and "Correction on Qualcomm
iGPUs", May 2024). Local memory, 32 KiB of it, is therefore slower than the cache in front of it, so
that level 0 does not copy input tiles to it; the tuner tries. No public figure tells loads from
buffers and reads of images apart: both get that of the texture caches, and level 0 stays with
buffers. 2 x 32 KiB of registers for each of 2 x 8 waves of 64: 64 registers for a
work_item with half of the waves in flight.
"""

from __future__ import annotations

from ..device import Registry
from .opencl.config import GpuFacts
from .opencl.device import opencl_device

ADRENO = GpuFacts(
    "adreno",
    vector_width=4,
    max_work_items=512,
    registers=64,
    max_registers=128,
    wave=64,
    cores=6,
    clock_mhz=585.0,
    multiply_adds=407e3 / 585 / 6,
    load_bytes=192e3 / 585 / 6,
    memory_gb_s=30.0,
    texture_bytes=192e3 / 585 / 6,
    local_bytes=88e3 / 585 / 6,
    local_memory=32 * 1024,
)


def register(registry: Registry) -> None:
    """Add the device."""
    registry.add(opencl_device(ADRENO, "adreno", "qualcomm"))
