"""Channels of images put together: ``channel_select`` -> ``plane_select``."""

from __future__ import annotations

from collections.abc import Sequence

from tvm import relax, tirx
from tvm.ir import Expr, GlobalVar, Var

from topi_kernels.channel_select import NAME, Pick, runs_of

from ..dataflow import is_float_image, shape_of
from ..markers import Marker, parse
from .operator import IslandOperator, Islands, Order, PlaneCall, PlaneOp, placed
from .scheduling import Scheduling

MARKER = "channel_select"


def marker_of(images: Sequence[Expr], picks: Sequence[Pick]) -> Marker:
    """The marker of an image whose channels are ``picks`` of others."""
    return Marker(MARKER, tuple(images), {"picks": [list(pick) for pick in picks]})


def recognize(value: Expr, _out: Expr) -> PlaneOp | None:
    """A ``channel_select`` marker."""
    marker = parse(value)
    if marker is None or marker.op != MARKER or not is_float_image(marker.tensors[0]):
        return None
    build = placed(NAME, marker.params)
    return PlaneOp(marker.tensors, build, order=Order.SAME, copies=True)


def outside(marker: Marker) -> Expr | None:
    """The Relax operators of a marker that no island took."""
    if marker.op != MARKER:
        return None
    images, picks = marker.tensors, [tuple(pick) for pick in marker.params["picks"]]
    runs = runs_of(picks)
    if all((run.step, run.out_step) == (1, 1) for run in runs):
        return _joined([_slice(images[r.source], r.first, r.first + r.count) for r in runs])
    starts = [sum(shape_of(image)[1] for image in images[:i]) for i in range(len(images))]
    places = [starts[source] + channel for source, channel in picks]
    return relax.op.take(_joined(list(images)), relax.const(places, "int32"), axis=1)


def _slice(image: Expr, begin: int, end: int) -> Expr:
    whole = (begin, end) == (0, shape_of(image)[1])
    return image if whole else relax.op.strided_slice(image, [1], [begin], [end])


def _joined(parts: list[Expr]) -> Expr:
    return parts[0] if len(parts) == 1 else relax.op.concat(parts, axis=1)


def _lower(marker: Marker, out: Var, scheduling: Scheduling) -> tuple[GlobalVar, list[Expr]]:
    call = PlaneCall.of(marker, out, scheduling)
    in_channels = tuple(shape_of(planes)[1] for planes in marker.tensors)
    picks = tuple((source, channel) for source, channel in call.params["picks"])

    def make() -> tirx.PrimFunc:
        layouts = call.in_layouts, call.out_layout
        return call.operators.channel_select(*call.dims, in_channels, *layouts, picks, call.target)

    key = (NAME, call.dims, in_channels, call.target, repr(marker.params))
    return scheduling.function(key, make), list(marker.tensors)


def register(islands: Islands) -> None:
    """Add the operator."""
    islands.add(IslandOperator(NAME, _lower, recognize, outside=outside))
