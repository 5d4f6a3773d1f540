"""Channels of several phases put between each other.

``[c * sh * sw, h, w] -> [c, h * sh, w * sw]``: channel ``(c * sh + i) * sw + j`` holds the pixels
``(y * sh + i, x * sw + j)`` of channel ``c``, as in torch's ``pixel_shuffle``; the result may be a
part of the whole image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tvm import tirx
from tvm.ir import Expr
from tvm.tirx.script import builder as T

from .layout import PlaneLayout
from .plane_ops import (
    Index,
    PlaneTarget,
    for_each_plane,
    for_each_row,
    for_each_vector,
    load,
    plane_arg,
    store,
)
from .primfunc import primfunc_builder
from .vector import shuffle


@dataclass(frozen=True)
class Phases:
    """How phases make an image.

    Parameters
    ----------
    stride : tuple of (int, int)
        Phases along height and width.
    first : tuple of (int, int)
        Row and column of the whole image at which the result begins.
    """

    stride: tuple[int, int]
    first: tuple[int, int] = (0, 0)

    def check(self, in_layout: PlaneLayout, out_layout: PlaneLayout) -> None:
        """Refuse images that do not fit.

        Raises
        ------
        ValueError
            If the result reaches beyond the whole image, or an image is not in plain rows.
        """
        (sh, sw), (top, left) = self.stride, self.first
        whole = in_layout.height * sh, in_layout.width * sw
        if top + out_layout.height > whole[0] or left + out_layout.width > whole[1]:
            raise ValueError(
                f"{out_layout.height}x{out_layout.width} pixels from {self.first} on are more than"
                f" the {whole[0]}x{whole[1]} that the phases hold"
            )
        if in_layout.is_interleaved or out_layout.is_interleaved:
            raise ValueError("phases are put between each other in plain rows only")


def pixel_shuffle(
    batch: int,
    channels: int,
    in_layout: PlaneLayout,
    out_layout: PlaneLayout,
    phases: Phases,
    target: PlaneTarget,
) -> tirx.PrimFunc:
    """``(x planes, out planes)`` for ``channels`` out_channels.

    Raises
    ------
    ValueError
        See :meth:`Phases.check`.
    """
    phases.check(in_layout, out_layout)
    (sh, sw), (top, left) = phases.stride, phases.first
    with primfunc_builder("plane_pixel_shuffle") as ib:
        x = plane_arg("x", batch, channels * sh * sw, in_layout, target)
        out = plane_arg("out", batch, channels, out_layout, target)

        def pixel(n: Index, c: Index, y: Index, at: Index) -> Expr:
            row, column = y + top, at + left
            channel = (c * sh + row % sh) * sw + column % sw
            return load(x, [n, channel, in_layout.offset(row // sh, column // sw)], 1)

        def vector(n: Index, c: Index, y: Index, at: Index, lanes: int) -> Expr:
            row, count = T.Bind(y + top), lanes // sw
            first = (c * sh + row % sh) * sw
            base = T.Bind(in_layout.offset(row // sh, at // sw + left // sw))
            # Phases before that of the first pixel begin with the next column.
            late = [int(k < left % sw) for k in range(sw)]
            parts = [T.Bind(load(x, [n, first + k, base + late[k]], count)) for k in range(sw)]
            return _woven(parts, [(left + lane) % sw for lane in range(lanes)])

        def plane(n: Index, c: Index) -> None:

            def row(y: Index) -> None:
                def piece(at: Index, lanes: int) -> None:
                    place = out_layout.offset(y, at)
                    if _is_whole(out_layout.width, lanes, sw):
                        store(out, vector(n, c, y, at, lanes), [n, c, place], lanes)
                        return
                    for lane in range(lanes):
                        store(out, pixel(n, c, y, at + lane), [n, c, place + lane], 1)

                for_each_vector(out_layout.width, target.lanes, piece)

            for_each_row(out, [n, c], out_layout, target.lanes, row)

        for_each_plane(batch, channels, target, plane)
    return ib.get()


def _is_whole(width: int, lanes: int, phases: int) -> bool:
    """Whether every vector of a row begins with the same phase and holds all of them equally."""
    return lanes % phases == 0 and (width % lanes == 0 or (width - lanes) % phases == 0)


def _woven(parts: Sequence[Expr], phase_of: Sequence[int]) -> Expr:
    """One vector of the parts' lanes in turns; ``phase_of`` says whose turn it is."""
    count = len(phase_of) // len(parts)
    taken = [0] * len(parts)
    places = []
    for phase in phase_of:
        places.append(phase * count + taken[phase])
        taken[phase] += 1
    return parts[0] if len(parts) == 1 else shuffle(parts, places)
