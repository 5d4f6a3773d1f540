"""A convolution to choose a configuration for, whatever it is computed in."""

from __future__ import annotations

from typing import Any

from .conv_task import ConvTask
from .devices import DEVICES
from .schedules.choose import ConvSchedules, schedules_of
from .schedules.cpu_int8 import task as int8
from .schedules.cpu_int8.task import Int8Task

Task = ConvTask | Int8Task


def task_from_dict(data: dict[str, Any]) -> Task:
    """Inverse of ``as_dict`` of either.

    Raises
    ------
    ValueError
        If the data are those of no task.
    """
    return (Int8Task if data.get("dtype") == int8.DTYPE else ConvTask).from_dict(data)


def recorded_schedules(data: dict[str, Any]) -> tuple[ConvSchedules, dict[str, Any]]:
    """Of a task's plain data: its schedules, and the knobs that came after its first records.

    Raises
    ------
    ValueError
        If there is no device of its name.
    """
    if data.get("dtype") == int8.DTYPE:
        return int8.SCHEDULES, {}
    facts = DEVICES.facts(str(data.get("family")))
    schedules = schedules_of(facts)
    return schedules, schedules.before(facts)
