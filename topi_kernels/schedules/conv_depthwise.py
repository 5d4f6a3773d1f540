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
from .family import Family
from .input_geometry import SplitGeometry, input_geometry, separate_input
from .pattern_conv import compute_tile, for_each_height
from .tile import Buffers, Tile, declare_parameters, place_of, tiles_per_image
from .tile_outputs import store_tile

NAME = "pattern_conv2d_depthwise"
# How much of L2 the planes between may fill.
PLANES_SHARE = 0.25
TASKS_PER_THREAD = 4


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


def groups_together(workload: ConvWorkload, group: int, family: Family, num_threads: int) -> int:
    """Filter_groups whose planes are computed tile by tile before the depthwise convolution.

    They share the tile's input in L1; their planes fill a part of L2.
    """
    fitting = int(PLANES_SHARE * family.l2_floats) // (group * workload.out_layout.size)
    if num_threads > 1:
        tasks = TASKS_PER_THREAD * num_threads
        fitting = min(fitting, workload.batch * workload.num_groups // tasks)
    return max(1, min(fitting, workload.num_groups))


@dataclass(frozen=True)
class _Share:
    """The filter_groups of a task: at most ``most`` from ``first`` on, and their planes."""

    image: Any
    first: Any
    most: int
    planes: Any

    def store(
        self,
        turn: Any,
        workload: ConvWorkload,
        config: ConvConfig,
        buffers: Buffers,
        tile: Tile,
    ) -> None:
        """The only store of the tile that is the ``turn``-th group's, to its planes."""
        filters = self.most * config.group
        near = replace(workload, batch=1, out_channels=filters, num_slots=filters)
        tile.slots = [T.Bind(turn * config.group + number) for number in range(config.group)]
        tile.batch = T.int32(0)
        store_tile(near, config, replace(buffers, out=self.planes), tile)


def _compute_planes(
    workload: ConvWorkload, config: ConvConfig, buffers: Buffers, share: _Share
) -> None:
    """All planes of a share, tile by tile."""
    tiles = tiles_per_image(workload, config)
    turns = T.Bind(T.min(share.most, workload.num_groups - share.first))
    with T.serial(0, tiles) as number, T.serial(0, turns) as turn:
        place = place_of(workload, config, T.Bind(share.image * tiles + number))
        group = T.Bind(share.first + turn)
        store = partial(share.store, turn)
        for_each_height(
            workload,
            config,
            place,
            lambda body: compute_tile(workload, body, buffers, place, group, store),
        )


def schedule_conv_depthwise(
    workload: ConvWorkload,
    config: ConvConfig,
    stage: DepthwiseStage,
    target: PlaneTarget,
    together: int = 1,
) -> tirx.PrimFunc:
    """Scheduled PrimFunc of both convolutions, parallel over images and filter_groups.

    Parameters are ``(x, *packed weights, bias if the first has one, weight[channels, kh, kw] and
    bias[channels] of the depthwise one, out planes)``; ``together`` is what
    :func:`groups_together` says.

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
        buffers.geometry = geometry = input_geometry(workload, config)
        if isinstance(geometry, SplitGeometry):
            threads = target.num_threads
            buffers.x = separate_input(workload, config, geometry, buffers.x, threads)
        shares, filters = -(-workload.num_groups // together), together * config.group
        loop = T.parallel if target.num_threads > 1 else T.serial
        with loop(0, workload.batch * shares) as task:
            image, first = T.Bind(task // shares), T.Bind(task % shares * together)
            flat = T.alloc_buffer((filters * layout.size,), workload.dtype, scope="global")
            near = T.decl_buffer((filters, layout.size), workload.dtype, data=flat.data)
            _compute_planes(workload, config, buffers, _Share(image, first, together, flat))
            start = T.Bind(first * config.group)
            with T.serial(0, T.min(filters, workload.num_slots - start)) as slot:
                c = T.Bind(T.Cast("int32", buffers.filter_order[start + slot]))

                def follow(slot: Any = slot, c: Any = c) -> None:
                    result = (own["out"], [image, c])
                    followed.emit((near, [slot]), result, own["weight"], own.get("bias"), c)

                when(True if workload.num_slots == channels else c < channels, follow)
    return builder.get()
