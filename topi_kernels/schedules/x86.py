"""x86 families: AVX-512 and AVX2 with FMA."""

from __future__ import annotations

from typing import Any

from tvm.target import Target, codegen

from ..device import Device, Registry, architecture
from .config import Family

ARCHITECTURES = ("x86_64", "amd64", "i686", "i386")

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
    row_line_share=0.4,
    weight_line_cost=2.152,
    shuffle_cost=0.546,
    deinterleave_cost=1.227,
    tile_cost=14.5,
    store_cost=4.12,
    near_cache_floats=13_200,
    interleaved_lanes=True,
    copied_tiles=True,
    gemm=True,
)

AVX2 = Family(
    name="x86-avx2",
    vector_width=8,
    vector_registers=16,
    temporaries=6,
    prefetch=1,
    fetch_ahead=True,
    block_floats=8_000,
    copied_tiles=True,
    gemm=True,
    row_line_share=0.7,
    tap_filters=1,
    interleaved_lanes=True,
)


def _has(target: Target, *features: str) -> bool:
    if target.kind.name != "llvm" or architecture(target) not in ARCHITECTURES:
        return False
    return bool(codegen.llvm_cpu_has_features(list(features), target))


def is_avx512(target: Target) -> bool:
    """Whether the processor has AVX-512."""
    return _has(target, "avx512f")


def is_avx2(target: Target) -> bool:
    """Whether the processor has AVX2 and FMA, but no AVX-512."""
    return _has(target, "avx2", "fma") and not is_avx512(target)


def int8_instructions(target: Target) -> str:
    """How bytes are multiplied, see :mod:`topi_kernels.schedules.cpu_int8.isa`."""
    if _has(target, "avx512vnni", "avx512vbmi"):
        return "avx512-vnni"
    if _has(target, "avxvnni") or _has(target, "avx512vnni", "avx512vl"):
        return "avx-vnni"
    # With 512-bit float32 vectors the 256-bit products of pairs would lose.
    return "" if is_avx512(target) else "avx2"


def _config(mcpu: str) -> dict[str, Any]:
    return {"kind": "llvm", "mtriple": "x86_64-linux-gnu", "mcpu": mcpu, "keys": ["cpu"]}


def register(registry: Registry) -> None:
    """Add both devices."""
    tags = {AVX512.name: _config("x86-64-v4")}
    registry.add(Device(AVX512.name, is_avx512, AVX512, tags=tags, int8=int8_instructions))
    tags = {AVX2.name: _config("x86-64-v3")}
    registry.add(Device(AVX2.name, is_avx2, AVX2, tags=tags, int8=int8_instructions))
