"""The processor families by name, and the plane layout that each prefers."""

from __future__ import annotations

from .layout import PlaneLayout
from .schedules.arm_cpu import NEON, NEON_IN_ORDER, NEON_V7, NEON_WIDE
from .schedules.config import Family
from .schedules.x86 import AVX2, AVX512

FAMILIES: dict[str, Family] = {
    f.name: f for f in (AVX512, AVX2, NEON, NEON_WIDE, NEON_IN_ORDER, NEON_V7)
}
GENERIC = Family("generic", vector_width=4, vector_registers=16, temporaries=4, prefetch=0)


def family_of(name: str) -> Family:
    """Family by name; unknown names get conservative 128-bit vectors."""
    return FAMILIES.get(name, GENERIC)


def default_layout(
    height: int, width: int, pad: int, family: str, dtype: str = "float32"
) -> PlaneLayout:
    """Preferred plane layout of an activation.

    Rows of wide images start at vector boundaries; those of narrow images are packed tighter, since
    more of them then share a cache line. The rows of float16 keep the whole vector, which is also
    the slack that reads beyond the last row need.
    """
    align = family_of(family).of_dtype(dtype).vector_width
    while dtype == "float32" and align > 4 and align > width + pad:
        align //= 2
    return PlaneLayout.make(height, width, pad, align)
