"""Which family of schedules a target belongs to: the only place that inspects a Target."""

from __future__ import annotations

import os

from tvm.target import Target, codegen

X86_AVX512 = "x86-avx512"
X86_AVX2 = "x86-avx2"
ARM_NEON = "arm-neon"
ARM_NEON_WIDE = "arm-neon-wide"
ARM_NEON_IN_ORDER = "arm-neon-in-order"
ARMV7_NEON = "armv7-neon"
MALI = "mali"
ADRENO = "adreno"
GENERIC = "generic"
OTHER = "other"

CPU_FAMILIES = (
    X86_AVX512,
    X86_AVX2,
    ARM_NEON,
    ARM_NEON_WIDE,
    ARM_NEON_IN_ORDER,
    ARMV7_NEON,
    GENERIC,
)
GPU_FAMILIES = (MALI, ADRENO)

#: Families whose maximum and minimum give NaN if either operand is NaN.
_NAN_MAXIMUM = (ARM_NEON, ARM_NEON_WIDE, ARM_NEON_IN_ORDER, ARMV7_NEON)
_VECTOR_WIDTH = {X86_AVX512: 16, X86_AVX2: 8, **dict.fromkeys(CPU_FAMILIES[2:], 4)}
_X86_ARCHS = ("x86_64", "amd64", "i686", "i386")
_AARCH64_ARCHS = ("aarch64", "arm64")
_ARM_ARCHS = ("arm", "armv7", "armv7l", "armv7a", "armv8l")
_WIDE_CORES = ("cortex-x1", "cortex-x2", "cortex-x3", "cortex-x4", "neoverse-v1", "neoverse-v2")
_IN_ORDER_CORES = (
    "cortex-a34",
    "cortex-a35",
    "cortex-a53",
    "cortex-a55",
    "cortex-a510",
    "cortex-a520",
)


def architecture(target: Target) -> str:
    """First component of the LLVM triple of an ``llvm`` target, the host's triple by default."""
    triple = target.attrs.get("mtriple", None) or codegen.llvm_get_system_triple()
    return str(triple).split("-", 1)[0]


def target_family(target: Target) -> str:
    """Family of a target: one of :data:`CPU_FAMILIES`, :data:`GPU_FAMILIES` or :data:`OTHER`.

    Parameters
    ----------
    target : tvm.target.Target
        For ``llvm`` the architecture and the features of ``mcpu`` and ``mattr`` decide, for
        ``opencl`` the ``device`` attribute. A CPU that is not recognised is ``generic``: 4 lanes
        and 16 vector registers, which LLVM can lower everywhere. Any other device is ``other``: it
        has no schedules.
    """
    kind = target.kind.name
    if kind == "opencl":
        device = str(target.attrs.get("device", ""))
        return device if device in GPU_FAMILIES else OTHER
    if kind != "llvm":
        return OTHER
    arch = architecture(target)
    if arch in _X86_ARCHS:
        if codegen.llvm_cpu_has_features("avx512f", target):
            return X86_AVX512
        if codegen.llvm_cpu_has_features(["avx2", "fma"], target):
            return X86_AVX2
    if arch in _AARCH64_ARCHS and codegen.llvm_cpu_has_features("neon", target):
        core = str(target.attrs.get("mcpu", ""))
        if core in _IN_ORDER_CORES:
            return ARM_NEON_IN_ORDER
        return ARM_NEON_WIDE if core in _WIDE_CORES else ARM_NEON
    if arch in _ARM_ARCHS and codegen.llvm_cpu_has_features("neon", target):
        return ARMV7_NEON
    return GENERIC


def vector_width(family: str) -> int:
    """float32 lanes of one vector register of a CPU family.

    Raises
    ------
    ValueError
        If ``family`` is unknown.
    """
    if family not in _VECTOR_WIDTH:
        raise ValueError(f"unknown family {family!r}; expected one of {sorted(_VECTOR_WIDTH)}")
    return _VECTOR_WIDTH[family]


def maximum_keeps_nan(family: str) -> bool:
    """Whether the processor's maximum gives NaN if either operand is NaN, as torch does."""
    return family in _NAN_MAXIMUM


def why_no_float16(target: Target) -> str:
    """Why a CPU target does not compute in float16; empty if it does.

    Half-precision arithmetic is an option of ARMv8.2 (LLVM's ``fullfp16``). Cores without it would
    convert around every operation.
    """
    family, core = target_family(target), str(target.attrs.get("mcpu", "")) or "this processor"
    if family not in (ARM_NEON, ARM_NEON_WIDE, ARM_NEON_IN_ORDER):
        return f"float16 has no schedules for the family {family!r}; compile the model in float32"
    if not codegen.llvm_cpu_has_features("fullfp16", target):
        return (
            f"float16 arithmetic needs ARMv8.2 (fullfp16), which {core} lacks; compile the model in"
            " float32"
        )
    return ""


def num_cores(target: Target) -> int:
    """Cores to schedule for: the target's ``num-cores``, else those this process may use."""
    cores = target.attrs.get("num-cores", None)
    if cores is not None:
        return int(cores)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
