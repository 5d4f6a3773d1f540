"""Operators on planes, for the device and the layouts at hand.

The same names as in :mod:`topi_kernels.plane_ops` and :mod:`topi_kernels.plane_windows`; which
schedules compute them follows from the target and from the order of the pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tvm import tirx

from . import channel_select as cpu_channel_select
from . import channelwise as cpu_channelwise
from . import layout_ops, plane_ops, plane_windows
from . import matvec as cpu_matvec
from . import pixel_shuffle as cpu_pixel_shuffle
from .channel_select import Pick
from .channelwise import ChannelTerms
from .devices import DEVICES
from .geometry import ConvGeometry
from .layout import PlaneLayout
from .matvec import MatvecConfig
from .pixel_shuffle import Phases
from .plane_ops import PlaneTarget
from .schedules.choose import vector_facts
from .schedules.opencl import depthwise as opencl_depthwise
from .schedules.opencl import matvec as opencl_matvec
from .schedules.opencl import planes as opencl_planes
from .workload import NO_EPILOGUE, Epilogue


def _is_gpu(target: PlaneTarget) -> bool:
    return DEVICES.named(target.family).kind == "opencl"


def _schedules(plain: Any, target: PlaneTarget, *layouts: PlaneLayout) -> Any:
    """The module whose functions take these layouts on this device."""
    if _is_gpu(target):
        return opencl_planes
    return layout_ops if any(layout.is_interleaved for layout in layouts) else plain


def pack(batch: int, channels: int, layout: PlaneLayout, target: PlaneTarget) -> tirx.PrimFunc:
    """See :func:`topi_kernels.plane_ops.pack`."""
    return _schedules(plane_ops, target, layout).pack(batch, channels, layout, target)


def unpack(batch: int, channels: int, layout: PlaneLayout, target: PlaneTarget) -> tirx.PrimFunc:
    """See :func:`topi_kernels.plane_ops.unpack`."""
    return _schedules(plane_ops, target, layout).unpack(batch, channels, layout, target)


def elementwise(
    batch: int,
    channels: int,
    in_layouts: tuple[PlaneLayout, ...],
    out_layout: PlaneLayout,
    target: PlaneTarget,
    operator: str = "add",
    activation: str = "none",
    bounds: tuple[float, float] = (0.0, 6.0),
) -> tirx.PrimFunc:
    """See :func:`topi_kernels.plane_ops.elementwise`."""
    schedules = _schedules(plane_ops, target, *in_layouts, out_layout)
    return schedules.elementwise(
        batch, channels, in_layouts, out_layout, target, operator, activation, bounds
    )


def channelwise(
    batch: int,
    channels: int,
    in_layout: PlaneLayout,
    out_layout: PlaneLayout,
    terms: ChannelTerms,
    target: PlaneTarget,
) -> tirx.PrimFunc:
    """See :func:`topi_kernels.channelwise.channelwise`."""
    schedules = _schedules(cpu_channelwise, target, in_layout, out_layout)
    return schedules.channelwise(batch, channels, in_layout, out_layout, terms, target)


def channel_select(
    batch: int,
    channels: int,
    in_channels: Sequence[int],
    in_layouts: Sequence[PlaneLayout],
    out_layout: PlaneLayout,
    picks: Sequence[Pick],
    target: PlaneTarget,
) -> tirx.PrimFunc:
    """See :func:`topi_kernels.channel_select.channel_select`; for processors."""
    return cpu_channel_select.channel_select(
        batch, channels, in_channels, in_layouts, out_layout, picks, target
    )


def max_pool(
    batch: int,
    channels: int,
    in_layout: PlaneLayout,
    out_layout: PlaneLayout,
    window: ConvGeometry,
    target: PlaneTarget,
) -> tirx.PrimFunc:
    """See :func:`topi_kernels.plane_windows.max_pool`."""
    schedules = _schedules(plane_windows, target, in_layout, out_layout)
    return schedules.max_pool(batch, channels, in_layout, out_layout, window, target)


def avg_pool(
    batch: int,
    channels: int,
    in_layout: PlaneLayout,
    out_layout: PlaneLayout,
    window: ConvGeometry,
    target: PlaneTarget,
    *,
    count_include_pad: bool,
) -> tirx.PrimFunc:
    """See :func:`topi_kernels.plane_windows.avg_pool`."""
    schedules = _schedules(plane_windows, target, in_layout, out_layout)
    return schedules.avg_pool(
        batch, channels, in_layout, out_layout, window, target, count_include_pad=count_include_pad
    )


def pixel_shuffle(
    batch: int,
    channels: int,
    in_layout: PlaneLayout,
    out_layout: PlaneLayout,
    phases: Phases,
    target: PlaneTarget,
) -> tirx.PrimFunc:
    """See :func:`topi_kernels.pixel_shuffle.pixel_shuffle`; for processors."""
    return cpu_pixel_shuffle.pixel_shuffle(batch, channels, in_layout, out_layout, phases, target)


def global_avg_pool(
    batch: int, channels: int, layout: PlaneLayout, target: PlaneTarget, *, keep_dims: bool = True
) -> tirx.PrimFunc:
    """See :func:`topi_kernels.plane_ops.global_avg_pool`."""
    schedules = _schedules(plane_ops, target, layout)
    return schedules.global_avg_pool(batch, channels, layout, target, keep_dims=keep_dims)


def depthwise_conv(
    batch: int,
    channels: int,
    in_layout: PlaneLayout,
    out_layout: PlaneLayout,
    window: ConvGeometry,
    target: PlaneTarget,
    epilogue: Epilogue = NO_EPILOGUE,
    multiplier: int = 1,
) -> tirx.PrimFunc:
    """See :func:`topi_kernels.plane_windows.depthwise_conv`."""
    make = opencl_depthwise if _is_gpu(target) else plane_windows
    return make.depthwise_conv(
        batch, channels, in_layout, out_layout, window, target, epilogue, multiplier
    )


def dense_config(rows: int, target: PlaneTarget) -> MatvecConfig:
    """The register tile of a dense product of ``rows`` rows."""
    facts = vector_facts(DEVICES.facts(target.family))
    return MatvecConfig.fitting(rows, facts.vector_registers) if facts else MatvecConfig()


def matvec(
    rows: int, k: int, n: int, target: PlaneTarget, config: MatvecConfig | None = None
) -> tirx.PrimFunc:
    """See :func:`topi_kernels.matvec.matvec`."""
    make = opencl_matvec if _is_gpu(target) else cpu_matvec
    return make.matvec(rows, k, n, target, config)
