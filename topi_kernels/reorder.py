"""Filter kernel reorder (FKR): which filters are computed together, and in which order.

PatDNN (ASPLOS'20, section 5.2) orders filters by length so that neighbouring filters, and therefore
threads, do equal work, and the kernels of a filter by pattern so that the inner loop has no branch.
Here the filters of a *filter_group* moreover share their kernels and patterns exactly, which lets
one loaded input vector serve all of them (filter-level load redundancy elimination).
"""

from __future__ import annotations

from collections import defaultdict

import numpy as np

from .pattern import Pattern

GROUP_SIZES = (32, 16, 8, 4, 2, 1)

_PASSES = 30
"""Rounds of exchanges after which :func:`similar_filters` takes what it has."""


def kernel_codes(kept: np.ndarray) -> np.ndarray:
    """Which taps each kernel keeps, as one number per kernel.

    Parameters
    ----------
    kept : numpy.ndarray
        bool ``[out_channels, in_channels, kh, kw]``; of weights, those that are zero are removed.

    Returns
    -------
    numpy.ndarray
        ``[out_channels, in_channels]``: equal numbers are equal tap sets, 0 is the empty kernel.
        Up to 64 taps the bits are the taps, row-major from the lowest.
    """
    out_channels, in_channels, kh, kw = kept.shape
    taps = kept.astype(bool, copy=False).reshape(out_channels * in_channels, kh * kw)
    if kh * kw <= 64:
        codes = np.zeros(len(taps), np.min_scalar_type((1 << kh * kw) - 1))
        for tap in range(kh * kw):
            codes |= taps[:, tap].astype(codes.dtype) << codes.dtype.type(tap)
        return codes.reshape(out_channels, in_channels)
    packed = np.packbits(taps, axis=1)
    with_empty = np.concatenate([np.zeros((1, packed.shape[1]), np.uint8), packed])
    _, inverse = np.unique(with_empty, axis=0, return_inverse=True)
    return inverse.reshape(-1)[1:].reshape(out_channels, in_channels)


def distinct_patterns(kept: np.ndarray) -> tuple[Pattern, ...]:
    """The distinct non-empty tap sets of a layer.

    Parameters
    ----------
    kept : numpy.ndarray
        bool ``[out_channels, in_channels, kh, kw]``.

    Returns
    -------
    tuple of Pattern
        In an order that depends on the patterns alone, so that layers of equal shape that use the
        same patterns share one operator.
    """
    kh, kw = kept.shape[2:]
    if kh * kw <= 16:  # A sort of all kernels takes far longer than a table of all codes.
        present = np.zeros(1 << kh * kw, bool)
        present[kernel_codes(kept)] = True
        codes = np.flatnonzero(present[1:]) + 1
        bits = codes[:, None] >> np.arange(kh * kw) & 1
        return tuple(sorted(Pattern.from_mask(mask) for mask in bits.reshape(-1, kh, kw) > 0))
    codes, first = np.unique(kernel_codes(kept).reshape(-1), return_index=True)
    masks = kept.reshape(-1, kh, kw)[first[codes != 0]]
    return tuple(sorted(Pattern.from_mask(mask) for mask in masks))


def sharing_classes(kept: np.ndarray) -> list[np.ndarray]:
    """Filters with identical kernels and patterns, longest filters first.

    Returns
    -------
    list of numpy.ndarray
        Disjoint sorted filter indices; together they are all filters.
    """
    codes = kernel_codes(kept)
    classes: dict[bytes, list[int]] = defaultdict(list)
    for o, row in enumerate(codes):
        classes[row.tobytes()].append(o)
    lengths = np.count_nonzero(codes, axis=1)
    members = sorted(classes.values(), key=lambda c: (-int(lengths[c[0]]), c[0]))
    return [np.array(c) for c in members]


def padded_slots(classes: list[np.ndarray], group: int) -> int:
    """Filter slots that stay empty when every class is cut into filter_groups of ``group``."""
    return sum(-len(c) % group for c in classes)


