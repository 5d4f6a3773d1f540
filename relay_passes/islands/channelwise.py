"""Factors and terms per channel, gates and PReLU: ``channelwise`` -> ``plane_channelwise``."""

from __future__ import annotations

from tvm import relax, tirx
from tvm.ir import Expr

from topi_kernels.channelwise import CONSTANTS, NAME, ChannelTerms
from topi_kernels.layout import PlaneLayout

from ..dataflow import is_float_image
from ..markers import Marker, layout_to_list, parse
from .elementwise import spelled
from .operator import Islands, Order, PlaneCall, PlaneOp, on_planes

MARKER = "channelwise"


def marker_of(
    x: Expr, parts: dict[str, Expr], activation: str, bounds: tuple[float, float]
) -> Marker:
    """The marker of an image ``x``; ``parts`` are ``gate`` and :data:`CONSTANTS`, if they exist."""
    names = [name for name in ("gate", *CONSTANTS) if name in parts]
    params = {"parts": names, "activation": activation, "bounds": list(bounds)}
    return Marker(MARKER, (x, *(parts[name] for name in names)), params)


def recognize(value: Expr, _out: Expr) -> PlaneOp | None:
    """A ``channelwise`` marker."""
    marker = parse(value)
    if marker is None or marker.op != MARKER or not is_float_image(marker.tensors[0]):
        return None
    images = 2 if "gate" in marker.params["parts"] else 1
    constants = marker.tensors[images:]

    def build(planes: list[Expr], layouts: list[PlaneLayout], out: PlaneLayout | None) -> Marker:
        where = {
            "in_layouts": [layout_to_list(layout) for layout in layouts],
            "out_layout": layout_to_list(out),
        }
        return Marker(NAME, (*planes, *constants), {**marker.params, **where})

    return PlaneOp(marker.tensors[:images], build, order=Order.SAME)


def outside(marker: Marker) -> Expr | None:
    """The Relax operators of a marker that no island took."""
    if marker.op != MARKER:
        return None
    value, *rest = marker.tensors
    dtype = str(value.ty.dtype)
    parts = dict(zip(marker.params["parts"], rest, strict=True))
    for name in ("gate", "scale"):
        if name in parts:
            value = relax.op.multiply(value, _per_channel(parts[name], name))
    if "shift" in parts:
        value = relax.op.add(value, _per_channel(parts["shift"], "shift"))
    if "slope" in parts:
        value = relax.op.nn.prelu(value, parts["slope"], 1)
    activation, bounds = marker.params["activation"], tuple(marker.params["bounds"])
    return value if activation == "none" else spelled(value, activation, bounds, dtype)


def _per_channel(part: Expr, name: str) -> Expr:
    """A part with axes for height and width."""
    return part if name == "gate" else relax.op.expand_dims(part, [1, 2])


def _make(call: PlaneCall) -> tirx.PrimFunc:
    params, parts = call.params, call.params["parts"]
    x, *gate = call.in_layouts
    terms = ChannelTerms(
        gate[0] if gate else None,
        scale="scale" in parts,
        shift="shift" in parts,
        slope="slope" in parts,
        activation=params["activation"],
        bounds=tuple(params["bounds"]),
    )
    return call.operators.channelwise(*call.dims, x, call.out_layout, terms, call.target)


def register(islands: Islands) -> None:
    """Add the operator."""
    islands.add(on_planes(NAME, _make, recognize=recognize, outside=outside))
