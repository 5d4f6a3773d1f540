"""Which schedules compute a convolution on a device: what its facts stand for.

Everything that plans, tunes or reports a convolution asks here, so that it knows no device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from . import cost, legality
from . import search_space as cpu
from .config import ConvConfig
from .family import Family
from .gemm.conv import schedule_gemm_conv
from .opencl import cost as opencl_cost
from .opencl import space as opencl
from .opencl.config import GpuConfig, GpuFacts
from .opencl.conv import schedule_opencl_conv
from .pattern_conv import schedule_pattern_conv

#: Clock of a CPU as long as nothing is measured.
NOMINAL_HZ = 2.5e9

Facts = Family | GpuFacts
#: A ConvConfig or a GpuConfig; who reads the knobs of one knows the device.
Config = Any


@dataclass(frozen=True)
class ConvSchedules:
    """The schedules of one kind of device.

    Parameters
    ----------
    config : type
        Dataclass of the knobs, with ``as_dict`` and ``from_dict``.
    space : callable
        ``(shape, facts)`` -> all legal configs, in a fixed order.
    default : callable
        ``(shape, facts)`` -> the level-0 config.
    cost : callable
        ``(shape, config, facts)`` -> estimate of which only the order counts.
    illegal : callable
        ``(shape, config, facts)`` -> why the config cannot be used, or None.
    primfunc : callable
        ``(workload, config, num_threads)`` -> the scheduled operator.
    seconds : callable
        ``facts`` -> seconds of one unit of ``cost``, as long as nothing is measured.
    before : callable
        ``facts`` -> knobs that came later, with the values that the code had without them.
    """

    config: Any
    space: Callable[[Any, Any], Iterator[Any]]
    default: Callable[[Any, Any], Any]
    cost: Callable[[Any, Any, Any], float]
    illegal: Callable[[Any, Any, Any], str | None]
    primfunc: Callable[[Any, Any, int], Any]
    seconds: Callable[[Any], float]
    before: Callable[[Any], dict[str, Any]] = lambda _facts: {}


def _cpu_primfunc(workload: Any, config: ConvConfig, num_threads: int) -> Any:
    schedule = schedule_gemm_conv if config.is_gemm else schedule_pattern_conv
    return schedule(workload, config, num_threads)


CPU = ConvSchedules(
    ConvConfig,
    cpu.search_space,
    cpu.default_config,
    cost.estimate_cost,
    legality.illegal_for,
    _cpu_primfunc,
    lambda facts: 1.0 / (NOMINAL_HZ * facts.fma_ports),
    lambda facts: {"fetch_ahead": facts.fetch_ahead},
)
OPENCL = ConvSchedules(
    GpuConfig,
    opencl.search_space,
    opencl.default_config,
    opencl_cost.estimate_cost,
    opencl.illegal_for,
    schedule_opencl_conv,
    lambda _facts: 1e-6,
)


def schedules_of(facts: Facts) -> ConvSchedules:
    """The schedules for a device with these facts."""
    return OPENCL if isinstance(facts, GpuFacts) else CPU


def vector_facts(facts: Facts | None) -> Family | None:
    """The facts of a processor's vector units; None on devices without."""
    return facts if isinstance(facts, Family) else None
