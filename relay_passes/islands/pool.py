"""Pooling by windows: ``plane_max_pool`` and ``plane_avg_pool``."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from tvm import tirx
from tvm.ir import Call, Expr

from topi_kernels.geometry import ConvGeometry

from ..dataflow import is_float_image, op_name, shape_of
from .operator import Islands, PlaneCall, PlaneOp, on_planes, placed

MAX, AVERAGE = "plane_max_pool", "plane_avg_pool"


def _windows_see_pixels(call: Call, out: Expr) -> bool:
    """Whether every window of a pool covers at least one pixel of the image."""
    attrs = call.attrs
    size, out_size = shape_of(call.args[0])[2:], shape_of(out)[2:]
    return all(
        int(attrs.padding[i]) < int(attrs.pool_size[i])
        and (out_size[i] - 1) * int(attrs.strides[i]) - int(attrs.padding[i]) < size[i]
        for i in (0, 1)
    )


def _pool(call: Call, out: Expr, name: str, params: dict[str, Any]) -> PlaneOp | None:
    """A pool of an NCHW image without dilation."""
    attrs = call.attrs
    padding = [int(p) for p in attrs.padding]
    if not is_float_image(call.args[0]):
        return None
    if str(attrs.layout) != "NCHW" or str(attrs.out_layout) != "NCHW":
        return None
    if any(int(d) != 1 for d in attrs.dilation) or not _windows_see_pixels(call, out):
        return None
    moves = (attrs.pool_size, attrs.strides, padding[:2])
    window = ConvGeometry(*((int(first), int(second)) for first, second in moves))
    build = placed(name, {**params, "window": asdict(window)})
    return PlaneOp((call.args[0],), build, ((max(padding[::2]), max(padding[1::2])),))


def recognize_max(value: Expr, out: Expr) -> PlaneOp | None:
    """``nn.max_pool2d``."""
    return _pool(value, out, MAX, {}) if op_name(value) == "relax.nn.max_pool2d" else None


def recognize_average(value: Expr, out: Expr) -> PlaneOp | None:
    """``nn.avg_pool2d``.

    With ceil_mode its last window may leave the padding, where its divisor changes.
    """
    if op_name(value) != "relax.nn.avg_pool2d" or bool(value.attrs.ceil_mode):
        return None
    include_pad = bool(value.attrs.count_include_pad)
    return _pool(value, out, AVERAGE, {"count_include_pad": include_pad})


def _max(call: PlaneCall) -> tirx.PrimFunc:
    window = ConvGeometry.from_dict(call.params["window"])
    return call.operators.max_pool(*call.dims, *call.layouts, window, call.target)


def _average(call: PlaneCall) -> tirx.PrimFunc:
    window = ConvGeometry.from_dict(call.params["window"])
    counts = {"count_include_pad": call.params["count_include_pad"]}
    return call.operators.avg_pool(*call.dims, *call.layouts, window, call.target, **counts)


def register(islands: Islands) -> None:
    """Add both operators."""
    for name, make, recognize in (
        (MAX, _max, recognize_max),
        (AVERAGE, _average, recognize_average),
    ):
        islands.add(on_planes(name, make, recognize=recognize))
