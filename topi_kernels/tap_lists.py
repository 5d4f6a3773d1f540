"""Tap lists: a layer as flat lists of (offset, weight), by filter_group and block of in_channels.

The other way of storing a layer, beside :mod:`topi_kernels.fkw`. A kernel is taken apart into its
taps, so that the compute code knows no pattern: every entry adds ``weight * input`` at an offset
from the output's own place. Entries stand in the order in which they are worked off, which the
hardware fetches ahead by itself, and a block of in_channels may be small enough for its input to
stay in the nearest cache. It costs one offset per weight, where FKW has one per kernel. A layer is

``filter_order``  as in FKW
``list_start``    int32 ``[blocks * num_groups + 1]``, first entry of every list, blocks outermost
``offset``        uint16 or int32, one per entry, see :class:`TapCode`; spare entries at the end
``weights``       ``[entries][group]``

Entries of a list are sorted by (in_channel, tap): the sums have one order, whatever the block.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .geometry import ConvGeometry
from .layout import PlaneLayout
from .reorder import filter_order

#: Entries behind the last one that may be read, though not used.
LOOKAHEAD = 8


@dataclass(frozen=True)
class TapCode:
    """What an offset says: an in_channel of the block, and a tap.

    Parameters
    ----------
    kernel_size : tuple of (int, int)
    in_channels, channel_block : int
        In_channels of the layer and of a block.
    plane_size : int
        Elements of an input plane.
    starts : tuple of int
        For every position of the kernel, row-major, the element of a plane that output (0, 0) reads
        there. All differ.
    unit : int
        Elements that an offset counts by.
    """

    kernel_size: tuple[int, int]
    in_channels: int
    channel_block: int
    plane_size: int
    starts: tuple[int, ...]
    unit: int

    @classmethod
    def of(
        cls, geometry: ConvGeometry, layout: PlaneLayout, in_channels: int, channel_block: int = 0
    ) -> TapCode:
        """The code for an input of this layout; ``channel_block`` 0 is one block.

        Raises
        ------
        ValueError
            If two positions of a kernel read the same element, or one lies outside the plane.
        """
        reason = why_no_tap_lists(geometry, layout)
        if reason is not None:
            raise ValueError(f"no tap lists: {reason}; take the body 'patterns'")
        starts = _starts(geometry, layout)
        counts = [layout.size, *starts]
        unit = layout.lanes if all(count % layout.lanes == 0 for count in counts) else 1
        block = min(channel_block or in_channels, in_channels)
        return cls(geometry.kernel_size, in_channels, block, layout.size, starts, unit)

    @classmethod
    def of_copies(cls, in_channels: int, channel_block: int, floats: int, unit: int) -> TapCode:
        """The code for kernels of one tap whose inputs are copied, ``floats`` an in_channel.

        ``unit`` divides these: a vector, so that an address is a shift instead of a product.
        """
        block = min(channel_block, in_channels)
        return cls((1, 1), in_channels, block, floats, (0,), unit)

    @property
    def blocks(self) -> int:
        return -(-self.in_channels // self.channel_block)

    @property
    def dtype(self) -> str:
        """Narrowest type of an offset."""
        largest = (self.channel_block - 1) * self.plane_size + max(self.starts)
        return "uint16" if largest // self.unit <= 0xFFFF else "int32"

    def encode(self, channels: np.ndarray, taps: np.ndarray) -> np.ndarray:
        """Offsets of in_channels, counted in their block, and row-major kernel positions."""
        starts = np.array(self.starts, np.int64)
        return (channels * self.plane_size + starts[taps]) // self.unit

    def decode(self, offsets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Inverse of :meth:`encode`; a tap is -1 where no position of a kernel is meant."""
        channels, rest = np.divmod(offsets.astype(np.int64) * self.unit, self.plane_size)
        is_tap = rest[:, None] == np.array(self.starts, np.int64)[None, :]
        return channels, np.where(is_tap.any(axis=1), is_tap.argmax(axis=1), -1)


