"""The mean over the image: ``plane_global_pool``."""

from __future__ import annotations

from tvm import tirx
from tvm.ir import Expr

from ..dataflow import is_float_image, op_name, shape_of
from .operator import Islands, PlaneCall, PlaneOp, on_planes, placed

NAME = "plane_global_pool"


def recognize(value: Expr, out: Expr) -> PlaneOp | None:
    """A ``mean`` over height and width, or an adaptive average pool to one pixel."""
    name = op_name(value)
    if name == "relax.mean":
        if not is_float_image(value.args[0]) or value.attrs.axis is None:
            return None
        keep_dims = bool(value.attrs.keepdims)
        is_global = {int(axis) % 4 for axis in value.attrs.axis} == {2, 3}
    elif name == "relax.nn.adaptive_avg_pool2d":
        if not is_float_image(value.args[0]):
            return None
        keep_dims = True
        is_global = str(value.attrs.layout) == "NCHW" and shape_of(out)[2:] == (1, 1)
    else:
        return None
    if not is_global:
        return None
    build = placed(NAME, {"keep_dims": keep_dims})
    return PlaneOp((value.args[0],), build, makes_plane=False)


def _make(call: PlaneCall) -> tirx.PrimFunc:
    keep_dims = call.params["keep_dims"]
    return call.operators.global_avg_pool(
        *call.dims, *call.in_layouts, call.target, keep_dims=keep_dims
    )


def register(islands: Islands) -> None:
    """Add the operator."""
    islands.add(on_planes(NAME, _make, recognize=recognize))
