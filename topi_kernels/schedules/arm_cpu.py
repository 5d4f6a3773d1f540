"""ARM families: 128-bit NEON, in-order and out-of-order cores."""

from __future__ import annotations

from .config import Family

NEON = Family(
    name="arm-neon",
    vector_width=4,
    vector_registers=32,
    temporaries=8,
    prefetch=0,
    fma_ports=2.0,
    load_ports=2.0,
    shuffle_cost=1.0,
)

NEON_IN_ORDER = Family(
    name="arm-neon-in-order",
    vector_width=4,
    vector_registers=32,
    temporaries=8,
    prefetch=1,
    fma_ports=1.0,
    load_ports=1.0,
    shuffle_cost=1.0,
)
