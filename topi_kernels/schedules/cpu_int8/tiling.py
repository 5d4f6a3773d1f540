"""Which tiles a config means."""

from __future__ import annotations

from .isa import DotIsa
from .tile_lines import LineTiling
from .tile_runs import RunTiling, WindowTiling
from .tiles import Tiling
from .workload import RUNS, Int8Config, Int8Workload


def tiling_of(workload: Int8Workload, config: Int8Config, isa: DotIsa) -> Tiling:
    """The tiles of a config.

    Raises
    ------
    ValueError
        If the config is of a form that the workload cannot have.
    """
    wanted = "run" if workload.pointwise else "window" if workload.by_rows else "a line"
    if (config.form if config.form in RUNS else "a line") != wanted:
        raise ValueError(f"the form {config.form!r} does not fit {workload.geometry}")
    if workload.pointwise:
        return RunTiling(workload, config, isa)
    if workload.by_rows:
        return WindowTiling(workload, config, isa)
    return LineTiling(workload, config, isa)
