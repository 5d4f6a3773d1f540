"""A convolution and the depthwise one that alone reads it, as one operator.

Between them lies a tensor of many planes that are each read once: in networks of inverted residuals
it is several times larger than what goes in and comes out, and where it exceeds L2 both operators
wait for it. Here a filter_group's planes are computed whole, into a buffer of a few planes, and the
depthwise convolution of these filters follows while they are near. A plane's halo is in the buffer
as it would be in the tensor.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from tvm import tirx
from tvm.tirx.script import builder as T

from ..geometry import ConvGeometry
from ..layout import PlaneLayout
from ..plane_ops import PlaneTarget, plane_arg
from ..plane_windows import DepthwisePlane
from ..primfunc import primfunc_builder
from ..row_writer import when
from ..workload import NO_EPILOGUE, ConvWorkload, Epilogue
from .config import ConvConfig
from .input_geometry import SplitGeometry, input_geometry, separate_input
from .pattern_conv import compute_tile, for_each_height
from .tile import Buffers, Tile, declare_parameters, place_of, tiles_per_image
from .tile_outputs import store_tile

NAME = "pattern_conv2d_depthwise"


@dataclass(frozen=True)
class DepthwiseStage:
    """The depthwise convolution that follows: one kernel for each filter, all taps kept.

    Parameters
    ----------
    geometry : ConvGeometry
    out_layout : PlaneLayout
    epilogue : Epilogue
        Without a residual.
    """

    geometry: ConvGeometry
    out_layout: PlaneLayout
    epilogue: Epilogue = NO_EPILOGUE


def why_not_followed(workload: ConvWorkload, config: ConvConfig) -> str | None:
    """Why a convolution cannot be one operator with the depthwise one after it, or None."""
    if config.is_gemm or config.channel_block:
        return "all filters take turns over one block of its inputs after another"
    if workload.out_layout.is_interleaved:
        return "depthwise convolutions read plain rows"
    if workload.epilogue.residual:
        return "its residual would be read plane by plane"
    if workload.dtype != "float32":
        return f"the planes between are float32, the layer is {workload.dtype}"
    return None


def _near(workload: ConvWorkload, group: int) -> ConvWorkload:
    """The workload whose outputs are the planes of one filter_group."""
    return replace(workload, batch=1, out_channels=group, num_slots=group)


def _store_near(
    buffer: Any, workload: ConvWorkload, config: ConvConfig, buffers: Buffers, tile: Tile
) -> None:
    """The tile's only store, to the planes of its filter_group."""
    tile.slots = [T.int32(number) for number in range(config.group)]
    tile.batch = T.int32(0)
    store_tile(_near(workload, config.group), config, replace(buffers, out=buffer), tile)


def _near_planes(
    workload: ConvWorkload, config: ConvConfig, buffers: Buffers, image: Any, group: Any
) -> Any:
    """Compute the planes of a filter_group: ``[filters, plane]``."""
    size, tiles = workload.out_layout.size, tiles_per_image(workload, config)
    flat = T.alloc_buffer((config.group * size,), workload.dtype, scope="global")
    store = partial(_store_near, flat)
    with T.serial(0, tiles) as number:
        place = place_of(workload, config, T.Bind(image * tiles + number))
        for_each_height(
            workload,
            config,
            place,
            lambda body: compute_tile(workload, body, buffers, place, group, store),
        )
    return T.decl_buffer((config.group, size), workload.dtype, data=flat.data)


def schedule_conv_depthwise(
    workload: ConvWorkload,
    config: ConvConfig,
    stage: DepthwiseStage,
    target: PlaneTarget,
) -> tirx.PrimFunc:
    """Scheduled PrimFunc of both convolutions, parallel over images and filter_groups.

    Parameters are ``(x, *packed weights, bias if the first has one, weight[channels, kh, kw] and
    bias[channels] of the depthwise one, out planes)``.

    Raises
    ------
    ValueError
        See :func:`why_not_followed`; or if the planes between have too little padding.
    """
    if reason := why_not_followed(workload, config):
        raise ValueError(f"{config} cannot be followed by a depthwise convolution: {reason}")
    channels, layout = workload.out_channels, workload.out_layout
    followed = DepthwisePlane(layout, stage.out_layout, stage.geometry, target, stage.epilogue)
    with primfunc_builder(NAME) as builder:
        own: dict[str, Any] = {}

        def declare() -> None:
            shape = (channels, *stage.geometry.kernel_size)
            own["weight"] = T.arg("depthwise_weight", T.Buffer(shape, target.dtype))
            if stage.epilogue.bias:
                own["bias"] = T.arg("depthwise_bias", T.Buffer((channels,), target.dtype))
            own["out"] = plane_arg("out", workload.batch, channels, stage.out_layout, target)

        buffers = declare_parameters(workload, declare)
        geometry = input_geometry(workload, config)
        buffers.geometry = geometry
        if isinstance(geometry, SplitGeometry):
            threads = target.num_threads
            buffers.x = separate_input(workload, config, geometry, buffers.x, threads)

        def planes(image: Any, group: Any) -> None:
            near = _near_planes(workload, config, buffers, image, group)
            for slot in range(config.group):
                number = buffers.filter_order[group * config.group + slot]
                c = T.Bind(T.Cast("int32", number))

                def follow(slot: int = slot, c: Any = c) -> None:
                    result = (own["out"], [image, c])
                    followed.emit((near, [slot]), result, own["weight"], own.get("bias"), c)

                is_full = workload.num_slots == channels
                when(True if is_full else c < channels, follow)

        groups = workload.num_groups
        loop = T.parallel if target.num_threads > 1 else T.serial
        with loop(0, workload.batch * groups) as task:
            planes(T.Bind(task // groups), T.Bind(task % groups))
    return builder.get()
