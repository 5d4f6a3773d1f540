"""Which CPU features a library needs and which this machine has."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .cpu_flags import machine_architecture, normalise_architecture, surely_has

if TYPE_CHECKING:
    from tvm.target import Target

# TVM is imported where it is asked, so that a manifest is read without it.

# LLVM feature names that change which instructions code generation emits. Others (``fast-gather``,
# ``clwb``) steer choices or concern the system, and a machine without them runs the library.
_EMITTED = {
    "x86_64": (
        "adx amx-bf16 amx-fp16 amx-int8 amx-tile avx avx2 avx512bf16 avx512bitalg avx512bw"
        " avx512cd avx512dq avx512f avx512fp16 avx512ifma avx512vbmi avx512vbmi2 avx512vl"
        " avx512vnni avx512vpopcntdq avxifma avxneconvert avxvnni avxvnniint16 avxvnniint8 bmi"
        " bmi2 cmov crc32 f16c fma fma4 gfni lzcnt movbe popcnt sse sse2 sse3 sse4.1 sse4.2"
        " sse4a ssse3 vaes vpclmulqdq xop"
    ),
    "aarch64": "bf16 crc dotprod fp-armv8 fp16fml fullfp16 i8mm lse neon rdm sve sve2",
    "arm": "crc d32 dotprod fp-armv8 fullfp16 neon vfp2 vfp3 vfp4",
}


def host_target(target: Target) -> Target:
    """The part of ``target`` that runs on the CPU."""
    return target.host if target.host is not None else target


def triple_of(target: Target) -> str:
    """LLVM's triple of the code that ``target`` generates for the CPU."""
    from tvm.target import codegen

    return str(host_target(target).attrs.get("mtriple", "")) or codegen.llvm_get_system_triple()


def target_architecture(target: Target) -> str:
    """Architecture of the code that ``target`` generates for the CPU."""
    return normalise_architecture(triple_of(target).split("-")[0])


def required_features(target: Target) -> list[str]:
    """CPU features that code for ``target`` may use, sorted."""
    from tvm.target import codegen

    enabled = {str(name) for name in codegen.llvm_get_cpu_features(host_target(target))}
    return sorted(enabled.intersection(_EMITTED.get(target_architecture(target), "").split()))


def machine_features() -> set[str] | None:
    """CPU features of this machine; None where TVM was built without LLVM and cannot tell."""
    import tvm

    query = tvm.get_global_func("tvm.codegen.llvm.GetHostCPUFeatures", allow_missing=True)
    if query is None:
        return None
    return {str(name) for name, present in query().items() if present}


def why_not_runnable(architecture: str, features: list[str]) -> str | None:
    """Why code for ``architecture`` using ``features`` cannot run here; None if it can."""
    here = machine_architecture()
    if architecture != here:
        return f"it is built for {architecture}, this machine is {here}"
    if surely_has(features):
        return None
    present = machine_features()
    missing = sorted(set(features) - present) if present is not None else []
    if missing:
        return f"it uses the CPU features {', '.join(missing)}, which this machine lacks"
    return None
