"""What a device is, and the registry that finds the one a Target means.

This file and the files of the devices are the only places that inspect a Target.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tvm.ir.transform import Pass
from tvm.target import Target, codegen

from .schedules.choose import Facts


@dataclass(frozen=True)
class Device:
    """One kind of device.

    Parameters
    ----------
    name : str
        Stable: tuning records and reports hold it. A Target that has it among its keys means it.
    matches : callable
        ``Target -> bool``: whether a Target that names no device means this one.
    facts : Family or GpuFacts or None
        What the schedules must know; None for a device that has no schedules yet.
    why_no_float16 : callable, optional
        ``Target -> str``: why it does not compute in float16, empty if it does. Default: it has no
        schedules for it.
    tags : mapping of str to dict, optional
        Target configurations of common machines of this kind, by the name after ``pattern/``.
    fallback : bool
        Only asked when no other device matches.
    kind : str
        What TVM calls such devices: ``cpu``, ``opencl``.
    words : tuple of str
        What the names of such devices have in them, as their drivers say them.
    passes : callable, optional
        Module passes that follow the project's own and come before what TVM lowers.
    int8 : callable, optional
        ``Target -> str``: the instructions that multiply bytes, by their name in
        :mod:`topi_kernels.schedules.cpu_int8.isa`; empty if it has none of these.
    cpu_flags : mapping of str to str, optional
        Features that choose such a device or one of its instructions: the flag in
        ``/proc/cpuinfo`` and LLVM's name.
    records_of : str
        Name of a device of the same instructions, whose tuning records serve this one too.
    """

    name: str
    matches: Callable[[Target], bool]
    facts: Facts | None = None
    why_no_float16: Callable[[Target], str] | None = None
    tags: Mapping[str, dict[str, Any]] = field(default_factory=dict)
    fallback: bool = False
    kind: str = "cpu"
    words: tuple[str, ...] = ()
    passes: Callable[[], Sequence[Pass]] = tuple
    int8: Callable[[Target], str] | None = None
    cpu_flags: Mapping[str, str] = field(default_factory=dict)
    records_of: str = ""


class Registry:
    """Devices by name; which one a Target means does not depend on the order they came in."""

    def __init__(self) -> None:
        self._devices: dict[str, Device] = {}

    def add(self, device: Device) -> None:
        """Register a device.

        Raises
        ------
        ValueError
            If there is one of that name.
        """
        if device.name in self._devices:
            raise ValueError(
                f"a device {device.name!r} is registered already; choose another name, or remove"
                " that one first"
            )
        self._devices[device.name] = device

    def remove(self, name: str) -> None:
        """Take a device out again."""
        self.named(name)
        del self._devices[name]

    def __iter__(self) -> Any:
        return iter(self._devices.values())

    def names(self, *, with_schedules: bool = False) -> list[str]:
        """Names of all devices, or of those that have schedules, sorted."""
        return sorted(d.name for d in self if d.facts is not None or not with_schedules)

    def named(self, name: str) -> Device:
        """The device of that name.

        Raises
        ------
        ValueError
            If there is none.
        """
        if name not in self._devices:
            raise ValueError(f"unknown device {name!r}; expected one of {self.names()}")
        return self._devices[name]

    def facts(self, name: str) -> Facts:
        """The facts of the device of that name.

        Raises
        ------
        ValueError
            If there is none, or it has no schedules.
        """
        facts = self.named(name).facts
        if facts is None:
            raise ValueError(
                f"the device {name!r} has no schedules; expected one of"
                f" {self.names(with_schedules=True)}"
            )
        return facts

    def of(self, target: Target) -> Device:
        """The device that a Target means.

        Parameters
        ----------
        target : tvm.target.Target
            A device's name among its keys decides, otherwise what the devices say to its kind,
            triple, ``mcpu`` and ``mattr``.

        Raises
        ------
        ValueError
            If no device matches, or two do.
        """
        keys = {str(key) for key in target.keys}
        found = [d for d in self if d.name in keys]
        found = found or [d for d in self if not d.fallback and d.matches(target)]
        found = found or [d for d in self if d.fallback and d.matches(target)]
        if not found:
            raise ValueError(
                f"no device matches the target {target}; expected one that is one of"
                f" {self.names()}, or has one of these names among its keys"
            )
        if len(found) > 1:
            raise ValueError(
                f"the devices {sorted(d.name for d in found)} match the target {target}; put the"
                " name of one of them among its keys"
            )
        return found[0]


def architecture(target: Target) -> str:
    """First component of the LLVM triple of an ``llvm`` target, the host's triple by default."""
    triple = target.attrs.get("mtriple", None) or codegen.llvm_get_system_triple()
    return str(triple).split("-", 1)[0]


def why_no_float16(device: Device, target: Target) -> str:
    """Why a target of this device does not compute in float16; empty if it does."""
    if device.why_no_float16 is not None:
        return device.why_no_float16(target)
    return f"float16 has no schedules for the device {device.name!r}; compile the model in float32"


def num_cores(target: Target) -> int:
    """Cores to schedule for: the target's ``num-cores``, else those this process may use."""
    cores = target.attrs.get("num-cores", None)
    if cores is not None:
        return int(cores)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
