"""Depthwise convolution on planes for OpenCL devices."""

from __future__ import annotations

from typing import Any

from tvm import tirx
from tvm.tirx.script import builder as T

from ...geometry import ConvGeometry
from ...layout import PlaneLayout
from ...plane_ops import PlaneTarget
from ...workload import NO_EPILOGUE, Epilogue
from .config import GpuConfig
from .halo import Stored, TilePlace, store_rows
from .inputs import BufferInputs
from .planes import opened, work_items
from .reuse import chunks_of, tile_uses
from .rows import RowLoader
from .space import reads_inside
from .vectors import converted, spread, vector_type, widest_load, zeros

MAX_ROWS = 4


def depthwise_config(
    in_layout: PlaneLayout, out_layout: PlaneLayout, window: ConvGeometry, widest: int
) -> GpuConfig:
    """The widest register_tile that reads inside the planes, ``widest`` elements at once.

    Raises
    ------
    ValueError
        If there is none: the planes have less padding than the window reads.
    """
    rows = next(r for r in range(MAX_ROWS, 0, -1) if out_layout.height % r == 0 or r == 1)
    taps = _taps(window)
    for width in (4, 2, 1):
        config = GpuConfig(width, 1, rows, 1, len(taps))
        if reads_inside(in_layout, out_layout, window, config, taps, widest):
            return config
    raise ValueError(
        f"the input plane is padded by {in_layout.pad} rows and {in_layout.side} columns, which is"
        f" less than {window} reads"
    )


def _taps(window: ConvGeometry) -> tuple[tuple[int, int], ...]:
    kh, kw = window.kernel_size
    return tuple((ky, kx) for ky in range(kh) for kx in range(kw))


def depthwise_conv(
    batch: int,
    channels: int,
    in_layout: PlaneLayout,
    out_layout: PlaneLayout,
    window: ConvGeometry,
    target: PlaneTarget,
    epilogue: Epilogue = NO_EPILOGUE,
    multiplier: int = 1,
) -> tirx.PrimFunc:
    """``(x planes, weight[channels, kh, kw], bias[channels] if bias, out planes)``.

    Out_channel ``c`` reads in_channel ``c // multiplier``. Sums are float32.

    Raises
    ------
    ValueError
        If the input planes have less padding than the window reads, or channels are not a multiple
        of ``multiplier``.
    """
    if channels % multiplier:
        raise ValueError(f"{channels} out_channels are no multiple of the multiplier {multiplier}")
    widest, taps = widest_load(target.dtype), _taps(window)
    config = depthwise_config(in_layout, out_layout, window, widest)
    width, dtype = config.vector_width, target.dtype
    tiles = -(-out_layout.height // config.tile_rows) * -(-out_layout.width // width)
    chunks = chunks_of(config, window, in_layout, out_layout, widest)
    (sh, sw), what = window.stride, Stored(out_layout, dtype, epilogue.activation)
    shapes: dict[str, tuple[int, ...]] = {
        "x": (batch, channels // multiplier, in_layout.size),
        "weight": (channels, *window.kernel_size),
        **({"bias": (channels,)} if epilogue.bias else {}),
        "out": (batch, channels, out_layout.size),
    }
    with opened("plane_depthwise_conv", dtype, **shapes) as (ib, (x, weight, *more)):
        b, out = more[0] if epilogue.bias else None, more[-1]
        loader = RowLoader(BufferInputs(x, in_layout, chunks), dtype, width, sw, "float32")

        def tile(number: Any) -> None:
            plane, within = T.Bind(number // tiles), T.Bind(number % tiles)
            channel = T.Bind(plane % channels)
            source = plane if multiplier == 1 else T.Bind(plane // multiplier)
            place = TilePlace.of(out_layout, config, 0, within)
            start = zeros("float32", width)
            if b is not None:
                start = T.Bind(spread(converted(b[channel], dtype, "float32", 1), width))
            sums = []
            for _ in range(config.tile_rows):
                sums.append(T.alloc_buffer((1,), vector_type("float32", width), scope="local"))
                T.buffer_store(sums[-1], start, [0])
            origin = T.Bind(
                source * in_layout.size
                + (place.y0 * (sh * in_layout.row_stride) + place.x0 * sw + in_layout.origin)
            )
            first = T.Bind(channel * len(taps))
            weights = [
                T.Bind(converted(weight[first + t], dtype, "float32", 1)) for t in range(len(taps))
            ]
            for row, columns in tile_uses(window, config, taps).items():
                offset = row * in_layout.row_stride
                for column, vector in loader.vectors(origin, offset, sorted(columns)):
                    for tap, r, _ in columns[column]:
                        product = spread(weights[tap], width) * vector
                        T.buffer_store(sums[r], sums[r][0] + product, [0])
            values = {(r, 0): total[0] for r, total in enumerate(sums)}
            store_rows(what, config, out, plane, place, values, None, "float32")

        work_items(batch * channels * tiles, target, tile)
    return ib.get()
