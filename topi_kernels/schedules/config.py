"""The knobs of the pattern-sparse convolution and which combinations of them are legal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import MISSING, asdict, dataclass, fields, replace
from functools import lru_cache
from typing import Any

import numpy as np

LOOP_ORDERS = ("tile_outer", "filter_outer")
SHIFTS = ("load", "rotate", "split", "lanes")
BODIES = ("patterns", "taps", "copied", "gemm", "winograd2", "winograd4")
PATTERNS, TAPS, COPIED, GEMM, WINOGRAD_2, WINOGRAD_4 = BODIES
#: Bodies of dense layers that are products of matrices -> outputs of a tile along a row.
WINOGRAD_OUTPUTS = {WINOGRAD_2: 2, WINOGRAD_4: 4}
TILE_OUTPUTS = {GEMM: 1, **WINOGRAD_OUTPUTS}
MAX_POSITIONS = 1 << 16
SPLIT_STRIDE = 2
MAX_PREFETCH = 8
MAX_CHANNEL_BLOCK = 1 << 16
MAX_CHAINS = 4
ISAS = ("any", "neon")


@dataclass(frozen=True)
class Family:
    """What a schedule must know of a processor family.

    Parameters
    ----------
    name : str
    vector_width : int
        float32 lanes of one vector register.
    vector_registers : int
        Architectural vector registers.
    temporaries : int
        Registers left to loaded inputs and spare weights while a register_tile is computed.
    prefetch : int
        Kernels to look ahead when prefetching input by default; 0 for never.
    fetch_ahead : bool
        The knob of that name by default.
    block_floats : int
        Input of a block of in_channels that stays in L1 for all filter_groups; 0 for no blocks.
    list_cost : float
        Leaving one kernel list, in FMA slots: its length is not predicted.
    fma_ports, load_ports, fma_latency : float
        Vector FMAs and vector loads a core starts per cycle, and cycles until an FMA's result.
    half_fma_ports, half_load_ports : float
        The same of vectors of at most half the width; 0 for as many as of whole ones.
    load_cost, split_cost, line_cost, weight_line_cost : float
        What one vector load, one load that crosses a cache line, one cache line of input from L2,
        and one of weights (these stream in order, which hardware prefetches) add to the FMAs, in
        FMA slots. Costs only rank configurations.
    line_bound : float
        FMA slots that a cache line from L2 takes at least, however early it is asked for; 0 for no
        bound.
    far_line_cost : float
        One cache line of those that dense products stream from beyond L2, in FMA slots; 0 for
        ``line_cost``.
    row_line_share : float
        Of ``line_cost``, what a line of interleaved lanes costs: these rows are read whole, and in
        the order in which they lie.
    shuffle_cost, deinterleave_cost, loop_cost, tile_cost, store_cost : float
        The same for one shuffle, every second element of two vectors, one loop iteration, one
        accumulator's start and one stored piece.
    cache_line_floats : int
    page_floats, near_pages, page_cost : int, int, float
        Elements of a memory page, pages whose translation is at hand, and what one more page that
        a kernel touches adds, in FMA slots.
    near_cache_floats : int
        Input of a tile that stays in the nearest cache while the filter_groups go over it; half of
        what a group touches is reused by the next, so this is more than L1.
    isa : str
        One of :data:`ISAS`, for configurations of the family's full width.
    early_loads : bool
        Whether the compiler moves the loads of a step before its multiply-adds, as it does for
        in-order cores; they then occupy registers all at once.
    interleaved_lanes : bool
        Whether tensors get interleaved lanes where the cost model expects a gain, unless asked
        otherwise: true where that was measured.
    lanes_credit : float
        Factor on the estimate of plain rows that these lanes are held against: above 1 where their
        fewer loads are worth more than the time that they are estimated to save.
    border_gain : float
        What rows with vectors beside them, which are longer, must gain over orders without.
    tap_filters : int
        Filters that share, at most, where level 0 may choose the body of tap lists; 0 where it was
        not measured to pay.
    pointwise_share : float
        Estimates of sparse 1x1 layers by tap lists, which are made of measured cycles, times this
        err as much as the others do.
    copied_tiles : bool
        Whether level 0 may choose the body of copied tiles: true where it was measured.
    gemm : bool
        Whether dense layers may be products of matrices: true where that was measured.
    nan_maximum : bool
        Whether maximum and minimum give NaN if either operand is NaN, as in torch.
    l2_floats : int
        Elements of L2.
    """

    name: str
    vector_width: int
    vector_registers: int
    temporaries: int
    prefetch: int
    fetch_ahead: bool = False
    block_floats: int = 0
    list_cost: float = 90.0
    fma_ports: float = 2.0
    load_ports: float = 2.0
    fma_latency: float = 4.0
    half_fma_ports: float = 0.0
    half_load_ports: float = 0.0
    load_cost: float = 0.1
    split_cost: float = 0.8
    line_cost: float = 2.7
    weight_line_cost: float = 1.0
    line_bound: float = 0.0
    far_line_cost: float = 0.0
    row_line_share: float = 1.0
    shuffle_cost: float = 0.3
    deinterleave_cost: float = 1.0
    loop_cost: float = 4.0
    tile_cost: float = 30.0
    store_cost: float = 3.5
    cache_line_floats: int = 16
    near_cache_floats: int = 24_000
    page_floats: int = 1024
    near_pages: int = 96
    page_cost: float = 4.0
    isa: str = "any"
    early_loads: bool = False
    interleaved_lanes: bool = False
    lanes_credit: float = 1.0
    border_gain: float = 1.08
    tap_filters: int = 0
    copied_tiles: bool = False
    pointwise_share: float = 1.0
    gemm: bool = False
    nan_maximum: bool = False
    l2_floats: int = 1 << 18

    def of_dtype(self, dtype: str) -> Family:
        """The family with the lanes that its vectors have in ``dtype``."""
        return replace(self, vector_width=self.vector_width * 4 // np.dtype(dtype).itemsize)

    def slots_of(self, width: int) -> tuple[Family, float]:
        """What holds for vectors of ``width`` lanes, and how many of their slots one here lasts.

        Where more multiply-adds of narrow vectors start in a cycle, whatever takes a time of its
        own takes more of their slots.
        """
        if not self.half_fma_ports or 2 * width > self.vector_width:
            return self, 1.0
        return _half_slots(self), self.half_fma_ports / self.fma_ports


#: Fields of a Family that are times in FMA slots.
SLOT_COSTS = (
    "list_cost",
    "load_cost",
    "split_cost",
    "line_cost",
    "weight_line_cost",
    "line_bound",
    "far_line_cost",
    "shuffle_cost",
    "deinterleave_cost",
    "loop_cost",
    "tile_cost",
    "store_cost",
    "page_cost",
)


@lru_cache(maxsize=64)
def _half_slots(family: Family) -> Family:
    ratio = family.half_fma_ports / family.fma_ports
    return replace(
        family,
        fma_ports=family.half_fma_ports,
        load_ports=family.half_load_ports or family.load_ports,
        half_fma_ports=0.0,
        half_load_ports=0.0,
        **{name: ratio * getattr(family, name) for name in SLOT_COSTS},
    )


@dataclass(frozen=True)
class ConvConfig:
    """One point of the search_space of a convolution.

    Parameters
    ----------
    vector_width : int
        Lanes of a vector, at most the family's.
    filter_lanes : int
        Lanes that hold different filters; ``vector_width // filter_lanes`` lanes hold neighbouring
        pixels. 1 is the form "lanes over pixels", ``vector_width`` "lanes over output channels".
    filter_vectors : int
        Vectors of filters in a register_tile; ``filter_lanes * filter_vectors`` is the group.
    tile_rows, tile_cols : int
        Rows, and vectors along a row, of the register_tile.
    taps_per_step : int
        Taps whose weights are held in registers at once.
    shift : str
        How an input vector shifted along the row is had: ``load`` reads it again unaligned,
        ``rotate`` builds it from two aligned vectors in registers. ``split`` is for stride 2: the
        input is first separated into even and odd rows and columns, see :mod:`.input_geometry`.
        ``lanes`` is for planes of interleaved lanes, where it is the neighbouring vector.
    loop_order : str
        ``tile_outer`` keeps an input tile in cache over all filter_groups, ``filter_outer`` the
        weights of a group over all tiles.
    prefetch : bool
        Prefetch the input of the next kernel.
    isa : str
        ``neon`` reads weights (or broadcast inputs) as elements of whole vectors, which the
        multiply-add takes as they are (``fmla v.4s, v.4s, v.s[i]``), and keeps one base pointer per
        column of taps, since the offset of a 128-bit load is a multiple of 16 bytes. ``any`` leaves
        both to LLVM.
    channel_block : int
        In_channels that all filter_groups go over before the next ones, see
        :mod:`.channel_blocks`; 0 for all at once.
    fetch_ahead : bool
        Fetch the next tile's input into L2 and the outputs' lines before they are needed, see
        :mod:`.fetch_ahead`.
    body : str
        One of :data:`BODIES`: ``patterns`` has one straight body per pattern, whose taps share
        loaded inputs; ``taps`` one loop over a flat list of (offset, weight), whatever the
        patterns, see :mod:`topi_kernels.tap_lists`; ``copied`` the same for kernels of one tap,
        whose inputs of a tile and block are copied first, see :mod:`.tile_copy`. ``gemm`` (kernels
        of one tap), ``winograd2`` and ``winograd4`` (3x3, tiles of 2x2 and 4x4 outputs) are for
        dense layers, see :mod:`.gemm`; their register_tile is ``tile_cols`` positions times
        ``filter_vectors`` vectors of filters.
    even_rows : bool
        Where ``tile_rows`` does not divide the rows: tiles whose heights differ by one at most and
        which overlap nowhere, with a body for each height. Otherwise all tiles have the same rows,
        and the last one is moved back, so that it computes some of them again.
    chains : int
        Sums per output, which take the taps of a kernel in turns and are added at the end: where a
        tile is too small for the latency of the multiply-adds.
    positions : int
        Positions whose inputs are brought in order at once, of the bodies for dense layers: pixels,
        in whole rows, or tiles; 0 for the others.
    """

    vector_width: int
    filter_lanes: int
    filter_vectors: int
    tile_rows: int
    tile_cols: int
    taps_per_step: int = 4
    shift: str = "load"
    loop_order: str = "tile_outer"
    prefetch: int = 1
    isa: str = "any"
    channel_block: int = 0
    fetch_ahead: bool = False
    body: str = PATTERNS
    even_rows: bool = False
    chains: int = 1
    positions: int = 0

    @property
    def pixel_lanes(self) -> int:
        return self.vector_width // self.filter_lanes

    @property
    def has_lists(self) -> bool:
        """Whether the layer is stored as tap lists."""
        return self.body in (TAPS, COPIED)

    @property
    def is_gemm(self) -> bool:
        """Whether a dense layer is computed as products of matrices."""
        return self.body in TILE_OUTPUTS

    @property
    def tile_outputs(self) -> int:
        """Outputs along a row of a tile of Winograd's filtering, 1 of kernels of one tap."""
        return TILE_OUTPUTS[self.body]

    @property
    def column_step(self) -> int:
        """Distance in memory of two neighbouring pixels of an input row."""
        return self.vector_width if self.shift == "lanes" else 1

    @property
    def group(self) -> int:
        """Filters of a filter_group."""
        return self.filter_lanes * self.filter_vectors

    @property
    def packing(self) -> tuple[int, str, int]:
        """Equal for configs under which weights are stored alike."""
        if self.body == PATTERNS:
            return self.group, PATTERNS, 0
        return self.group, self.body, self.channel_block

    @property
    def outputs(self) -> int:
        """Vectors of outputs of a register_tile."""
        return self.filter_vectors * self.tile_rows * self.tile_cols

    @property
    def accumulators(self) -> int:
        """Vectors of sums that a register_tile holds."""
        return self.chains * self.outputs

    def row_tiles(self, height: int) -> tuple[tuple[int, int], ...]:
        """``(rows, number)`` of the tiles that ``height`` rows are cut into, from the top down."""
        number = -(-height // self.tile_rows)
        if not self.even_rows:
            return ((self.tile_rows, number),)
        low, tall = divmod(height, number)
        return ((low + 1, tall), (low, number - tall)) if tall else ((low, number),)

    def computed_rows(self, height: int) -> int:
        """Rows that the tiles compute for ``height`` rows."""
        return sum(rows * number for rows, number in self.row_tiles(height))

    def with_rows(self, rows: int) -> ConvConfig:
        """The body of a tile of so many rows."""
        return replace(self, tile_rows=rows, even_rows=False)

    def as_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> ConvConfig:
        """Inverse of :meth:`as_dict`.

        Raises
        ------
        ValueError
            On unknown knobs, missing ones without a default, or values of another type.
        """
        known = {f.name: f for f in fields(cls)}
        unknown = sorted(set(data) - set(known))
        needed = [name for name, f in known.items() if f.default is MISSING]
        missing = sorted(set(needed) - set(data))
        if unknown or missing:
            raise ValueError(f"config has unknown knobs {unknown} and lacks {missing}")
        kinds = {"int": int, "str": str, "bool": bool}
        wrong = sorted(n for n, v in data.items() if type(v) is not kinds[str(known[n].type)])
        if wrong:
            raise ValueError(f"config has knobs {wrong} of another type")
        return cls(**data)


#: Knobs that leave the tile alone, and the values that tuning tries beside the schedule's own.
EXTRA_KNOBS: dict[str, Sequence[Any]] = {"loop_order": LOOP_ORDERS, "prefetch": (0, 1)}

#: Widths of a search by name: the schedule's own points, the default, and finer steps of knobs.
WIDTHS: dict[str, dict[str, Sequence[Any]]] = {
    "schedule": {},
    "default": EXTRA_KNOBS,
    "wide": {
        "loop_order": LOOP_ORDERS,
        "prefetch": (0, 1, 2, 4, MAX_PREFETCH),
        "taps_per_step": (1, 2),
    },
}


def knobs_of(width: str) -> dict[str, Sequence[Any]]:
    """The values beside the schedule's own that a search of this width tries.

    Raises
    ------
    ValueError
        If there is no such width.
    """
    if width not in WIDTHS:
        raise ValueError(f"unknown width of the space {width!r}; expected one of {sorted(WIDTHS)}")
    return WIDTHS[width]


def register_need(config: ConvConfig) -> int:
    """Vector registers the inner loop wants: accumulators, weights of a step, one loaded input."""
    return config.accumulators + config.taps_per_step * config.filter_vectors + 1


def taps_registers(config: ConvConfig) -> int:
    """Vector registers that the loop over a tap list wants.

    Accumulators, and the inputs of a tile or the weights of an entry, whichever are fewer; the
    others come one at a time. A single filter's inputs are read by the multiply-adds themselves.
    """
    inputs = config.tile_rows * config.tile_cols
    held = min(inputs, config.filter_vectors)
    return config.accumulators + held + (1 if config.filter_vectors > 1 else 0)


def _taps_reason(config: ConvConfig, stride_w: int) -> str | None:
    """Why a body of tap lists can't be used, or None."""
    if config.filter_lanes != 1 or config.shift not in ("load", "lanes"):
        return f"body {config.body} needs lanes over pixels, and shift load or lanes"
    if config.body == COPIED:
        if not config.channel_block:
            return "body copied needs a channel_block, whose input is copied"
        if config.even_rows:
            return "body copied has tiles of one size, even_rows must be off"
    elif stride_w != 1 and config.shift != "lanes":
        return "body taps needs lanes over pixels, and stride 1 or shift lanes"
    if config.chains > 1:
        return f"body {config.body} has one sum per output"
    if config.prefetch or config.taps_per_step != 1:
        return f"body {config.body} works off one tap at a time and prefetches none"
    return None


def illegal_reason(
    config: ConvConfig,
    family: Family,
    *,
    out_height: int,
    out_width: int,
    in_row_stride: int,
    out_row_stride: int,
    stride_w: int,
) -> str | None:
    """Why ``config`` can't be used for a workload, or None when it can."""
    c = config
    if c.vector_width > family.vector_width or c.vector_width < 1:
        return f"vector_width {c.vector_width} exceeds the family's {family.vector_width}"
    if c.filter_lanes < 1 or c.vector_width % c.filter_lanes:
        return f"filter_lanes {c.filter_lanes} does not divide vector_width {c.vector_width}"
    if min(c.filter_vectors, c.tile_rows, c.tile_cols, c.taps_per_step) < 1:
        return "filter_vectors, tile_rows, tile_cols and taps_per_step must be >= 1"
    if not 0 <= c.prefetch <= MAX_PREFETCH:
        return f"prefetch {c.prefetch} is not in 0..{MAX_PREFETCH}"
    if not 1 <= c.chains <= MAX_CHAINS:
        return f"chains {c.chains} is not in 1..{MAX_CHAINS}"
    if c.channel_block and c.chains > 1:
        return "channel_block keeps one partial sum per output, chains must be 1"
    if c.shift not in SHIFTS:
        return f"shift {c.shift!r} is not one of {SHIFTS}"
    if c.isa not in ISAS:
        return f"isa {c.isa!r} is not one of {ISAS}"
    if c.loop_order not in LOOP_ORDERS:
        return f"loop_order {c.loop_order!r} is not one of {LOOP_ORDERS}"
    if c.body not in BODIES:
        return f"body {c.body!r} is not one of {BODIES}"
    if c.has_lists and (reason := _taps_reason(c, stride_w)):
        return reason
    spare = family.temporaries if c.body == PATTERNS else taps_registers(c) - c.accumulators
    budget = family.vector_registers - spare
    if c.accumulators > budget:
        return f"{c.accumulators} accumulators exceed the budget of {budget} registers"
    columns = -(-out_width // c.pixel_lanes)
    if c.tile_rows > out_height:
        return f"tile_rows {c.tile_rows} exceeds the {out_height} output rows"
    if c.tile_cols > columns:
        return f"tile_cols {c.tile_cols} exceeds the {columns} vectors of an output row"
    if columns * c.pixel_lanes > out_row_stride:
        return (
            f"vectors of {c.pixel_lanes} pixels run over the row stride {out_row_stride} of the"
            " output"
        )
    if c.shift == "rotate" and (c.filter_lanes != 1 or stride_w != 1):
        return "rotate needs lanes over pixels and stride 1"
    if not 0 <= c.channel_block <= MAX_CHANNEL_BLOCK:
        return f"channel_block {c.channel_block} is not in 0..{MAX_CHANNEL_BLOCK}"
    if c.channel_block and c.loop_order != "tile_outer":
        return f"channel_block {c.channel_block} needs loop_order tile_outer"
    if c.shift == "split" and (stride_w != SPLIT_STRIDE or c.pixel_lanes == 1):
        return "split needs lanes over pixels and stride 2"
    if c.shift == "rotate" and in_row_stride % c.vector_width:
        return f"rotate needs a row stride that is a multiple of {c.vector_width}"
    return None
