"""Plane layout: how one activation lies in memory between the operators of an island.

An activation of ``channels`` planes is a tensor ``[batch, channels, size]``. Every plane is the
zero-padded image. Two orders of its pixels are known here, and only here:

- **plain rows** (``lanes`` = 1): pixel ``(y, x)`` is element ``origin + y * row_stride + x``, so
  each tap of a convolution is a constant offset. The columns right of a row are the halo of the
  next one.
- **interleaved lanes**: the image is cut into ``bands`` of rows, and every band gets ``lanes /
  bands`` lanes of a vector. Inside a band pixel ``x`` lies in lane ``x // columns`` of vector ``x %
  columns``, so the neighbour along the row is the next vector: no shuffle and no unaligned load.
  (Stencil codes call it the dimension-lifted transposition: Henretty et al., CC'11.) Only beyond
  the first and the last vector of a row a vector is needed whose lanes are moved by one; with
  ``border`` the producer stores it beside the row. The rows above and below a band are copies of
  its neighbours' rows, which the producer writes too.

Everything outside the image is zero, which makes it the halo of the next layer; whoever writes a
plane writes these zeros too.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

#: Zeros around an image: rows and columns, or one figure for both.
Padding = int | tuple[int, int]


def per_axis(pad: Padding) -> tuple[int, int]:
    """Rows and columns of a padding."""
    return (pad, pad) if isinstance(pad, int) else pad


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
        Rows above and below the image (of a band) that are readable zeros (or copies); how many
        columns are is :attr:`side`.
    row_stride : int
        Distance of two rows (of a band); plain rows: at least ``width``.
    origin : int
        Offset of pixel (0, 0).
    size : int
        Elements of a plane, slack for vector over-reads included.
    lanes : int
        Lanes of an interleaved vector; 1 for plain rows.
    bands : int
        Bands of rows that share a vector; they divide ``lanes``.
    border : int
        Vectors stored on either side of an interleaved row.
    """

    height: int
    width: int
    pad: int
    row_stride: int
    origin: int
    size: int
    lanes: int = 1
    bands: int = 1
    border: int = 0

    def __post_init__(self) -> None:
        if self.lanes > 1:
            self._check_interleaved()
            return
        if self.bands != 1 or self.border:
            raise ValueError("bands and border belong to interleaved lanes; got plain rows")
        if self.row_stride < self.width:
            raise ValueError(f"row_stride {self.row_stride} is shorter than a row of {self.width}")
        if self.origin < self.pad * self.row_stride:
            raise ValueError(f"origin {self.origin} leaves no room for {self.pad} rows of padding")
        if self.size < self.offset(self.height + self.pad - 1, self.width):
            raise ValueError(f"size {self.size} is smaller than the padded image")

    def _check_interleaved(self) -> None:
        if self.bands < 1 or self.lanes % self.bands:
            raise ValueError(f"{self.bands} bands do not divide {self.lanes} lanes")
        if self.rows_of_last_band < 1:
            raise ValueError(f"{self.bands} bands leave one of {self.height} rows empty")
        if self.bands > 1 and self.pad > self.band_height:
            raise ValueError(f"bands of {self.band_height} rows are lower than the pad {self.pad}")
        if not 0 <= self.border <= self.columns:
            raise ValueError(f"border {self.border} is not in 0..{self.columns} columns")
        if self.row_stride < (self.columns + 2 * self.border) * self.lanes:
            raise ValueError(f"row_stride {self.row_stride} is shorter than a row")
        if self.origin < self.pad * self.row_stride + self.border * self.lanes:
            raise ValueError(f"origin {self.origin} leaves no room for {self.pad} rows of padding")
        end = self.origin + (self.band_height + self.pad) * self.row_stride
        if self.size < end - self.border * self.lanes:
            raise ValueError(f"size {self.size} is smaller than the rows of a band")

    @property
    def is_interleaved(self) -> bool:
        return self.lanes > 1

    @property
    def side(self) -> int:
        """Columns left and right of the image that are readable zeros; none if interleaved.

        Those right of a row and left of the next one share their memory.
        """
        if self.is_interleaved:
            return 0
        before = self.origin - self.pad * self.row_stride
        after = self.size - self.offset(self.height + self.pad - 1, self.width)
        return min(self.row_stride - self.width, before, after)

    def lacks(self, rows: int, columns: int) -> str:
        """What a reader of so many rows and columns around the image misses; empty if nothing.

        The columns beside interleaved rows are no memory: whoever reads them moves lanes.
        """
        if self.pad < rows:
            return f"the input plane is padded by {self.pad} rows, {rows} are read"
        if not self.is_interleaved and self.side < columns:
            return f"the input plane is padded by {self.side} columns, {columns} are read"
        return ""

    @property
    def band_lanes(self) -> int:
        """Lanes of one band."""
        return self.lanes // self.bands

    @property
    def band_height(self) -> int:
        """Rows of one band; the last one may hold fewer."""
        return -(-self.height // self.bands)

    @property
    def columns(self) -> int:
        """Vectors of a row, border excluded; pixels of a plain row."""
        return -(-self.width // self.band_lanes)

    def offset(self, y: int, x: int) -> int:
        """Offset of pixel ``(y, x)`` in its plane.

        In plain rows negative coordinates name the padding, and ``y`` may be an expression.
        """
        if not self.is_interleaved:
            return self.origin + y * self.row_stride + x
        if not (0 <= y < self.height and 0 <= x < self.width):
            raise ValueError(f"({y}, {x}) is no pixel of {self.height}x{self.width}")
        band, row = divmod(y, self.band_height)
        lane, column = divmod(x, self.columns)
        return self.vector_offset(row, column) + band * self.band_lanes + lane

    def vector_offset(self, row: Any, column: Any) -> Any:
        """Offset of vector ``column`` of row ``row`` of the bands; both may be expressions."""
        return self.origin + row * self.row_stride + column * self.lanes

    def element(self, y: Any, x: Any) -> Any:
        """Offset of pixel ``(y, x)`` of the image, both of which may be expressions."""
        if not self.is_interleaved:
            return self.origin + y * self.row_stride + x
        band, row = y // self.band_height, y % self.band_height
        place, column = x // self.columns, x % self.columns
        return self.vector_offset(row, column) + band * self.band_lanes + place

    def pixel(self, lane: int, row: int, column: int) -> tuple[int, int] | None:
        """The pixel in a lane of a vector, or None where it lies outside the image.

        ``row`` may name the rows above and below a band, ``column`` those left and right of it.
        """
        band, place = divmod(lane, self.band_lanes)
        y, x = band * self.band_height + row, place * self.columns + column
        return (y, x) if 0 <= y < self.height and 0 <= x < self.width else None

    def moved_lanes(self, by: int) -> list[int | None]:
        """For each lane the one ``by`` places further in its band, None beyond the band."""
        moved = range(by, self.band_lanes + by)
        inside = [place if 0 <= place < self.band_lanes else None for place in moved]
        return [
            None if place is None else band * self.band_lanes + place
            for band in range(self.bands)
            for place in inside
        ]

    def turned(self, column: int, reach: int = 0) -> tuple[int, list[int | None]]:
        """Where vector ``column`` beyond a row comes from: a vector of the row, and its lanes.

        None stands for a zero. A kernel that reaches no further than the zeros at the end of a
        band's row (``reach`` columns) may take the row in a circle: what it gets from the other end
        is one of these zeros, or goes into an output that is none.
        """
        turns, source = divmod(column, self.columns)
        moved = self.moved_lanes(turns)
        if 0 < reach <= self.spare_columns:
            size = self.band_lanes
            moved = [
                lane // size * size + (lane + turns) % size if origin is None else origin
                for lane, origin in enumerate(moved)
            ]
        return source, moved

    def moved_bands(self, by: int) -> list[int | None]:
        """For each lane the same one ``by`` bands further, None beyond the image."""
        step = by * self.band_lanes
        moved = range(step, self.lanes + step)
        return [lane if 0 <= lane < self.lanes else None for lane in moved]

    def pixel_lanes(self, column: int) -> list[bool]:
        """Which lanes of vector ``column`` hold pixels of the row, whatever the row."""
        return [self._x(lane, column) < self.width for lane in range(self.lanes)]

    def _x(self, lane: int, column: int) -> int:
        return lane % self.band_lanes * self.columns + column

    @property
    def rows_of_last_band(self) -> int:
        """Rows of the last band that lie in the image."""
        return self.height - (self.bands - 1) * self.band_height

    @property
    def spare_columns(self) -> int:
        """Places at the end of a band's row that hold no pixel and are zero."""
        return self.band_lanes * self.columns - self.width

    @property
    def same_lanes(self) -> tuple[int, int, int, int]:
        """Equal for layouts whose vectors hold the same pixels; pad and border may differ."""
        return self.height, self.width, self.lanes, self.bands

    def keeps_lanes_of(self, source: PlaneLayout, stride: tuple[int, int] = (1, 1)) -> bool:
        """Whether a window of that stride over ``source`` finds each output in its own lane.

        Interleaved, the input of output ``(y, x)`` is ``(y * stride, x * stride)``; it lies in the
        output's lane where bands and rows of the source hold ``stride`` times as many. The rows of
        a single band may be any number.
        """
        if stride == (1, 1):
            return self.same_lanes == source.same_lanes
        if (self.lanes, self.bands) != (source.lanes, source.bands):
            return False
        rows = self.bands == 1 or source.band_height == stride[0] * self.band_height
        return rows and source.columns == stride[1] * self.columns

    def as_values(self) -> list[int]:
        """Plain data; plain rows have six figures, interleaved lanes nine."""
        values = [self.height, self.width, self.pad, self.row_stride, self.origin, self.size]
        return values + [self.lanes, self.bands, self.border] if self.is_interleaved else values

    @classmethod
    def make(cls, height: int, width: int, pad: Padding, align: int = 16) -> PlaneLayout:
        """The default layout of plain rows: rows start at multiples of ``align`` elements.

        ``pad`` counts rows and columns. ``align`` is the vector width of the target in elements; a
        pixel vector that starts at a multiple of ``align`` is then aligned in every row and may run
        over the image's right border into the padding, which is zeroed afterwards. One
        more line of slack keeps the planes of power-of-two images from falling into the same cache
        sets, and lets the last plane be read a vector beyond its last row.
        """
        rows, columns = per_axis(pad)
        row_stride = round_up(width + columns, align)
        origin = rows * row_stride + round_up(columns, align)
        size = round_up(origin + (height + rows) * row_stride + columns + align, align)
        if (size // align) % 2 == 0:
            size += align
        return cls(height, width, rows, row_stride, origin, size)

    @classmethod
    def interleave(
        cls, height: int, width: int, pad: int, lanes: int, bands: int, border: int = 0
    ) -> PlaneLayout:
        """Interleaved lanes; the planes hold an odd number of vectors, see :meth:`make`."""
        columns = -(-width // (lanes // bands))
        row_stride = (columns + 2 * border) * lanes
        rows = -(-height // bands) + 2 * pad
        size = rows * row_stride
        if (size // lanes) % 2 == 0:
            size += lanes
        origin = pad * row_stride + border * lanes
        return cls(height, width, pad, row_stride, origin, size, lanes, bands, border)


def band_choices(height: int, width: int, pad: int, lanes: int) -> Iterator[int]:
    """Numbers of bands that an image of this size can be cut into."""
    bands = 1
    while bands <= lanes:
        rows = -(-height // bands)
        if height > (bands - 1) * rows and (bands == 1 or rows >= pad):
            yield bands
        bands *= 2


@lru_cache(maxsize=64)
def _pixel_of_element(layout: PlaneLayout) -> np.ndarray:
    """Pixel (row-major) that every element of a plane holds, -1 where it is zero."""
    pixels = np.full(layout.size, -1)
    width = layout.width
    if not layout.is_interleaved:
        for y in range(layout.height):
            start = layout.offset(y, 0)
            pixels[start : start + width] = range(y * width, (y + 1) * width)
        return pixels
    for row in range(-layout.pad, layout.band_height + layout.pad):
        for column in range(-layout.border, layout.columns + layout.border):
            start = layout.vector_offset(row, column)
            for lane in range(layout.lanes):
                pixel = layout.pixel(lane, row, column)
                if pixel is not None:
                    pixels[start + lane] = pixel[0] * width + pixel[1]
    return pixels


def to_planes(images: np.ndarray, layout: PlaneLayout, around: int = 0) -> np.ndarray:
    """``[batch, channels, height, width]`` -> planes ``[batch, channels, size]``.

    ``around`` is what elements hold that are no pixels: of bytes the zero point.
    """
    pixels = _pixel_of_element(layout)
    flat = images.reshape(*images.shape[:2], -1)
    return np.where(pixels < 0, around, flat[..., np.maximum(pixels, 0)]).astype(images.dtype)


def from_planes(planes: np.ndarray, layout: PlaneLayout) -> np.ndarray:
    """Inverse of :func:`to_planes`."""
    offsets = [[layout.offset(y, x) for x in range(layout.width)] for y in range(layout.height)]
    return planes[..., np.array(offsets)]