def _starts(geometry: ConvGeometry, layout: PlaneLayout) -> tuple[int, ...]:
    (kh, kw), (dh, dw), (pt, pl) = geometry.kernel_size, geometry.dilation, geometry.padding
    column = layout.lanes if layout.is_interleaved else 1
    return tuple(
        layout.origin + (r * dh - pt) * layout.row_stride + (c * dw - pl) * column
        for r in range(kh)
        for c in range(kw)
    )


def why_no_tap_lists(geometry: ConvGeometry, layout: PlaneLayout) -> str | None:
    """Why a tap is no fixed distance in memory for this input, or None."""
    (_, kw), (_, dw), (_, pl) = geometry.kernel_size, geometry.dilation, geometry.padding
    reach = max(pl, (kw - 1) * dw - pl)
    if layout.is_interleaved and layout.border < reach:
        return f"a tap reaches {reach} vectors beyond a row that stores {layout.border}"
    starts = _starts(geometry, layout)
    if len(set(starts)) < len(starts) or min(starts) < 0 or max(starts) >= layout.size:
        return "taps share an element of the plane, or lie outside it"
    return None


@dataclass(frozen=True)
class TapLists:
    """A packed layer. Build it with :func:`pack_taps`, check it with :func:`validate_taps`."""

    out_channels: int
    group: int
    code: TapCode
    filter_order: np.ndarray
    list_start: np.ndarray
    offset: np.ndarray
    weights: np.ndarray

    @property
    def num_groups(self) -> int:
        return len(self.filter_order) // self.group

    @property
    def num_entries(self) -> int:
        """Stored taps, counted once per filter_group."""
        return int(self.list_start[-1])

    @property
    def named_arrays(self) -> dict[str, np.ndarray]:
        """The packed arrays by name, in the order in which the operator takes them."""
        names = ("filter_order", "list_start", "offset", "weights")
        return {name: getattr(self, name) for name in names}

    @property
    def arrays(self) -> list[np.ndarray]:
        """The packed arrays in the order in which the operator takes them."""
        return list(self.named_arrays.values())


def _order_dtype(out_channels: int) -> str:
    if out_channels <= 0xFF:
        return "uint8"
    return "uint16" if out_channels <= 0xFFFF else "int32"


def _by_block(kept: np.ndarray, code: TapCode) -> np.ndarray:
    """bool ``[groups, in, kh, kw]`` -> ``[blocks, groups, channel_block, kh * kw]``."""
    groups, in_channels, kh, kw = kept.shape
    whole = np.zeros((groups, code.blocks * code.channel_block, kh * kw), bool)
    whole[:, :in_channels] = kept.reshape(groups, in_channels, kh * kw)
    return whole.reshape(groups, code.blocks, code.channel_block, kh * kw).swapaxes(0, 1)


