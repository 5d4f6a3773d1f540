"""The target tags ``pattern/...`` and how a target is chosen.

A target belongs to this project if its keys contain ``pattern``; any target may say so. The tags
are shorthands for common machines, registered with TVM when this module is imported.
"""

from __future__ import annotations

import pathlib
from typing import Any

from tvm.target import Target, codegen, list_tags, register_tag

from topi_kernels.target_family import num_cores

KEY = "pattern"
PREFIX = "pattern/"
# Equal cores of a phone's usual cluster; only the default of num_threads when cross-compiling.
ARM_CLUSTER_CORES = 4
# Features that choose a family or an instruction, by their names in /proc/cpuinfo and LLVM.
_X86_FEATURES = {
    "avx2": "avx2",
    "fma": "fma",
    "f16c": "f16c",
    "avx512f": "avx512f",
    "avx512bw": "avx512bw",
    "avx512dq": "avx512dq",
    "avx512vl": "avx512vl",
    "avx512cd": "avx512cd",
    "avx512_vnni": "avx512vnni",
}
_CPUINFO = pathlib.Path("/proc/cpuinfo")


def parse_cpu_flags(cpuinfo: str) -> frozenset[str] | None:
    """Flags of the first processor of an x86 ``/proc/cpuinfo``; None if it lists none."""
    for line in cpuinfo.splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "flags":
            return frozenset(value.split())
    return None


def feature_attributes(mcpu: str, flags: frozenset[str] | None) -> list[str]:
    """``mattr`` that corrects what LLVM believes of ``mcpu`` to what the machine reports.

    A virtual machine may hide features of its processor, and an unknown processor may be taken
    for an older one.
    """
    if flags is None:
        return []
    believed = set(codegen.llvm_get_cpu_features(Target({"kind": "llvm", "mcpu": mcpu})))
    return [
        f"{'+' if flag in flags else '-'}{feature}"
        for flag, feature in _X86_FEATURES.items()
        if (flag in flags) != (feature in believed)
    ]


def native_config() -> dict[str, Any]:
    """Configuration of this machine: processor, features, cores."""
    mcpu = str(codegen.llvm_get_system_cpu())
    flags = parse_cpu_flags(_CPUINFO.read_text()) if _CPUINFO.exists() else None
    config: dict[str, Any] = {
        "kind": "llvm",
        "mtriple": str(codegen.llvm_get_system_triple()),
        "mcpu": mcpu,
        "num-cores": num_cores(Target("llvm")),
        "keys": [KEY, "cpu"],
    }
    attributes = feature_attributes(mcpu, flags)
    return {**config, "mattr": attributes} if attributes else config


def _x86(mcpu: str) -> dict[str, Any]:
    return {
        "kind": "llvm",
        "mtriple": "x86_64-linux-gnu",
        "mcpu": mcpu,
        "keys": [KEY, "cpu"],
    }


def _aarch64(mcpu: str) -> dict[str, Any]:
    return {
        "kind": "llvm",
        "mtriple": "aarch64-linux-gnu",
        "mcpu": mcpu,
        "mattr": ["+neon"],
        "num-cores": ARM_CLUSTER_CORES,
        "keys": [KEY, "arm_cpu", "cpu"],
    }


def _armv7() -> dict[str, Any]:
    # The oldest core with fused multiply-adds; it schedules well for all in-order ones.
    return {
        "kind": "llvm",
        "mtriple": "armv7l-linux-gnueabihf",
        "mcpu": "cortex-a7",
        "mattr": ["+neon"],
        "mfloat-abi": "hard",
        "keys": [KEY, "arm_cpu", "cpu"],
    }


def _opencl(device: str) -> dict[str, Any]:
    return {
        "kind": "opencl",
        "device": device,
        "keys": [KEY, device, "opencl", "gpu"],
        "host": {"kind": "llvm", "mtriple": "aarch64-linux-gnu"},
    }


_ARM_CORES = (
    "cortex-a53",
    "cortex-a55",
    "cortex-a72",
    "cortex-a76",
    "cortex-a78",
    "cortex-x1",
    "neoverse-n1",
)


def tag_configs() -> dict[str, dict[str, Any]]:
    """Configuration of every tag."""
    return {
        PREFIX + "native": native_config(),
        PREFIX + "x86-avx2": _x86("x86-64-v3"),
        PREFIX + "x86-avx512": _x86("x86-64-v4"),
        **{PREFIX + core: _aarch64(core) for core in _ARM_CORES},
        PREFIX + "armv7": _armv7(),
        PREFIX + "mali": _opencl("mali"),
        PREFIX + "adreno": _opencl("adreno"),
    }


def targets() -> list[str]:
    """Names of the project's tags."""
    return sorted(str(name) for name in list_tags() if str(name).startswith(PREFIX))


def resolve(target: str | dict[str, Any] | Target) -> Target:
    """The target that a tag, a configuration or a Target stands for.

    Raises
    ------
    ValueError
        If the tag is unknown, TVM cannot read the configuration, or the key ``pattern`` is missing.
    TypeError
        If ``target`` is something else.
    """
    if isinstance(target, str) and target.startswith(PREFIX) and target not in targets():
        raise ValueError(
            f"unknown target {target!r}; expected one of {targets()} or any TVM target with the"
            f" key {KEY!r}"
        )
    if not isinstance(target, str | dict | Target):
        raise TypeError(
            f"a target is a tag, a dict or a tvm.target.Target, got {type(target).__name__}"
        )
    try:
        resolved = target if isinstance(target, Target) else Target(target)
    except (ValueError, TypeError, RuntimeError) as error:
        raise ValueError(
            f"TVM cannot read the target {target!r}: {error}; expected one of {targets()} or any"
            f" TVM target with the key {KEY!r}"
        ) from error
    if KEY not in resolved.keys:
        raise ValueError(
            f"target {target!r} has the keys {[str(k) for k in resolved.keys]} without {KEY!r};"
            f" use one of {targets()} or add {KEY!r} to its keys"
        )
    return resolved


for _name, _config in tag_configs().items():
    if _name not in list_tags():
        register_tag(_name, _config)
