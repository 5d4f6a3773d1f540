"""ARM families: 128-bit NEON, in-order and out-of-order cores.

Weights (lanes over pixels) and inputs (lanes over output channels) come in whole vectors, and the
multiply-adds take them by element, so nothing is broadcast. Out-of-order cores fill their registers
with accumulators. For in-order cores LLVM moves loads up to cover their latency, so there the tile
and its inputs share the registers. Prefetch instructions take slots that these narrow cores lack.

SVE is left alone: on every core below whose vectors it could widen, it has the 128 bits of NEON
(Neoverse V1's 256 are the exception, at half the pipes), so it would do the same multiply-adds in
as many instructions, and fixed widths let the compiler unroll and shuffle.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

from tvm.target import Target, codegen

from ..device import Device, Registry, architecture
from .family import Family

AARCH64 = ("aarch64", "arm64")
ARM = ("arm", "armv7", "armv7l", "armv7a", "armv8l")
# A pair of vectors loads in as much time as two, or more (six cycles on Cortex-A55 by LLVM's
# model), and nothing runs beside it: LLVM shall form pairs of aligned vectors only.
SINGLE_LOADS = ("+ldp-aligned-only",)
# Equal cores of a phone's usual cluster; only the default of num_threads when cross-compiling.
CLUSTER_CORES = 4

# Out-of-order cores mostly have 64 KiB of L1. A line of it holds four vectors, so there are enough
# multiply-adds to hide most of what fetching it costs.
NEAR_CACHE = 32_000

# Out-of-order cores hide the loads of plain rows, so the estimate of interleaved lanes is about the
# same; a third fewer loads decide for these.
FEWER_LOADS = 1.03

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
    interleaved_lanes=True,
    lanes_credit=FEWER_LOADS,
    border_gain=1.0,
    nan_maximum=True,
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
    interleaved_lanes=True,
    lanes_credit=FEWER_LOADS,
    border_gain=1.0,
    nan_maximum=True,
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
    interleaved_lanes=True,
    border_gain=1.0,
    nan_maximum=True,
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
    nan_maximum=True,
)


@dataclass(frozen=True)
class Core:
    """A 64-bit core by LLVM's name, and its kind.

    ``tagged`` says that it has a tag ``pattern/<name>``, ``features`` what that tells LLVM.
    """

    name: str
    facts: Family
    tagged: bool = True
    features: tuple[str, ...] = ()


#: Cores that are not named here are out-of-order ones with two pipes.
CORES = (
    Core("cortex-a34", NEON_IN_ORDER, tagged=False),
    Core("cortex-a35", NEON_IN_ORDER, tagged=False),
    Core("cortex-a53", NEON_IN_ORDER),
    Core("cortex-a55", NEON_IN_ORDER, features=SINGLE_LOADS),
    Core("cortex-a510", NEON_IN_ORDER, features=SINGLE_LOADS),
    Core("cortex-a520", NEON_IN_ORDER, features=SINGLE_LOADS),
    Core("cortex-a72", NEON),
    Core("cortex-a76", NEON),
    Core("cortex-a78", NEON),
    Core("cortex-a720", NEON),
    Core("neoverse-n1", NEON),
    Core("cortex-x1", NEON_WIDE),
    Core("cortex-x2", NEON_WIDE, tagged=False),
    Core("cortex-x3", NEON_WIDE, tagged=False),
    Core("cortex-x4", NEON_WIDE),
    Core("neoverse-v1", NEON_WIDE, tagged=False),
    Core("neoverse-v2", NEON_WIDE),
)
_FACTS = {core.name: core.facts for core in CORES}


def _is_neon(target: Target, architectures: tuple[str, ...]) -> bool:
    if target.kind.name != "llvm" or architecture(target) not in architectures:
        return False
    return bool(codegen.llvm_cpu_has_features("neon", target))


def is_core_of(facts: Family, target: Target) -> bool:
    """Whether a target is a 64-bit core of this kind."""
    core = str(target.attrs.get("mcpu", ""))
    return _is_neon(target, AARCH64) and _FACTS.get(core, NEON) is facts


def is_armv7(target: Target) -> bool:
    """Whether a target is a 32-bit core with NEON."""
    return _is_neon(target, ARM)


def why_no_float16(target: Target) -> str:
    """Half-precision arithmetic is an option of ARMv8.2 (LLVM's ``fullfp16``).

    Cores without it would convert around every operation.
    """
    if codegen.llvm_cpu_has_features("fullfp16", target):
        return ""
    core = str(target.attrs.get("mcpu", "")) or "this processor"
    return (
        f"float16 arithmetic needs ARMv8.2 (fullfp16), which {core} lacks; compile the model in"
        " float32"
    )


def int8_instructions(target: Target) -> str:
    """How bytes are multiplied; cores before ARMv8.2's dot products compute in float32."""
    return "neon-dotprod" if codegen.llvm_cpu_has_features("dotprod", target) else ""


def _aarch64(core: Core) -> dict[str, Any]:
    return {
        "kind": "llvm",
        "mtriple": "aarch64-linux-gnu",
        "mcpu": core.name,
        "mattr": ["+neon", *core.features],
        "num-cores": CLUSTER_CORES,
        "keys": ["arm_cpu", "cpu"],
    }


# The oldest core with fused multiply-adds; it schedules well for all in-order ones.
_ARMV7 = {
    "kind": "llvm",
    "mtriple": "armv7l-linux-gnueabihf",
    "mcpu": "cortex-a7",
    "mattr": ["+neon"],
    "mfloat-abi": "hard",
    "keys": ["arm_cpu", "cpu"],
}


def register(registry: Registry) -> None:
    """Add the kinds of 64-bit cores, and ARMv7."""
    for facts in (NEON, NEON_WIDE, NEON_IN_ORDER):
        tags = {c.name: _aarch64(c) for c in CORES if c.tagged and c.facts is facts}
        matches = partial(is_core_of, facts)
        registry.add(
            Device(facts.name, matches, facts, why_no_float16, tags, int8=int8_instructions)
        )
    registry.add(Device(NEON_V7.name, is_armv7, NEON_V7, tags={"armv7": _ARMV7}))
