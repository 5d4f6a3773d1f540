"""The knobs of the pattern-sparse convolution, and the values that a search tries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import MISSING, asdict, dataclass, fields, replace
from typing import Any

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
