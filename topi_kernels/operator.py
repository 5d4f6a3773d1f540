"""Plan one convolution: analyse the weights, choose a configuration, pack.

These are three separate steps on purpose; :func:`plan_conv` only strings them together.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from tvm import tirx

from .compute import naive_pattern_conv
from .fkw import FKW, pack, validate
from .layout import PlaneLayout
from .schedules.arm_cpu import NEON, NEON_IN_ORDER, NEON_V7, NEON_WIDE
from .schedules.config import ConvConfig, Family
from .schedules.pattern_conv import schedule_pattern_conv
from .schedules.search_space import ConvShape, default_config, illegal_for
from .schedules.x86 import AVX2, AVX512
from .structure import Structure, analyse
from .workload import ConvWorkload, Epilogue

FAMILIES: dict[str, Family] = {
    f.name: f for f in (AVX512, AVX2, NEON, NEON_WIDE, NEON_IN_ORDER, NEON_V7)
}
GENERIC = Family("generic", vector_width=4, vector_registers=16, temporaries=4, prefetch=0)

MAX_ELEMENTS = 2**31 - 1


def family_of(name: str) -> Family:
    """Family by name; unknown names get conservative 128-bit vectors."""
    return FAMILIES.get(name, GENERIC)


def default_layout(
    height: int, width: int, pad: int, family: str, dtype: str = "float32"
) -> PlaneLayout:
    """Preferred plane layout of an activation.

    Rows of wide images start at vector boundaries; those of narrow images are packed tighter, since
    more of them then share a cache line. The rows of float16 keep the whole vector, which is also
    the slack that reads beyond the last row need.
    """
    align = family_of(family).of_dtype(dtype).vector_width
    while dtype == "float32" and align > 4 and align > width + pad:
        align //= 2
    return PlaneLayout.make(height, width, pad, align)


@dataclass(frozen=True)
class ConvPlan:
    """A convolution ready to be built."""

    workload: ConvWorkload
    config: ConvConfig
    fkw: FKW
    structure: Structure
    num_threads: int
    fetch_ahead: bool = False

    @property
    def arrays(self) -> list[np.ndarray]:
        """Packed constants in the operator's argument order."""
        return self.fkw.arrays

    @property
    def group(self) -> int:
        """Filters that share kernels and patterns."""
        return self.config.group

    @property
    def sparsity(self) -> float:
        """Fraction of zero weights."""
        w = self.workload
        kh, kw = w.kernel_size
        return 1.0 - self.structure.kept_weights / (w.out_channels * w.in_channels * kh * kw)

    def primfunc(self) -> tirx.PrimFunc:
        """The scheduled operator; parameters ``(x, *arrays, [bias], [residual], out)``."""
        return schedule_pattern_conv(self.workload, self.config, self.num_threads, self.fetch_ahead)

    def naive_primfunc(self) -> tirx.PrimFunc:
        """The specification of the operator: same parameters, no schedule."""
        return naive_pattern_conv(self.workload)


def conv_shape(
    weight_shape: tuple[int, int, int, int],
    structure: Structure,
    in_layout: PlaneLayout,
    out_layout: PlaneLayout,
    geometry: tuple[tuple[int, int], tuple[int, int], tuple[int, int]],
) -> ConvShape:
    """The convolution for the cost model; ``geometry`` is (stride, padding, dilation)."""
    stride, padding, dilation = geometry
    out_channels, in_channels = weight_shape[:2]
    if structure.kind == "dense":
        kernels = float(in_channels)
    elif structure.kind == "tap":
        kernels = structure.kept_weights / max(1, out_channels)
    else:
        kernels = structure.kept_kernels / max(1, out_channels)
    return ConvShape(
        in_channels,
        out_channels,
        stride,
        dilation,
        padding,
        in_layout,
        out_layout,
        structure.patterns,
        kernels,
        structure.max_group,
    )


