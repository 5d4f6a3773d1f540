"""How images come onto planes and leave them: ``plane_pack`` and ``plane_unpack``.

The layout pass puts these at the borders of islands; nothing in a module is recognised as one.
"""

from __future__ import annotations

from tvm.ir import Expr

from topi_kernels import compute, plane_operators
from topi_kernels.layout import PlaneLayout

from ..markers import Marker
from .operator import Islands, on_planes, placed

PACK, UNPACK = "plane_pack", "plane_unpack"


def pack(image: Expr, layout: PlaneLayout) -> Marker:
    """The marker that makes planes of an image."""
    return placed(PACK)([image], [], layout)


def unpack(planes: Expr, layout: PlaneLayout) -> Marker:
    """The marker that makes an image of planes."""
    return placed(UNPACK)([planes], [layout], None)


def register(islands: Islands) -> None:
    """Add both operators."""
    for name, operators in (
        (PACK, (plane_operators.pack, compute.pack)),
        (UNPACK, (plane_operators.unpack, compute.unpack)),
    ):
        scheduled, specification = (
            lambda call, make=make: make(*call.dims, *call.layouts, call.target)
            for make in operators
        )
        islands.add(on_planes(name, scheduled, specification))
