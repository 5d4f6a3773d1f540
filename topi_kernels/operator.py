"""Plan one convolution: choose a configuration and pack the weights for it.

:class:`~topi_kernels.conv_task.ConvTask` analysed the weights before; these are separate steps on
purpose.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm import tirx

from .compute import naive_pattern_conv
from .conv_task import ConvTask, check_weight
from .fkw import FKW, pack, validate
from .gemm_weights import GemmCode, GemmWeights, pack_gemm
from .schedules.choose import Config
from .schedules.config import COPIED
from .schedules.gemm.space import positions_of
from .schedules.tile import tile_grid
from .schedules.tile_copy import copied_floats
from .structure import Structure, determine
from .tap_lists import TapCode, TapLists, pack_taps, validate_taps
from .workload import ConvWorkload


@dataclass(frozen=True)
class ConvPlan:
    """A convolution ready to be built."""

    task: ConvTask
    workload: ConvWorkload
    config: Config
    packed: FKW | TapLists | GemmWeights
    num_threads: int
    structure: Structure

    @property
    def arrays(self) -> list[np.ndarray]:
        """Packed constants in the operator's argument order."""
        return self.packed.arrays

    @property
    def group(self) -> int:
        """Filters that share kernels and patterns."""
        return self.config.group

    @property
    def sparsity(self) -> float:
        """Fraction of zero weights."""
        return 1.0 - self.task.density

    def primfunc(self) -> tirx.PrimFunc:
        """The scheduled operator; parameters ``(x, *arrays, [bias], [residual], out)``."""
        return self.task.schedules.primfunc(self.workload, self.config, self.num_threads)

    def naive_primfunc(self) -> tirx.PrimFunc:
        """The specification of the operator: same parameters, no schedule."""
        return naive_pattern_conv(self.workload)


def plan_conv(
    task: ConvTask,
    weight: np.ndarray,
    config: Config | None = None,
    num_threads: int = 1,
    structure: Structure | None = None,
) -> ConvPlan:
    """Choose and pack.

    Parameters
    ----------
    task : ConvTask
    weight : numpy.ndarray
        ``[out_channels, in_channels, kh, kw]`` of the task's dtype.
    config : ConvConfig or GpuConfig, optional
        Default: the level-0 configuration.
    num_threads : int
        1 for a serial operator.
    structure : Structure, optional
        Which weights are kept, as the task was made with; default: what the weights say.

    Raises
    ------
    ValueError
        On weights that are not the task's or a config that is illegal for it.
    """
    weight = np.ascontiguousarray(weight)
    check_weight(weight)
    if (weight.shape, str(weight.dtype)) != (task.weight_shape, task.dtype):
        raise ValueError(
            f"the task {task.label} has {task.dtype} weights of shape {task.weight_shape}, got"
            f" {weight.dtype} of shape {weight.shape}"
        )
    if config is None:
        config = task.default_config()
    elif (reason := task.unschedulable_reason(config)) is not None:
        raise ValueError(f"config {config} is illegal here: {reason}")
    structure = structure or determine(weight)
    packed: FKW | TapLists | GemmWeights
    if getattr(config, "is_gemm", False):
        packed, facts = _packed_matrices(task, weight, config)
    elif getattr(config, "has_lists", False):
        packed, facts = _packed_taps(task, weight, config, structure.kept)
    else:
        packed, facts = _packed_kernels(task, weight, config, structure.kept)
    workload = ConvWorkload(
        batch=task.batch,
        in_channels=task.in_channels,
        out_channels=task.out_channels,
        geometry=task.geometry,
        in_layout=task.in_layout,
        out_layout=task.out_layout,
        group=config.group,
        structure=task.structure,
        epilogue=task.epilogue,
        residual_layout=task.residual_layout,
        dtype=task.dtype,
        **facts,
    )
    return ConvPlan(task, workload, config, packed, num_threads, structure)


def _packed_kernels(
    task: ConvTask, weight: np.ndarray, config: Config, kept: np.ndarray
) -> tuple[FKW, dict[str, Any]]:
    """The layer in FKW, and what its workload says of it."""
    fkw = pack(weight, config.group, task.patterns, task.structure, kept)
    validate(fkw)
    return fkw, {
        "patterns": fkw.patterns,
        "num_kernels": fkw.num_kernels,
        "num_weights": int(fkw.weight_start[-1]),
        "index_encoding": fkw.index_encoding,
        "count_dtype": str(fkw.pattern_count.dtype),
        "num_slots": len(fkw.filter_order),
    }


def _packed_taps(
    task: ConvTask, weight: np.ndarray, config: Config, kept: np.ndarray
) -> tuple[TapLists, dict[str, Any]]:
    """The layer as tap lists, and what its workload says of it."""
    if config.body == COPIED:
        floats = copied_floats(config)
        width = config.vector_width
        code = TapCode.of_copies(task.in_channels, config.channel_block, floats, width)
    else:
        code = TapCode.of(task.geometry, task.in_layout, task.in_channels, config.channel_block)
    lists = pack_taps(weight, config.group, code, kept, share_all=task.structure == "dense")
    validate_taps(lists)
    return lists, {
        "patterns": task.patterns,
        "num_kernels": lists.num_entries,
        "num_weights": lists.num_entries * config.group,
        "index_encoding": str(lists.offset.dtype),
        "count_dtype": "int32",
        "tap_code": code,
        "num_slots": len(lists.filter_order),
    }


def _packed_matrices(
    task: ConvTask, weight: np.ndarray, config: Config
) -> tuple[GemmWeights, dict[str, Any]]:
    """The dense layer as matrices, and what its workload says of it."""
    code = GemmCode(config.tile_outputs, config.group)
    packed = pack_gemm(weight, code)
    return packed, {
        "patterns": task.patterns,
        "num_kernels": task.in_channels * len(code.starts(task.out_channels)),
        "num_weights": packed.weights.size,
        "index_encoding": "",
        "count_dtype": "",
        "num_slots": len(code.starts(task.out_channels)) * code.block,
        "gemm_code": code,
    }


def wasted_share(plan: ConvPlan) -> float:
    """Fraction of a plan's multiply-adds that fall on tile overlaps and over-run columns."""
    w, c = plan.workload, plan.config
    if c.is_gemm:
        total = positions_of(w.out_layout, c.tile_outputs)
        return 1.0 - total / (-(-total // c.positions) * c.positions)
    _, across = tile_grid(w, c)
    rows = c.computed_rows(w.out_layout.band_height)
    computed = rows * across * c.tile_cols * c.pixel_lanes
    return 1.0 - w.out_layout.height * w.out_layout.width / computed
