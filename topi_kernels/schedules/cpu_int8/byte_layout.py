"""How unsigned bytes lie in planes: rows one after the other, outside the image the zero point."""

from __future__ import annotations

from ...layout import PlaneLayout, round_up

LINE = 64
"""Bytes of a cache line. A plane ends with at least as many that anyone may read and overwrite."""


def byte_layout(height: int, width: int, pad: int) -> PlaneLayout:
    """Plane layout of an image of bytes.

    The columns right of a row are those left of the next. Planes are cache lines, an odd number of
    them, and hold :data:`LINE` bytes more than the padded image.

    Parameters
    ----------
    height, width : int
    pad : int
        Rows and columns around the image that hold the zero point.
    """
    row_stride = width + pad
    origin = pad * row_stride + pad
    size = round_up(origin + (height + pad) * row_stride + LINE, LINE)
    if size // LINE % 2 == 0:
        size += LINE
    return PlaneLayout(height, width, pad, row_stride, origin, size)


def padded_size(layout: PlaneLayout) -> int:
    """Bytes of a plane's image with all that is around it; of those behind nobody asks."""
    below = layout.origin + (layout.height - 1 + layout.pad) * layout.row_stride
    return below + layout.width + layout.pad
