"""FKW: filter-kernel-weight compressed storage. Sole owner of the packed layout.

PatDNN (ASPLOS'20, section 5.3) stores one index per *kernel*; the taps follow from the pattern the
kernel is filed under. A layer is packed as

``filter_order``   ``[num_groups * group]``, narrowest unsigned integer; original filter of every
                   slot, ``out_channels`` for an empty one
``group_start``    int32 ``[num_groups + 1]``, first kernel of every filter_group
``weight_start``   int32 ``[num_groups + 1]``, first weight of every filter_group; only passed to
                   the operator when the patterns differ in their number of taps
``pattern_count``  uint8 / uint16 / int32 ``[num_groups * num_patterns]``, kernels per pattern (the
                   papers' stride array as differences)
``in_channel``     one entry per kernel, see *index encodings*; spare entries at the end let the
                   compute code look ahead
``weights``        ``[taps of the kernel][group]`` per kernel, interleaved for the filter_group

Kernels of a group are sorted by (pattern, in_channel).

Index encodings
---------------
``absolute8`` / ``absolute16`` / ``absolute32``
    The in_channel itself in the narrowest unsigned integer that fits.
``delta8``
    For more than 256 in_channels: the distance to the previous in_channel of the same list (group,
    pattern), starting at 0, as uint8. A gap above 255 is bridged by a kernel of zero weights.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .pattern import Pattern, dense_pattern, single_tap_patterns
from .reorder import distinct_patterns, filter_order

LOOKAHEAD = 8
STRUCTURES = ("pattern", "tap", "dense")
INDEX_DTYPES = {
    "absolute8": "uint8",
    "absolute16": "uint16",
    "absolute32": "int32",
    "delta8": "uint8",
}
# Above this share of bridging kernels uint16 indices are smaller than the bridges' weights.
MAX_BRIDGES = 0.01


@dataclass(frozen=True)
class FKW:
    """A packed layer. Build it with :func:`pack`, check it with :func:`validate`."""

    out_channels: int
    in_channels: int
    kernel_size: tuple[int, int]
    group: int
    patterns: tuple[Pattern, ...]
    index_encoding: str
    filter_order: np.ndarray
    group_start: np.ndarray
    weight_start: np.ndarray
    pattern_count: np.ndarray
    in_channel: np.ndarray
    weights: np.ndarray

    @property
    def num_groups(self) -> int:
        return len(self.group_start) - 1

    @property
    def uniform_taps(self) -> bool:
        """Whether all patterns keep the same number of taps."""
        return len({len(p) for p in self.patterns}) <= 1

    @property
    def num_kernels(self) -> int:
        """Stored kernels, counted once per filter_group."""
        return int(self.group_start[-1])

    @property
    def named_arrays(self) -> dict[str, np.ndarray]:
        """The packed arrays by name, in the order in which the operator takes them."""
        return {
            "filter_order": self.filter_order,
            "group_start": self.group_start,
            **({} if self.uniform_taps else {"weight_start": self.weight_start}),
            "pattern_count": self.pattern_count,
            "in_channel": self.in_channel,
            "weights": self.weights,
        }

    @property
    def arrays(self) -> list[np.ndarray]:
        """The packed arrays in the order in which the operator takes them."""
        return list(self.named_arrays.values())

    @property
    def nbytes(self) -> int:
        """Bytes of all packed arrays."""
        return sum(a.nbytes for a in self.arrays)


def _narrowest(limit: int) -> str:
    if limit <= 0xFF:
        return "uint8"
    return "uint16" if limit <= 0xFFFF else "int32"


def _membership(kept: np.ndarray, patterns: tuple[Pattern, ...], structure: str) -> np.ndarray:
    """Which pattern lists every kernel is filed under, bool ``[out, in, num_patterns]``."""
    out_channels, in_channels, kh, kw = kept.shape
    masks = kept.reshape(out_channels, in_channels, kh * kw)
    if structure == "dense":
        return np.ones((out_channels, in_channels, 1), bool)
    if structure == "tap":
        return masks[:, :, [r * kw + c for p in patterns for r, c in p.taps]]
    member = np.zeros((out_channels, in_channels, len(patterns)), bool)
    open_kernels = masks.any(axis=2)
    for p in sorted(range(len(patterns)), key=lambda p: len(patterns[p])):
        outside = ~patterns[p].mask.reshape(-1)
        member[:, :, p] = open_kernels & ~masks[:, :, outside].any(axis=2)
        open_kernels &= ~member[:, :, p]
    if open_kernels.any():
        o, i = np.argwhere(open_kernels)[0]
        raise ValueError(
            f"kernel ({o}, {i}) keeps taps that no given pattern covers; pass patterns that cover"
            " every kernel, e.g. distinct_patterns(kept)"
        )
    return member


@dataclass(frozen=True)
class _Lists:
    """The in_channel lists of all (filter_group, pattern), one after the other."""

    #: int64 ``[num_groups, num_patterns]``, entries of each list.
    counts: np.ndarray
    #: int64, one per entry.
    channels: np.ndarray

    @classmethod
    def of(cls, leaders: np.ndarray) -> _Lists:
        """From bool ``[num_groups, in_channels, num_patterns]``."""
        by_list = leaders.transpose(0, 2, 1)
        return cls(np.count_nonzero(by_list, axis=2), np.nonzero(by_list)[2])


def _encode_lists(lists: _Lists, in_channels: int) -> tuple[str, np.ndarray, _Lists]:
    """Encoding, the code of each entry, and the lists with bridges, whose channel is -1."""
    if in_channels <= 256:
        return "absolute8", lists.channels, lists
    channels, counts = lists.channels, lists.counts.reshape(-1)
    gaps = np.diff(channels, prepend=0)
    first = (np.cumsum(counts) - counts)[counts > 0]
    gaps[first] = channels[first]
    if (gaps // 256).sum() > MAX_BRIDGES * max(len(channels), 1):
        wide = "absolute16" if in_channels <= 0x10000 else "absolute32"
        return wide, channels, lists
    bridges = np.maximum(gaps - 1, 0) // 255
    last = np.cumsum(bridges + 1) - 1
    codes = np.full(len(channels) + bridges.sum(), 255)
    codes[last] = gaps - 255 * bridges
    bridged = np.full(len(codes), -1)
    bridged[last] = channels
    lists_of_entries = np.repeat(np.arange(len(counts)), counts)
    more = np.bincount(lists_of_entries, weights=bridges, minlength=len(counts)).astype(np.int64)
    return "delta8", codes, _Lists((counts + more).reshape(lists.counts.shape), bridged)


def _stored_weights(
    weight: np.ndarray, patterns: tuple[Pattern, ...], groups: np.ndarray, lists: _Lists
) -> np.ndarray:
    """Weights ``[stored taps, group]`` in stored order; zero for empty slots and bridges."""
    out_channels, in_channels, kh, kw = weight.shape
    num_patterns, group = len(patterns), groups.shape[1]
    taps = np.array([r * kw + c for p in patterns for r, c in p.taps])
    if num_patterns == 1 and (lists.counts == in_channels).all():  # All kernels, in order.
        every = weight.reshape(out_channels, in_channels, kh * kw)[:, :, taps]
        every = every.reshape(out_channels, in_channels * len(taps))
        padded = np.concatenate([every, np.zeros((1, every.shape[1]), weight.dtype)])
        return padded[groups].transpose(0, 2, 1).reshape(-1, group)
    tap_count = np.array([len(p) for p in patterns])
    tap_start = np.cumsum(tap_count) - tap_count
    counts = lists.counts.reshape(-1)
    entry_pattern = np.repeat(np.tile(np.arange(num_patterns), len(groups)), counts)
    entry_group = np.repeat(np.arange(len(groups)), lists.counts.sum(axis=1))
    entry_taps = tap_count[entry_pattern]
    # Where each entry begins in `taps`, less where it begins in the result.
    shift = tap_start[entry_pattern] - (np.cumsum(entry_taps) - entry_taps)
    stored = np.arange(entry_taps.sum())
    tap = taps[stored + np.repeat(shift, entry_taps)]
    in_filter = np.repeat(lists.channels, entry_taps) * (kh * kw) + tap
    is_bridge = np.repeat(lists.channels < 0, entry_taps)
    flat = weight.reshape(-1)
    result = np.empty((len(stored), group), weight.dtype)
    for slot in range(group):
        filters = np.repeat(groups[entry_group, slot], entry_taps)
        is_zero = is_bridge | (filters == out_channels)
        index = filters.astype(np.int64) * (in_channels * kh * kw) + in_filter
        index[is_zero] = 0
        result[:, slot] = np.where(is_zero, 0, flat[index])
    return result


def pack(
    weight: np.ndarray,
    group: int = 1,
    patterns: tuple[Pattern, ...] | None = None,
    structure: str = "pattern",
    kept: np.ndarray | None = None,
) -> FKW:
    """Pack pruned weights.

    Parameters
    ----------
    weight : numpy.ndarray
        float ``[out_channels, in_channels, kh, kw]``.
    group : int
        Filters of a filter_group. Filters that do not share kernels and patterns never meet in one
        group; incomplete groups get empty slots.
    patterns : tuple of Pattern, optional
        Patterns that cover every kernel; default: the distinct patterns of ``weight``. Only for the
        structure "pattern".
    structure : str
        ``pattern`` files every kernel under the smallest pattern that covers it. ``tap`` files
        every weight by itself under the pattern of its single tap, for kernels that follow no small
        pattern set. ``dense`` stores all weights, zeros included; all filters share.

    Raises
    ------
    ValueError
        If the shape, the values (NaN, Inf), ``group``, ``patterns`` or ``structure`` are unusable.
    """
    weight = np.asarray(weight)
    if structure not in STRUCTURES:
        raise ValueError(f"structure {structure!r}: expected one of {STRUCTURES}")
    if weight.ndim != 4:
        raise ValueError(f"weights are [out, in, kh, kw], got shape {weight.shape}")
    if not np.isfinite(weight).all():
        raise ValueError("weights contain NaN or Inf; check the checkpoint before packing")
    if group < 1:
        raise ValueError(f"group must be >= 1, got {group}")
    out_channels, in_channels, kh, kw = weight.shape
    kept = weight.astype(bool) if kept is None else kept
    if kept.shape != weight.shape or np.any(weight[~kept]):
        raise ValueError(
            f"kept is {kept.shape} for weights {weight.shape}, or leaves out weights that are not"
            " zero; give the structure of these weights"
        )
    if structure == "pattern":
        patterns = distinct_patterns(kept) if patterns is None else tuple(patterns)
        patterns = patterns or (Pattern((kh, kw), ((0, 0),)),)
    else:
        whole = dense_pattern((kh, kw))
        patterns = (whole,) if structure == "dense" else single_tap_patterns((kh, kw))
    member = _membership(kept, patterns, structure)
    order = filter_order(kept, group, share_all=structure == "dense")
    lists = _Lists.of(member[order[::group]])
    encoding, codes, lists = _encode_lists(lists, in_channels)
    weights = _stored_weights(weight, patterns, order.reshape(-1, group), lists)
    tap_count = np.array([len(p) for p in patterns], np.int64)
    weight_sizes = lists.counts @ tap_count * group
    return FKW(
        out_channels=out_channels,
        in_channels=in_channels,
        kernel_size=(kh, kw),
        group=group,
        patterns=patterns,
        index_encoding=encoding,
        filter_order=order.astype(_narrowest(out_channels)),
        group_start=np.concatenate([[0], np.cumsum(lists.counts.sum(axis=1))]).astype(np.int32),
        weight_start=np.concatenate([[0], np.cumsum(weight_sizes)]).astype(np.int32),
        pattern_count=lists.counts.reshape(-1).astype(_narrowest(int(lists.counts.max(initial=0)))),
        in_channel=np.concatenate([codes, np.zeros(LOOKAHEAD)]).astype(INDEX_DTYPES[encoding]),
        # An operator's buffer has an element at least.
        weights=weights.reshape(-1) if weights.size else np.zeros(1, weight.dtype),
    )


def unpack(fkw: FKW) -> np.ndarray:
    """Dense weights ``[out_channels, in_channels, kh, kw]``; the exact inverse of :func:`pack`."""
    kh, kw = fkw.kernel_size
    dense = np.zeros((fkw.out_channels + 1, fkw.in_channels, kh, kw), fkw.weights.dtype)
    num_patterns = len(fkw.patterns)
    for g in range(fkw.num_groups):
        k = int(fkw.group_start[g])
        w = int(fkw.weight_start[g])
        members = fkw.filter_order[g * fkw.group : (g + 1) * fkw.group]
        for p, pattern in enumerate(fkw.patterns):
            channel = 0
            for _ in range(int(fkw.pattern_count[g * num_patterns + p])):
                code = int(fkw.in_channel[k])
                channel = channel + code if fkw.index_encoding == "delta8" else code
                for r, c in pattern.taps:
                    # += because several lists may name one kernel, and bridges add nothing
                    dense[members, channel, r, c] += fkw.weights[w : w + fkw.group]
                    w += fkw.group
                k += 1
    return dense[: fkw.out_channels]


def validate(fkw: FKW) -> None:
    """Check every invariant of the layout.

    Raises
    ------
    ValueError
        Naming the first broken invariant; an index that this accepts never makes the operator read
        or write outside its buffers.
    """
    slots = fkw.num_groups * fkw.group
    if fkw.index_encoding not in INDEX_DTYPES:
        raise ValueError(f"index_encoding {fkw.index_encoding!r}: expected {list(INDEX_DTYPES)}")
    real = fkw.filter_order[fkw.filter_order < fkw.out_channels]
    if len(fkw.filter_order) != slots or sorted(real.tolist()) != list(range(fkw.out_channels)):
        raise ValueError("filter_order is not a permutation of the filters plus empty slots")
    counts = fkw.pattern_count.astype(np.int64).reshape(fkw.num_groups, -1)
    if not np.array_equal(np.diff(fkw.group_start), counts.sum(axis=1)) or fkw.group_start[0]:
        raise ValueError("group_start does not match pattern_count")
    taps = np.array([len(p) for p in fkw.patterns], np.int64)
    if not np.array_equal(np.diff(fkw.weight_start), counts @ taps * fkw.group):
        raise ValueError("weight_start does not match pattern_count and the patterns' taps")
    if len(fkw.in_channel) != fkw.num_kernels + LOOKAHEAD:
        raise ValueError(
            f"in_channel has {len(fkw.in_channel)} entries, expected"
            f" {fkw.num_kernels} + {LOOKAHEAD} spare ones"
        )
    if len(fkw.weights) < fkw.weight_start[-1]:
        raise ValueError(
            f"weights holds {len(fkw.weights)} values, expected {fkw.weight_start[-1]}"
        )
    codes = fkw.in_channel[: fkw.num_kernels].astype(np.int64)
    channels = codes
    if fkw.index_encoding == "delta8":
        sizes = counts.reshape(-1)
        sums = np.concatenate([[0], np.cumsum(codes)])
        channels = sums[1:] - np.repeat(sums[np.cumsum(sizes) - sizes], sizes)
    if len(channels) and (channels.min() < 0 or channels.max() >= fkw.in_channels):
        raise ValueError(f"an in_channel index lies outside 0..{fkw.in_channels - 1}")
