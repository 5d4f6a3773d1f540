"""CPUs that no other device knows: 128-bit vectors, which LLVM can lower everywhere."""

from __future__ import annotations

from tvm.target import Target

from ..device import Device, Registry
from .family import Family

GENERIC = Family("generic", vector_width=4, vector_registers=16, temporaries=4, prefetch=0)


def matches(target: Target) -> bool:
    """Whether LLVM generates the code."""
    return target.kind.name == "llvm"


def register(registry: Registry) -> None:
    """Add the device."""
    registry.add(Device(GENERIC.name, matches, GENERIC, fallback=True))
