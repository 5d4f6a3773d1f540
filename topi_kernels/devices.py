"""The devices there are. A new one is a file with its facts beside these, and its name here."""

from __future__ import annotations

from .device import Registry
from .schedules import adreno, arm_cpu, generic, mali, x86

DEVICES = Registry()
for _module in (adreno, arm_cpu, generic, mali, x86):
    _module.register(DEVICES)
