"""Families to test with, from the list of devices, so that a new one is tested without a word."""

from __future__ import annotations

from topi_kernels.devices import DEVICES

#: Every device that has schedules.
FAMILIES = DEVICES.names(with_schedules=True)


#: One for each number of lanes: plane operators see little else.
PLANE_FAMILIES = sorted(
    {DEVICES.facts(name).vector_width: name for name in FAMILIES[::-1]}.values()
)
