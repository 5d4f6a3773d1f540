"""What a schedule must know of a processor family: lanes, registers, what things cost."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np


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
        One of :data:`.config.ISAS`, for configurations of the family's full width.
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
    paired_taps : bool
        Whether level 0 may also choose it for pairs of filters, of which many share a block.
    fetched_lists : bool
        Whether tap lists of several filters fetch the next tile's input where all of it is more
        than L2 holds: those of one filter have no load slots to spare.
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
    paired_taps: bool = False
    fetched_lists: bool = False
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
