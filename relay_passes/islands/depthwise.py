"""Depthwise convolutions: ``depthwise_conv2d`` -> ``plane_depthwise``."""

from __future__ import annotations

import numpy as np
from tvm import relax, tirx
from tvm.ir import Expr, GlobalVar, Var

from ..dataflow import array_of, shape_of
from ..markers import ConvParams, Marker, layout_from_list, parse
from .conv2d import conv_on_planes
from .operator import IslandOperator, Islands, PlaneOp
from .scheduling import Scheduling

NAME = "plane_depthwise"


def recognize(value: Expr, _out: Expr) -> PlaneOp | None:
    """A ``depthwise_conv2d`` marker."""
    marker = parse(value)
    if marker is None or marker.op != "depthwise_conv2d":
        return None
    return conv_on_planes(marker, NAME)


def lower(marker: Marker, out: Var, scheduling: Scheduling) -> tuple[GlobalVar, list[Expr]]:
    """The operator with its weights ``[channels, kh, kw]``."""
    params = ConvParams.from_dict(marker.params)
    layouts = [layout_from_list(marker.params[name]) for name in ("in_layout", "out_layout")]
    x, weight, *bias = marker.tensors
    value = array_of(weight)
    (batch, in_channels), channels = shape_of(x)[:2], shape_of(out)[1]
    target = scheduling.backend.planes(str(value.dtype))

    def make() -> tirx.PrimFunc:
        return scheduling.operators.depthwise_conv(
            batch,
            channels,
            *layouts,
            params.geometry,
            target,
            params.epilogue,
            multiplier=channels // in_channels,
        )

    key = (NAME, batch, in_channels, channels, params.geometry, target, *layouts, params.epilogue)
    gv = scheduling.function(key, make)
    return gv, [x, relax.const(np.ascontiguousarray(value[:, 0])), *bias]


def register(islands: Islands) -> None:
    """Add the operator."""
    islands.add(IslandOperator(NAME, lower, recognize, starts=True))
