"""x86 families: AVX-512 and AVX2 with FMA."""

from __future__ import annotations

from .config import Family

AVX512 = Family(
    name="x86-avx512",
    vector_width=16,
    vector_registers=32,
    temporaries=8,
    prefetch=True,
    fma_ports=2.0,
    load_ports=2.0,
    shuffle_cost=1.0,
)

AVX2 = Family(
    name="x86-avx2",
    vector_width=8,
    vector_registers=16,
    temporaries=4,
    prefetch=True,
    fma_ports=2.0,
    load_ports=2.0,
    shuffle_cost=0.5,
)