def pack_taps(
    weight: np.ndarray, group: int, code: TapCode, kept: np.ndarray, *, share_all: bool = False
) -> TapLists:
    """Pack pruned weights.

    Parameters
    ----------
    weight : numpy.ndarray
        float ``[out_channels, in_channels, kh, kw]``.
    group : int
        Filters of a filter_group, as in :func:`topi_kernels.fkw.pack`.
    code : TapCode
    kept : numpy.ndarray
        bool, of the weights' shape.
    share_all : bool
        Whether all weights are stored, as those of a dense layer.

    Raises
    ------
    ValueError
        If the weights are not those of ``code``, or one that is not kept is not zero.
    """
    kernel = (code.in_channels, *code.kernel_size)
    if weight.ndim != 4 or weight.shape[1:] != kernel or kept.shape != weight.shape:
        raise ValueError(
            f"weights of shape {weight.shape}, kept of shape {kept.shape}: expected"
            f" [out_channels, {', '.join(str(extent) for extent in kernel)}] for both"
        )
    if not share_all and np.any(weight[~kept]):
        raise ValueError("kept leaves out weights that are not zero; give the structure of these")
    order = filter_order(kept, group, share_all=share_all)
    slots = order.reshape(-1, group)
    leaders = np.ones((len(slots), *kernel), bool) if share_all else kept[slots[:, 0]]
    by_block = _by_block(leaders, code)
    blocks, groups, channels, taps = np.nonzero(by_block)
    counts = np.count_nonzero(by_block, axis=(2, 3)).reshape(-1)
    flat = weight.reshape(len(weight), -1)
    flat = np.concatenate([flat, np.zeros((1, flat.shape[1]), weight.dtype)])
    column = (blocks * code.channel_block + channels) * len(code.starts) + taps
    weights = flat[slots[groups], column[:, None]].reshape(-1)
    offsets = np.concatenate([code.encode(channels, taps), np.zeros(LOOKAHEAD, np.int64)])
    return TapLists(
        out_channels=len(weight),
        group=group,
        code=code,
        filter_order=order.astype(_order_dtype(len(weight))),
        list_start=np.concatenate([[0], np.cumsum(counts)]).astype(np.int32),
        offset=offsets.astype(code.dtype),
        # An operator's buffer has an element at least.
        weights=weights if weights.size else np.zeros(1, weight.dtype),
    )


def unpack_taps(lists: TapLists) -> np.ndarray:
    """Dense weights ``[out_channels, in_channels, kh, kw]``; the inverse of :func:`pack_taps`."""
    code = lists.code
    dense = np.zeros((lists.out_channels + 1, code.in_channels, len(code.starts)))
    dense = dense.astype(lists.weights.dtype)
    channels, taps = code.decode(lists.offset[: lists.num_entries])
    slots = lists.filter_order.astype(np.int64).reshape(-1, lists.group)
    for number, start in enumerate(lists.list_start[:-1]):
        block, group = divmod(number, lists.num_groups)
        for entry in range(start, lists.list_start[number + 1]):
            channel = block * code.channel_block + channels[entry]
            values = lists.weights[entry * lists.group : (entry + 1) * lists.group]
            dense[slots[group], channel, taps[entry]] = values
    return dense[: lists.out_channels].reshape(-1, code.in_channels, *code.kernel_size)


def validate_taps(lists: TapLists) -> None:
    """Check every invariant of the lists.

    Raises
    ------
    ValueError
        Naming the first broken invariant; an offset that this accepts never makes the operator read
        outside the input.
    """
    code, entries = lists.code, lists.num_entries
    real = lists.filter_order[lists.filter_order < lists.out_channels]
    whole = len(lists.filter_order) % lists.group == 0
    if not whole or sorted(real.tolist()) != list(range(lists.out_channels)):
        raise ValueError("filter_order is not a permutation of the filters plus empty slots")
    starts = lists.list_start
    if (
        len(starts) != code.blocks * lists.num_groups + 1
        or starts[0]
        or np.any(np.diff(starts) < 0)
    ):
        raise ValueError("list_start does not rise from 0 over all blocks and filter_groups")
    if len(lists.offset) != entries + LOOKAHEAD:
        raise ValueError(
            f"offset has {len(lists.offset)} entries, expected {entries} + {LOOKAHEAD}"
        )
    if len(lists.weights) < entries * lists.group:
        raise ValueError(
            f"weights holds {len(lists.weights)} values, expected {entries * lists.group}"
        )
    channels, taps = code.decode(lists.offset[:entries])
    block = np.repeat(np.arange(len(starts) - 1) // max(lists.num_groups, 1), np.diff(starts))
    if np.any(taps < 0) or np.any(channels >= code.channel_block):
        raise ValueError("an offset names no tap of the kernel, or an in_channel beyond its block")
    if np.any(block * code.channel_block + channels >= code.in_channels):
        raise ValueError(f"an in_channel lies outside 0..{code.in_channels - 1}")
