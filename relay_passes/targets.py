"""The target tags ``pattern/...`` and how a target is chosen.

Any target of a device that the project knows will do: a tag, a configuration, or a plain
``Target("llvm")``, which means the least that every processor of this machine's kind can do. The
tags are shorthands for common machines, registered with TVM when this module is imported. The key
``pattern`` marks a target that is resolved.
"""

from __future__ import annotations

import difflib
import pathlib
from typing import Any

from tvm.target import Target, codegen, list_tags, register_tag

from topi_kernels.device import num_cores
from topi_kernels.devices import DEVICES

KEY = "pattern"
PREFIX = "pattern/"
#: Kinds of targets that run where they are called.
CPU_KINDS = ("llvm", "c")
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
    features = {flag: name for device in DEVICES for flag, name in device.cpu_flags.items()}
    believed = set(codegen.llvm_get_cpu_features(Target({"kind": "llvm", "mcpu": mcpu})))
    return [
        f"{'+' if flag in flags else '-'}{feature}"
        for flag, feature in features.items()
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


def tag_configs() -> dict[str, dict[str, Any]]:
    """Configuration of every tag."""
    known = {
        PREFIX + tag: {**config, "keys": [KEY, *config["keys"]]}
        for device in DEVICES
        for tag, config in device.tags.items()
    }
    return {PREFIX + "native": native_config(), **known}


def targets() -> list[str]:
    """Names of the project's tags."""
    return sorted(str(name) for name in list_tags() if str(name).startswith(PREFIX))


def resolve(
    target: str | dict[str, Any] | Target, host: str | dict[str, Any] | Target | None = None
) -> Target:
    """The target that a tag, a configuration or a Target stands for.

    Parameters
    ----------
    target : str, dict or tvm.target.Target
    host : str, dict or tvm.target.Target, optional
        The CPU beside a GPU: ``native``, ``cortex-a76`` and so on, or any target of a CPU. Default:
        what ``target`` says, which is 64-bit ARM for the tags.

    Raises
    ------
    ValueError
        If the tag is unknown, TVM cannot read the configuration, no device matches, or ``host`` is
        no CPU or is given for one.
    TypeError
        If ``target`` is something else.
    """
    if host is not None:
        return _with_host(resolve(target), host)
    if isinstance(target, str) and target.startswith(PREFIX) and target not in targets():
        raise ValueError(
            f"unknown target {target!r}; expected one of {targets()} or a TVM target of one of"
            f" the devices {DEVICES.names()}"
        )
    if not isinstance(target, str | dict | Target):
        raise TypeError(
            f"a target is a tag, a dict or a tvm.target.Target, got {type(target).__name__}"
        )
    try:
        resolved = target if isinstance(target, Target) else Target(target)
    except (ValueError, TypeError, RuntimeError) as error:
        raise ValueError(
            f"TVM cannot read the target {target!r}: {error}; expected one of {targets()} or a"
            f" TVM target of one of the devices {DEVICES.names()}"
        ) from error
    _check_cpu(resolved)
    if KEY in resolved.keys:
        return resolved
    DEVICES.of(resolved)
    return Target({**resolved.export(), "keys": [KEY, *map(str, resolved.keys)]})


def _check_cpu(target: Target) -> None:
    """LLVM would say so at each function and go on with a processor of its own choice."""
    cpu = target.attrs.get("mcpu")
    if target.kind.name != "llvm" or not cpu:
        return
    triple = str(target.attrs.get("mtriple") or codegen.llvm_get_system_triple())
    if codegen.llvm_is_valid_cpu(str(cpu), triple):
        return
    known = sorted(
        map(str, codegen.llvm_get_cpu_archlist(Target({"kind": "llvm", "mtriple": triple})))
    )
    near = difflib.get_close_matches(str(cpu), known, n=5) or known
    raise ValueError(
        f"LLVM knows no processor {str(cpu)!r} of {triple}; expected mcpu to be one of its names,"
        f" such as {', '.join(near)}, or one of the targets {targets()}"
    )


def _with_host(target: Target, host: str | dict[str, Any] | Target) -> Target:
    """``target`` with another host."""
    if target.kind.name in CPU_KINDS:
        raise ValueError(
            f"got the host {host!r} for the target {target.attrs.get('mcpu', target.kind.name)!s},"
            " which is a CPU itself; a host belongs to a GPU, such as pattern/mali"
        )
    tag = PREFIX + host if isinstance(host, str) and "/" not in host else host
    try:
        cpu = resolve(tag)
    except (ValueError, TypeError) as error:
        raise type(error)(f"the host: {error}") from None
    if cpu.kind.name not in CPU_KINDS:
        raise ValueError(
            f"the host {host!r} is of the kind {cpu.kind.name}, expected a CPU, such as native"
        )
    return Target({**target.export(), "host": cpu.export()})


for _name, _config in tag_configs().items():
    if _name not in list_tags():
        register_tag(_name, _config)
