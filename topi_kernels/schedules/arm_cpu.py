"""ARM families: 128-bit NEON, in-order and out-of-order cores.

Weights (lanes over pixels) and inputs (lanes over output channels) come in whole vectors, and the
multiply-adds take them by element, so nothing is broadcast. Out-of-order cores fill their registers
with accumulators. For in-order cores LLVM moves loads up to cover their latency, so there the tile
and its inputs share the registers. Prefetch instructions take slots that these narrow cores lack.
"""

from __future__ import annotations

from .config import Family

# Out-of-order cores mostly have 64 KiB of L1. A line of it holds four vectors, so there are enough
# multiply-adds to hide most of what fetching it costs.
NEAR_CACHE = 32_000

NEON = Family(
    name="arm-neon",
    vector_width=4,
    vector_registers=32,
    temporaries=10,
    prefetch=0,
    fma_ports=2.0,
    load_ports=2.0,
    load_cost=0.1,
    split_cost=0.1,
    shuffle_cost=1.0,
    line_cost=1.0,
    near_cache_floats=NEAR_CACHE,
    loop_cost=2.0,
    isa="neon",
)

# Four 128-bit pipes: twice the accumulators in flight, and loads are what runs out.
NEON_WIDE = Family(
    name="arm-neon-wide",
    vector_width=4,
    vector_registers=32,
    temporaries=14,
    prefetch=0,
    fma_ports=4.0,
    load_ports=3.0,
    load_cost=0.2,
    split_cost=0.1,
    shuffle_cost=1.0,
    line_cost=1.0,
    near_cache_floats=NEAR_CACHE,
    loop_cost=1.0,
    isa="neon",
)

NEON_IN_ORDER = Family(
    name="arm-neon-in-order",
    vector_width=4,
    vector_registers=32,
    temporaries=8,
    prefetch=0,
    fma_ports=1.0,
    load_ports=1.0,
    fma_latency=8.0,
    load_cost=2.0,
    split_cost=0.3,
    line_cost=1.0,
    shuffle_cost=1.0,
    isa="neon",
    early_loads=True,
)

# 32-bit ARM: 16 vector registers, and fused multiply-adds take no element of a vector.
NEON_V7 = Family(
    name="armv7-neon",
    vector_width=4,
    vector_registers=16,
    temporaries=4,
    prefetch=0,
    fma_ports=1.0,
    load_ports=1.0,
    load_cost=0.3,
    split_cost=0.3,
    shuffle_cost=1.0,
    early_loads=True,
)