def detect_group(kept: np.ndarray, max_waste: float = 0.1) -> int:
    """Largest filter_group size whose sharing the kept weights really have.

    Parameters
    ----------
    kept : numpy.ndarray
        bool ``[out_channels, in_channels, kh, kw]``.
    max_waste : float
        Largest tolerated fraction of empty filter slots (tails of the classes).
    """
    classes = sharing_classes(kept)
    out_channels = kept.shape[0]
    for group in GROUP_SIZES:
        if padded_slots(classes, group) <= max_waste * out_channels:
            return group
    return 1


def filter_order(kept: np.ndarray, group: int, *, share_all: bool = False) -> np.ndarray:
    """Order of filters for filter_groups of ``group``.

    With ``share_all`` any filters may meet in a group, as in a dense layer.

    Returns
    -------
    numpy.ndarray
        int32 ``[num_groups * group]``; ``out_channels`` marks an empty slot. Filters of one group
        share their kernels and patterns; groups are ordered by filter_length, longest first.
    """
    out_channels = kept.shape[0]
    order: list[int] = []
    classes = [np.arange(out_channels)] if share_all else sharing_classes(kept)
    for members in classes:
        order.extend(members.tolist())
        order.extend([out_channels] * (-len(members) % group))
    return np.array(order, np.int32)


def similar_filters(energy: np.ndarray, group: int) -> np.ndarray:
    """Order of filters in which each ``group`` successive ones have like energies.

    Starts with neighbours and takes every filter in turn: it changes places with the one that
    raises the sum of squared group energies most, until no exchange does. Deterministic; the groups
    stay equally large.

    Parameters
    ----------
    energy : ndarray ``[O, K]``
        What each filter has at each place that the filters of a group keep or lose together.
    group : int
        Filters that share; divides ``O``.

    Returns
    -------
    ndarray
        int64 ``[O]``, a permutation; groups by their first filter, members in rising order.

    Raises
    ------
    ValueError
        If ``group`` does not divide the filters, or an energy is not finite.
    """
    filters = len(energy)
    if group < 1 or filters % group:
        raise ValueError(f"group {group} does not divide the {filters} filters; use a divisor or 1")
    if not np.isfinite(energy).all():
        raise ValueError(
            "cannot compare filters: got NaN or infinity among their energies, expected finite"
            " weights. Restore the last good state first"
        )
    scaled = energy.astype(np.float64) / max(float(energy.mean()), np.finfo(np.float64).tiny)
    owner = _exchange(scaled @ scaled.T, np.arange(filters) // group)
    members = [np.flatnonzero(owner == g) for g in range(filters // group)]
    members.sort(key=lambda m: int(m[0]))
    return np.concatenate(members).astype(np.int64)


def _exchange(likeness: np.ndarray, owner: np.ndarray) -> np.ndarray:
    """Group of each filter after all exchanges that pay; ``likeness`` is ``[O, O]``."""
    filters, groups = len(owner), int(owner.max()) + 1
    everyone = np.arange(filters)
    # With neighbours as the groups, a sum over each is one over runs of columns.
    to_group = likeness.reshape(filters, groups, -1).sum(2)
    itself = np.diag(likeness).copy()
    least = 1e-9 * float(np.abs(likeness).max())
    for _ in range(_PASSES):
        moved = False
        for one in range(filters):
            own = to_group[everyone, owner]
            here = owner[one]
            gain = to_group[one, owner] - own[one] + itself[one] - likeness[one]
            gain += to_group[:, here] - own + itself - likeness[one]
            gain[owner == here] = 0.0
            other = int(gain.argmax())
            if gain[other] <= least:
                continue
            there = owner[other]
            change = likeness[:, other] - likeness[:, one]
            to_group[:, here] += change
            to_group[:, there] -= change
            owner[one], owner[other] = there, here
            moved = True
        if not moved:
            break
    return owner
