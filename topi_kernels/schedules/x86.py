"""x86 families: AVX-512 and AVX2 with FMA."""

from __future__ import annotations

from .config import Family

# Cost constants: fitted to 552 measured configurations of 37 layers on a server core with two
# 512-bit FMA ports; the pick is 1.4 % slower than the fastest of a layer's 8 to 16, on average
# (1x1 layers, with blocks of in_channels: 5 %).
AVX512 = Family(
    name="x86-avx512",
    vector_width=16,
    vector_registers=32,
    temporaries=8,
    prefetch=1,
    fetch_ahead=True,
    block_floats=8_000,
    load_cost=0.086,
    split_cost=0.727,
    line_cost=2.086,
    weight_line_cost=2.152,
    shuffle_cost=0.546,
    deinterleave_cost=1.227,
    tile_cost=14.5,
    store_cost=4.12,
    near_cache_floats=13_200,
)

AVX2 = Family(
    name="x86-avx2",
    vector_width=8,
    vector_registers=16,
    temporaries=6,
    prefetch=1,
    fetch_ahead=True,
    block_floats=8_000,
)
