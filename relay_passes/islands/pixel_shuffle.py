"""Phases put between each other: ``pixel_shuffle`` -> ``plane_pixel_shuffle``."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tvm import relax, tirx
from tvm.ir import Expr

from topi_kernels.pixel_shuffle import Phases

from ..dataflow import is_float_image, shape_of
from ..markers import Marker, parse
from .operator import Islands, Order, PlaneCall, PlaneOp, on_planes, placed

NAME = "plane_pixel_shuffle"
MARKER = "pixel_shuffle"


def marker_of(image: Expr, phases: Phases, size: Sequence[int]) -> Marker:
    """The marker that puts the phases of an image between each other; ``size`` of the result."""
    params = {"stride": list(phases.stride), "first": list(phases.first), "size": list(size)}
    return Marker(MARKER, (image,), params)


def by_relax(marker: Marker, emit: Callable[[Expr], Expr] = lambda value: value) -> Expr:
    """The Relax operators of a marker; ``emit`` binds what stands between them."""
    (image,), (sh, sw) = marker.tensors, marker.params["stride"]
    batch, channels, height, width = shape_of(image)
    channels //= sh * sw
    apart = emit(relax.op.reshape(image, (batch, channels, sh, sw, height, width)))
    between = emit(relax.op.permute_dims(apart, [0, 1, 4, 2, 5, 3]))
    whole = relax.op.reshape(between, (batch, channels, height * sh, width * sw))
    first, size = marker.params["first"], marker.params["size"]
    if first == [0, 0] and size == [height * sh, width * sw]:
        return whole
    ends = [start + extent for start, extent in zip(first, size, strict=True)]
    return relax.op.strided_slice(emit(whole), [2, 3], first, ends)


def recognize(value: Expr, _out: Expr) -> PlaneOp | None:
    """A ``pixel_shuffle`` marker."""
    marker = parse(value)
    if marker is None or marker.op != MARKER or not is_float_image(marker.tensors[0]):
        return None
    return PlaneOp(marker.tensors, placed(NAME, marker.params), order=Order.PLAIN)


def outside(marker: Marker) -> Expr | None:
    """The Relax operators of a marker that no island took."""
    return by_relax(marker) if marker.op == MARKER else None


def _make(call: PlaneCall) -> tirx.PrimFunc:
    phases = Phases(*(tuple(call.params[name]) for name in ("stride", "first")))
    return call.operators.pixel_shuffle(*call.dims, *call.layouts, phases, call.target)


def register(islands: Islands) -> None:
    """Add the operator."""
    islands.add(on_planes(NAME, _make, recognize=recognize, outside=outside))