def _check(weight: np.ndarray, batch: int, in_layout: PlaneLayout, out_layout: PlaneLayout) -> None:
    if weight.ndim != 4:
        raise ValueError(f"weights are [out, in, kh, kw], got shape {weight.shape}")
    if batch < 1:
        raise ValueError(f"batch must be >= 1, got {batch}")
    if not np.isfinite(weight).all():
        raise ValueError("weights contain NaN or Inf; check the checkpoint before compiling")
    largest = batch * max(weight.shape[1] * in_layout.size, weight.shape[0] * out_layout.size)
    if largest > MAX_ELEMENTS:
        raise ValueError(
            f"an activation of {largest} elements exceeds 32-bit indexing; reduce the batch"
        )


def _legal(config: ConvConfig, shape: ConvShape, family: Family) -> ConvConfig:
    reason = illegal_for(shape, config, family)
    if reason is not None:
        raise ValueError(f"config {config} is illegal here: {reason}")
    return config


def plan_conv(
    weight: np.ndarray,
    *,
    batch: int,
    in_layout: PlaneLayout,
    out_layout: PlaneLayout,
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0),
    dilation: tuple[int, int] = (1, 1),
    epilogue: Epilogue | None = None,
    residual_layout: PlaneLayout | None = None,
    family: str,
    num_threads: int = 1,
    config: ConvConfig | None = None,
) -> ConvPlan:
    """Analyse, choose and pack.

    Parameters
    ----------
    weight : numpy.ndarray
        float32 ``[out_channels, in_channels, kh, kw]``, zeros are removed weights.
    batch : int
    in_layout, out_layout, residual_layout : PlaneLayout
    stride, dilation : tuple of (int, int)
    padding : tuple of (int, int)
        ``(top, left)``.
    epilogue : Epilogue, optional
    family : str
        Name of a processor family, see :mod:`topi_kernels.target_family`.
    num_threads : int
        1 for a serial operator.
    config : ConvConfig, optional
        Default: the level-0 configuration.

    Raises
    ------
    ValueError
        On unusable weights or a config that is illegal for this convolution.
    """
    weight = np.ascontiguousarray(weight)
    _check(weight, batch, in_layout, out_layout)
    structure = analyse(weight)
    machine = family_of(family).of_dtype(str(weight.dtype))
    shape = conv_shape(weight.shape, structure, in_layout, out_layout, (stride, padding, dilation))
    config = default_config(shape, machine) if config is None else _legal(config, shape, machine)
    fkw = pack(weight, config.group, structure.patterns, structure.kind)
    validate(fkw)
    out_channels, in_channels, kh, kw = weight.shape
    workload = ConvWorkload(
        batch=batch,
        in_channels=in_channels,
        out_channels=out_channels,
        kernel_size=(kh, kw),
        stride=stride,
        padding=padding,
        dilation=dilation,
        in_layout=in_layout,
        out_layout=out_layout,
        patterns=fkw.patterns,
        group=config.group,
        num_kernels=fkw.num_kernels,
        num_weights=int(fkw.weight_start[-1]),
        num_slots=len(fkw.filter_order),
        structure=structure.kind,
        index_encoding=fkw.index_encoding,
        count_dtype=str(fkw.pattern_count.dtype),
        epilogue=epilogue or Epilogue(),
        residual_layout=residual_layout,
        dtype=str(weight.dtype),
    )
    return ConvPlan(workload, config, fkw, structure, num_threads, machine.fetch_ahead)


def wasted_share(plan: ConvPlan) -> float:
    """Fraction of a plan's multiply-adds that fall on tile overlaps and over-run columns."""
    w, c = plan.workload, plan.config
    columns = math.ceil(w.out_layout.width / c.pixel_lanes)
    tiles = math.ceil(w.out_layout.height / c.tile_rows) * math.ceil(columns / c.tile_cols)
    computed = tiles * c.tile_rows * c.tile_cols * c.pixel_lanes
    return 1.0 - w.out_layout.height * w.out_layout.width / computed
