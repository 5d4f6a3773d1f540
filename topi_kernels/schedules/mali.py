"""Mali GPUs by OpenCL, of the class of a Mali-G76 MP10 (Kirin 980).

Figures: 24 execution lanes of float32 in each core, twice as many of float16, warps of 8, 16 KiB of
load/store cache (Arm Mali GPU Datasheet 2021); 720 MHz and 34 GB/s of LPDDR4X (the chip's maker).
The load/store pipe moves 128 bits per clock (Arm, "Performance Expectations" of the developer
guides). A work_item has 32 registers with all threads in flight, and up to 64 with half of them
(Arm, Mali Offline Compiler manual). Local memory lies in main memory behind the same cache (Arm
Mali OpenCL Developer Guide, "Use of local or private memory"), so no schedule copies to it.
"""

from __future__ import annotations

from ..device import Registry
from .opencl.config import GpuFacts
from .opencl.device import opencl_device

MALI = GpuFacts(
    "mali",
    vector_width=4,
    max_work_items=256,
    registers=64,
    max_registers=64,
    wave=8,
    cores=10,
    clock_mhz=720.0,
    multiply_adds=24.0,
    load_bytes=16.0,
    memory_gb_s=34.1,
)


def register(registry: Registry) -> None:
    """Add the device."""
    registry.add(opencl_device(MALI, "mali", "immortalis"))
