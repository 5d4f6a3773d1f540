"""Parameters of the convolution operator and the register_tile that the schedule's steps share."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script import builder as T

from .. import tap_lists
from ..fkw import INDEX_DTYPES, LOOKAHEAD
from ..workload import ConvWorkload
from .config import ConvConfig
from .input_geometry import InputGeometry, plain_geometry


@dataclass
class Buffers:
    """The operator's parameters, activations and weights flattened to one dimension.

    A schedule may replace ``x`` by a copy of another ``geometry``. A layer is stored in FKW, as
    tap lists or as matrices; what the other forms have is None.
    """

    x: Any
    filter_order: Any
    group_start: Any
    weight_start: Any
    pattern_count: Any
    in_channel: Any
    weights: Any
    bias: Any
    residual: Any
    out: Any
    geometry: InputGeometry
    list_start: Any = None
    offset: Any = None


@dataclass
class Place:
    """Where a register_tile lies in the output, and how many an image has.

    All members but these numbers are index expressions.
    """

    batch: Any
    y0: Any
    x0: Any
    row_block: Any
    col_block: Any
    row_blocks: int
    col_blocks: int

    @property
    def is_last(self) -> Any:
        """Whether no tile of the image follows; True where there is one tile."""
        count = self.row_blocks * self.col_blocks
        return count == 1 or self.row_block * self.col_blocks + self.col_block == count - 1


@dataclass
class Tile(Place):
    """One register_tile of one filter_group.

    ``acc`` holds the sums by filter vector, row and column, ``chains`` the further ones of each.
    """

    group: Any
    acc: dict[tuple[int, ...], Any] = field(default_factory=dict)
    chains: list[dict[tuple[int, ...], Any]] = field(default_factory=list)
    slots: list[Any] = field(default_factory=list)

    def chain(self, tap: int) -> dict[tuple[int, ...], Any]:
        """The sums that a kernel's tap of that number is added to."""
        number = tap % (1 + len(self.chains))
        return self.chains[number - 1] if number else self.acc


def row_vectors(workload: ConvWorkload, config: ConvConfig) -> int:
    layout = workload.out_layout
    return layout.columns if layout.is_interleaved else -(-layout.width // config.pixel_lanes)


def tile_grid(workload: ConvWorkload, config: ConvConfig) -> tuple[int, int]:
    """Register_tiles above each other and beside each other."""
    row_blocks = -(-workload.out_layout.band_height // config.tile_rows)
    return row_blocks, -(-row_vectors(workload, config) // config.tile_cols)


def tiles_per_image(workload: ConvWorkload, config: ConvConfig) -> int:
    return math.prod(tile_grid(workload, config))


def place_of(workload: ConvWorkload, config: ConvConfig, number: Any) -> Place:
    """Place of register_tile ``number`` of the batch.

    The last tile of a row or column is moved back to end with the image: no masks, no remainder.
    Tiles of even rows differ in height instead, the tall ones lie above.
    """
    row_blocks, col_blocks = tile_grid(workload, config)
    per_image = row_blocks * col_blocks
    columns, height = row_vectors(workload, config), workload.out_layout.band_height
    within = T.Bind(number % per_image)
    row_block = T.Bind(within // col_blocks)
    col_block = T.Bind(within % col_blocks)
    last_col = (columns - config.tile_cols) * config.pixel_lanes
    if config.even_rows:
        low, tall = divmod(height, row_blocks)
        y0 = T.Bind(row_block * low + T.min(row_block, tall))
    else:
        y0 = T.Bind(T.min(row_block * config.tile_rows, height - config.tile_rows))
    x0 = T.Bind(T.min(col_block * (config.tile_cols * config.pixel_lanes), last_col))
    batch = T.Bind(number // per_image)
    return Place(batch, y0, x0, row_block, col_block, row_blocks, col_blocks)


def _order_dtype(out_channels: int) -> str:
    """Type of a number of a filter."""
    if out_channels <= 0xFF:
        return "uint8"
    return "uint16" if out_channels <= 0xFFFF else "int32"


def declare_parameters(workload: ConvWorkload, others: Callable[[], None] | None = None) -> Buffers:
    """Declare the operator's parameters in their fixed order inside an open function.

    ``others`` declares what an operator has that goes on from the outputs in the place of ``out``.
    """
    w = workload

    def planes(name: str, channels: int, size: int) -> Any:
        return T.arg(name, T.Buffer((w.batch, channels, size), w.dtype))

    def flat(name: str, whole: Any) -> Any:
        size = math.prod(int(extent) for extent in whole.shape)
        # A GPU's kernel names its arguments after the buffers that it accesses.
        return IRBuilder.name(name, T.decl_buffer((size,), w.dtype, data=whole.data))

    def vector(name: str, length: int, dtype: str) -> Any:
        return T.arg(name, T.Buffer((length,), dtype))

    x = planes("x", w.in_channels, w.in_layout.size)
    filter_order = group_start = weight_start = None
    pattern_count = in_channel = list_start = offset = None
    if w.gemm_code is None:
        filter_order = vector("filter_order", w.num_slots, _order_dtype(w.out_channels))
    if w.tap_code is not None:
        list_start = vector("list_start", w.tap_code.blocks * w.num_groups + 1, "int32")
        offset = vector("offset", w.num_kernels + tap_lists.LOOKAHEAD, w.index_encoding)
    elif w.gemm_code is None:
        group_start = vector("group_start", w.num_groups + 1, "int32")
        if len({len(p) for p in w.patterns}) > 1:
            weight_start = vector("weight_start", w.num_groups + 1, "int32")
        pattern_count = vector("pattern_count", w.num_groups * len(w.patterns), w.count_dtype)
        kernels = w.num_kernels + LOOKAHEAD
        in_channel = vector("in_channel", kernels, INDEX_DTYPES[w.index_encoding])
    weights = vector("weights", max(w.num_weights, 1), w.dtype)
    bias = vector("bias", w.out_channels, w.dtype) if w.epilogue.bias else None
    residual = None
    if w.epilogue.residual and w.residual_layout is not None:
        residual = planes("residual", w.out_channels, w.residual_layout.size)
    out = None
    if others is None:
        out = planes("out", w.out_channels, w.out_layout.size)
    else:
        others()
    return Buffers(
        flat("x", x),
        filter_order,
        group_start,
        weight_start,
        pattern_count,
        in_channel,
        weights,
        bias,
        None if residual is None else flat("residual", residual),
        None if out is None else flat("out", out),
        plain_geometry(workload),
        list_start,
        offset,
    )
