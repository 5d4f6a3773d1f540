"""FKW for 8-bit weights: words of four, filed by filter_group, chunk of taps and in_channel.

The taps of every pattern are cut into *chunks* of at most four. Kept kernels of a group that have a
chunk become one entry: the in_channel (of a 1x1 convolution: the four of them that share a word)
and a word of four weights for each filter of the group. The sole owner of this layout; ``unpack``
inverts it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ...structure import Structure

WORD = 4
"""Weights of a word."""
GROUP_SIZES = (4, 2, 1)
#: Largest magnitude that an accumulator may reach.
INT32_MAX = 2**31 - 1

Tap = tuple[int, int]
Chunk = tuple[Tap, ...]


class OverflowsInt32Error(ValueError):
    """The sums of a filter may leave 32 bits."""


@dataclass(frozen=True, eq=False)
class PackedWeights:
    """The weights of one layer in the order in which they are read.

    Parameters
    ----------
    shape : tuple of int
        ``(out_channels, in_channels, kh, kw)``.
    chunks : tuple of Chunk
        The distinct chunks, in the order of ``counts``.
    group : int
        Filters that share entries.
    filter_order : numpy.ndarray
        int32 ``[slots]``: the filter of each slot. Groups that are not full repeat a filter.
    group_start : numpy.ndarray
        int32 ``[groups]``: first entry of each group.
    counts : numpy.ndarray
        uint8 or uint16 ``[groups, chunks]``: entries of each chunk.
    units : numpy.ndarray
        uint8 or uint16 ``[entries]``: in_channel, or quad of in_channels of a 1x1 convolution.
    words : numpy.ndarray
        int32 ``[entries, group]``: four weights each, the first in the lowest byte.
    """

    shape: tuple[int, int, int, int]
    chunks: tuple[Chunk, ...]
    group: int
    filter_order: np.ndarray
    group_start: np.ndarray
    counts: np.ndarray
    units: np.ndarray
    words: np.ndarray

    @property
    def pointwise(self) -> bool:
        """Whether a word holds four in_channels of one tap."""
        return self.shape[2:] == (1, 1)

    @property
    def entries(self) -> int:
        """Words per filter slot of all groups."""
        return len(self.units)

    @property
    def groups(self) -> int:
        """Filter_groups."""
        return len(self.group_start)

    @property
    def arrays(self) -> list[np.ndarray]:
        """What the operator reads, in the order of its parameters; never empty."""
        units, words = self.units, self.words.reshape(-1)
        if not len(units):
            units, words = np.zeros(1, units.dtype), np.zeros(self.group, np.int32)
        counts = self.counts.reshape(-1)
        return [self.filter_order, self.group_start, counts, units, words]

    @cached_property
    def stored_bytes(self) -> int:
        """Bytes of counts, indices and words."""
        parts = (self.group_start, self.counts, self.units, self.words)
        return sum(part.nbytes for part in parts)


def _narrow(values: np.ndarray, limit: int) -> np.ndarray:
    return values.astype(np.uint8 if limit <= np.iinfo(np.uint8).max else np.uint16)


def chunks_of(taps: tuple[Tap, ...]) -> tuple[Chunk, ...]:
    """The taps of a pattern, four by four."""
    return tuple(taps[i : i + WORD] for i in range(0, len(taps), WORD))


def row_chunks(kernel_size: tuple[int, int]) -> tuple[Chunk, ...]:
    """All taps of a kernel, up to four neighbours of a row to a chunk."""
    height, width = kernel_size
    return tuple(
        tuple((row, col) for col in range(first, min(first + WORD, width)))
        for row in range(height)
        for first in range(0, width, WORD)
    )


def _chunks_of_patterns(filed: Structure, *, by_rows: bool) -> list[tuple[Chunk, ...]]:
    """The chunks of each pattern."""
    if by_rows:
        return [row_chunks(pattern.kernel_size) for pattern in filed.tap_sets]
    return [chunks_of(pattern.taps) for pattern in filed.tap_sets]


def _distinct(chunks: list[tuple[Chunk, ...]]) -> tuple[Chunk, ...]:
    return tuple(sorted({chunk for parts in chunks for chunk in parts})) or (((0, 0),),)


def filed_structure(structure: Structure, *, by_rows: bool = False) -> Structure:
    """What of a layer counts as kept here.

    Dense layers and those without patterns keep everything. 1x1 kernels are kept four in_channels
    together: all of a quad in which any is kept; an in_channel of the result is such a quad. Filed
    by rows, see :func:`row_chunks`, kernels keep everything too.
    """
    out_channels, in_channels, kh, kw = structure.shape
    if (kh, kw) == (1, 1):
        quads = -(-in_channels // WORD)
        kept = np.zeros((out_channels, quads * WORD), bool)
        kept[:, :in_channels] = structure.kept[:, :, 0, 0]
        quad_kept = np.asarray(kept.reshape(out_channels, quads, WORD).any(axis=2))
        return Structure(quad_kept[:, :, None, None], structure.source)
    if structure.kind == "pattern" and not by_rows:
        return structure
    return Structure(np.ones_like(structure.kept), structure.source)


def filter_groups(structure: Structure, group: int) -> list[np.ndarray]:
    """Filters that are computed together; the last of a class is repeated to fill a group."""
    groups = []
    for members in structure.classes:
        for first in range(0, len(members), group):
            part = np.asarray(members[first : first + group])
            groups.append(np.pad(part, (0, group - len(part)), mode="edge"))
    return groups


def largest_group(structure: Structure) -> int:
    """Most filters that share entries with few slots left empty."""
    out_channels = structure.shape[0]
    for group in GROUP_SIZES:
        slots = group * len(filter_groups(structure, group))
        if slots <= out_channels + group - 1:
            return group
    return 1


@dataclass(frozen=True)
class Filing:
    """One way to file a layer's weights.

    Parameters
    ----------
    by_rows : bool
        Whether chunks are neighbours of a row instead of those of patterns.
    group : int
        Filters of a group.
    groups, entries : int
        How many there are.
    full : bool
        Whether few places of groups are left empty.
    """

    by_rows: bool
    group: int
    groups: int
    entries: int
    full: bool


def filings(structure: Structure, *, by_rows: bool = False) -> list[Filing]:
    """What :func:`pack` would make of a layer, for every size of groups, the largest first."""
    filed = filed_structure(structure, by_rows=by_rows)
    chunks = [len(parts) for parts in _chunks_of_patterns(filed, by_rows=by_rows)]
    of_pattern = np.array([*chunks, 0])  # -1: a kernel that is removed
    found = []
    for group in GROUP_SIZES:
        firsts = [
            members[first] for members in filed.classes for first in range(0, len(members), group)
        ]
        entries = int(of_pattern[filed.pattern_id[firsts]].sum()) if firsts else 0
        full = group * len(firsts) <= filed.shape[0] + group - 1
        found.append(Filing(by_rows, group, len(firsts), entries, full or group == 1))
    return found


def check_sums(weight: np.ndarray, bias: np.ndarray) -> None:
    """Refuse weights with which a sum might leave 32 bits.

    Parameters
    ----------
    weight : numpy.ndarray
        int8 ``[out_channels, ...]``.
    bias : numpy.ndarray
        Whole numbers ``[out_channels]`` that the sums begin with.

    Raises
    ------
    OverflowsInt32Error
        With the filter and how far it may reach.
    """
    flat = np.abs(weight.reshape(len(weight), -1).astype(np.int64))
    reach: np.ndarray = flat.sum(axis=1) * 255 + np.abs(np.asarray(bias, np.float64))
    worst = int(reach.argmax()) if len(reach) else 0
    if len(reach) and not reach[worst] <= INT32_MAX:
        raise OverflowsInt32Error(
            f"the sums of filter {worst} may reach {reach[worst]:.4g}, and 32 bits hold"
            f" {INT32_MAX}; its bias is too large for the scales of weights and activations"
        )


def pack(
    weight: np.ndarray,
    structure: Structure,
    group: int | None = None,
    *,
    by_rows: bool = False,
) -> PackedWeights:
    """Pack the weights of a convolution.

    Parameters
    ----------
    weight : numpy.ndarray
        int8 ``[out_channels, in_channels, kh, kw]``.
    structure : Structure
        Which of them are kept; kept ones may be zero.
    group : int, optional
        Filters of a group: 1, 2 or 4. Default: as many as share what they keep.
    by_rows : bool
        Keep all kernels, a chunk being neighbours of one row.

    Raises
    ------
    ValueError
        If the weights are no bytes, contradict the structure, or the group is another.
    """
    if weight.dtype != np.int8 or weight.ndim != 4:
        raise ValueError(f"weights are int8 [out, in, kh, kw], got {weight.dtype} {weight.shape}")
    if structure.contradictions(weight):
        raise ValueError("weights that the structure has removed are not zero")
    filed = filed_structure(structure, by_rows=by_rows)
    group = largest_group(filed) if group is None else group
    if group not in GROUP_SIZES:
        raise ValueError(f"group is one of {sorted(GROUP_SIZES)}, got {group}")
    tap_sets = _chunks_of_patterns(filed, by_rows=by_rows)
    chunks = _distinct(tap_sets)
    number = {chunk: index for index, chunk in enumerate(chunks)}
    groups = filter_groups(filed, group)
    words = _words(weight, chunks)
    counts = np.zeros((len(groups), len(chunks)), np.int64)
    units, stored, starts, total = [], [], [], 0
    for index, filters in enumerate(groups):
        ids = filed.pattern_id[filters[0]]
        starts.append(total)
        for chunk in range(len(chunks)):
            having = [chunk in {number[c] for c in parts} for parts in tap_sets]
            found = np.flatnonzero((ids >= 0) & np.array([*having, False])[ids])
            counts[index, chunk] = len(found)
            units.append(found)
            stored.append(words[chunk, filters][:, found].T)
            total += len(found)
    quantity = filed.shape[1]
    return PackedWeights(
        shape=structure.shape,
        chunks=chunks,
        group=group,
        filter_order=np.concatenate(groups).astype(np.int32),
        group_start=np.array(starts, np.int32),
        counts=_narrow(counts, int(counts.max(initial=0))),
        units=_narrow(np.concatenate(units), quantity - 1),
        words=np.ascontiguousarray(np.concatenate(stored)).astype(np.int32),
    )


def words_of(weight: np.ndarray, structure: Structure, *, by_rows: bool = False) -> np.ndarray:
    """int32: every word that :func:`pack` may store, and more that are zero."""
    filed = filed_structure(structure, by_rows=by_rows)
    return _words(weight, _distinct(_chunks_of_patterns(filed, by_rows=by_rows)))


def _words(weight: np.ndarray, chunks: tuple[Chunk, ...]) -> np.ndarray:
    """int32 ``[chunks, out_channels, units]``: every word that may be stored."""
    out_channels, in_channels, kh, kw = weight.shape
    if (kh, kw) != (1, 1):
        return chunk_words(weight, chunks)
    quads = -(-in_channels // WORD)
    flat = np.zeros((out_channels, quads * WORD), np.int8)
    flat[:, :in_channels] = weight[:, :, 0, 0]
    return flat.view("<i4").reshape(1, out_channels, quads)


def chunk_words(weight: np.ndarray, chunks: tuple[Chunk, ...]) -> np.ndarray:
    """int32 ``[chunks, out_channels, in_channels]``: the weights under the taps of a chunk."""
    words = np.zeros((len(chunks), *weight.shape[:2], WORD), np.int8)
    for index, chunk in enumerate(chunks):
        for q, (row, col) in enumerate(chunk):
            words[index, ..., q] = weight[:, :, row, col]
    return words.view("<i4")[..., 0]


def unpack(packed: PackedWeights) -> np.ndarray:
    """The weights ``[out_channels, in_channels, kh, kw]`` that were packed."""
    out_channels, in_channels, kh, kw = packed.shape
    padded = -(-in_channels // WORD) * WORD if packed.pointwise else in_channels
    weight = np.zeros((out_channels, padded, kh, kw), np.int8)
    words = packed.words.reshape(-1, packed.group).astype("<i4")
    parts = words.view(np.int8).reshape(-1, packed.group, WORD)
    for index in range(packed.groups):
        filters = packed.filter_order[index * packed.group : (index + 1) * packed.group]
        entry = int(packed.group_start[index])
        for chunk, count in zip(packed.chunks, packed.counts[index], strict=True):
            for _ in range(int(count)):
                unit = int(packed.units[entry])
                for f, o in enumerate(filters):
                    if packed.pointwise:
                        weight[o, unit * WORD : (unit + 1) * WORD, 0, 0] = parts[entry, f]
                    else:
                        for q, (row, col) in enumerate(chunk):
                            weight[o, unit, row, col] = parts[entry, f, q]
                entry += 1
    return weight[:, :in_channels]
