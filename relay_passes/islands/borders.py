"""How images come onto planes and leave them: ``plane_pack`` and ``plane_unpack``.

The layout pass puts these at the borders of islands; nothing in a module is recognised as one.
"""

from __future__ import annotations

from tvm import tirx
from tvm.ir import Expr

from topi_kernels.layout import PlaneLayout

from ..markers import Marker
from .operator import Islands, PlaneCall, on_planes, placed

PACK, UNPACK = "plane_pack", "plane_unpack"


def pack(image: Expr, layout: PlaneLayout) -> Marker:
    """The marker that makes planes of an image."""
    return placed(PACK)([image], [], layout)


def unpack(planes: Expr, layout: PlaneLayout) -> Marker:
    """The marker that makes an image of planes."""
    return placed(UNPACK)([planes], [layout], None)


def _pack(call: PlaneCall) -> tirx.PrimFunc:
    return call.operators.pack(*call.dims, *call.layouts, call.target)


def _unpack(call: PlaneCall) -> tirx.PrimFunc:
    return call.operators.unpack(*call.dims, *call.layouts, call.target)


def register(islands: Islands) -> None:
    """Add both operators."""
    islands.add(on_planes(PACK, _pack))
    islands.add(on_planes(UNPACK, _unpack))
