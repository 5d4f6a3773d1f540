"""The zero point around images of bytes."""

from __future__ import annotations

from typing import Any

from tvm.tirx.script import builder as T

from ...layout import PlaneLayout
from ...vector_math import largest_power_of_two

LARGEST = 64


def fill_run(buffer: Any, at: tuple[Any, ...], start: Any, count: int, value: Any) -> None:
    """Write ``value``, a byte, to ``count`` neighbouring elements of a plane."""
    done = 0
    while done < count:
        width = min(LARGEST, largest_power_of_two(count - done))
        index = start + done
        if width == 1:
            T.buffer_store(buffer, value, [*at, index])
        else:
            T.buffer_store(buffer, T.broadcast(value, width), [*at, T.ramp(index, 1, width)])
        done += width


def fill_borders(
    out: Any, batch: int, channels: int, layout: PlaneLayout, zero_point: Any, num_threads: int
) -> None:
    """Write the zero point to all that is outside the images and inside the padding."""
    if layout.pad == 0:
        return
    loop = T.parallel if num_threads > 1 else T.serial
    with loop(0, batch * channels) as plane:
        at = (0, plane) if batch == 1 else (plane // channels, plane % channels)
        fill_plane_borders(out, at, layout, T.Bind(T.Cast("uint8", zero_point)))


def fill_plane_borders(out: Any, at: tuple[Any, Any], layout: PlaneLayout, value: Any) -> None:
    """The borders of one plane."""
    pad, stride = layout.pad, layout.row_stride
    if pad == 0:
        return
    fill_run(out, at, 0, layout.origin, value)
    with T.serial(0, layout.height - 1) as row:
        fill_run(out, at, layout.origin + layout.width + row * stride, pad, value)
    below = layout.offset(layout.height - 1, layout.width)
    fill_run(out, at, below, pad * stride + pad, value)
