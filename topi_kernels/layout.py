"""Plane layout: how one activation lies in memory between the operators of an island.

An activation of ``channels`` planes is a tensor ``[batch, channels, size]``. Every plane is the
zero-padded image, flattened: pixel ``(y, x)`` is element ``origin + y * row_stride + x``, so each
tap of a convolution is a constant offset. Everything outside the image is zero, which makes it the
halo of the next layer; whoever writes a plane writes these zeros too.
"""

from __future__ import annotations

from dataclasses import dataclass


def round_up(value: int, multiple: int) -> int:
    """Smallest multiple of ``multiple`` that is >= ``value``."""
    return -(-value // multiple) * multiple


@dataclass(frozen=True)
class PlaneLayout:
    """Geometry of one plane; all figures in elements.

    Parameters
    ----------
    height, width : int
        Image size.
    pad : int
        Rows above and below, and columns left and right of the image, that are readable zeros. The
        columns right of a row and left of the next one share their memory.
    row_stride : int
        Distance of two rows; at least ``width + pad``.
    origin : int
        Offset of pixel (0, 0).
    size : int
        Elements of a plane, slack for vector over-reads included.
    """

    height: int
    width: int
    pad: int
    row_stride: int
    origin: int
    size: int

    def __post_init__(self) -> None:
        if self.row_stride < self.width + self.pad:
            raise ValueError(
                f"row_stride {self.row_stride} < width + pad = {self.width + self.pad}"
            )
        if self.origin < self.pad * self.row_stride + self.pad:
            raise ValueError(f"origin {self.origin} leaves no room for {self.pad} rows of padding")
        if self.size < self.offset(self.height + self.pad - 1, self.width + self.pad):
            raise ValueError(f"size {self.size} is smaller than the padded image")

    def offset(self, y: int, x: int) -> int:
        """Offset of pixel ``(y, x)`` in its plane; negative coordinates name the padding."""
        return self.origin + y * self.row_stride + x

    @classmethod
    def make(cls, height: int, width: int, pad: int, align: int = 16) -> PlaneLayout:
        """The default layout: rows start at multiples of ``align`` elements.

        ``align`` is the vector width of the target in elements; a pixel vector that starts at a
        multiple of ``align`` is then aligned in every row and may run over the image's right border
        into the padding, which is zeroed afterwards. One more line of slack keeps the planes of
        power-of-two images from falling into the same cache sets, and lets the last plane be read a
        vector beyond its last row.
        """
        row_stride = round_up(width + pad, align)
        origin = pad * row_stride + round_up(pad, align)
        size = round_up(origin + (height + pad) * row_stride + pad + align, align)
        if (size // align) % 2 == 0:
            size += align
        return cls(height, width, pad, row_stride, origin, size)
