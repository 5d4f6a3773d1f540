"""Exact projections onto pattern and connectivity constraints: pure tensor functions.

A projection is the nearest weights (in L2) that satisfy a constraint; since every constraint here
only forbids positions, a projection is fully described by what it keeps, and that is what these
functions return:

* *pattern*: every kernel uses one pattern of a set (PatDNN, section 4.2; ECCV'20, section 3);
* *connectivity*: exactly ``kept`` kernels of the layer survive (PatDNN, section 4.3);
* *joint*: both at once. Scoring a kernel by the energy of its best pattern and keeping the best
  ``kept`` is exact, because the squared distance is the sum of what each kernel loses.

With ``group = G`` the unit is a *kernel group*: the kernels of ``G`` filters that read the same
in_channel. They survive or fall together and use one pattern. ``order`` (int64 ``[O]``) says which:
each ``G`` successive filters of it; without it, neighbours. With ``block = B`` the kernels of ``B``
neighbouring in_channels survive or fall together too.
"""

from __future__ import annotations

from typing import Literal

import torch

from topi_kernels.pattern import PatternSet
from topi_kernels.reorder import similar_filters

from .sharing import grouped, spread

REMOVED = 255
"""``pattern_id`` of a removed kernel."""

Balance = Literal["layer", "filter"]

_BLOCK = 4096


def pattern_masks(pattern_set: PatternSet, device: torch.device | str = "cpu") -> torch.Tensor:
    """Masks of a pattern set as a bool tensor ``[num_patterns, kh, kw]``."""
    return torch.from_numpy(pattern_set.masks).to(device)


def kernel_grid(
    out_channels: int, in_channels: int, group: int = 1, block: int = 1
) -> tuple[int, int]:
    """Rows and columns of kernels that survive or fall together: ``(O / group, I / block)``."""
    return out_channels // group, in_channels // block


def largest_connectivity(
    out_channels: int,
    in_channels: int,
    group: int = 1,
    balance: Balance = "layer",
    block: int = 1,
) -> float:
    """The highest connectivity rate of a layer: one kernel group stays, or one of each filter."""
    rows, columns = kernel_grid(out_channels, in_channels, group, block)
    return float(columns if balance == "filter" else rows * columns)


def kept_kernels(
    out_channels: int,
    in_channels: int,
    connectivity: float,
    group: int = 1,
    balance: Balance = "layer",
    block: int = 1,
) -> int:
    """Number of kernels that a layer keeps at a connectivity rate.

    Parameters
    ----------
    out_channels, in_channels : int
        Extent of the kernel grid (``in_channels`` per convolution group).
    connectivity : float
        Kernels before / kernels after, >= 1.
    group : int
        Filters that share their kernels; the result is a multiple of it.
    balance : {"layer", "filter"}
        With ``"filter"`` every filter needs at least one kernel.
    block : int
        Neighbouring in_channels whose kernels survive together.

    Raises
    ------
    ValueError
        If the rate is below 1 or above what the layer allows, or ``group`` or ``block`` does not
        divide.
    """
    if not connectivity >= 1.0:
        raise ValueError(
            f"connectivity is kernels before / kernels after and at least 1, got {connectivity}"
        )
    if group < 1 or out_channels % group:
        raise ValueError(
            f"group {group} does not divide the {out_channels} filters; use a divisor of"
            f" {out_channels} or 1"
        )
    if block < 1 or in_channels % block:
        raise ValueError(
            f"block {block} does not divide the {in_channels} in_channels; use a divisor of"
            f" {in_channels} or 1"
        )
    rows, columns = kernel_grid(out_channels, in_channels, group, block)
    largest = largest_connectivity(out_channels, in_channels, group, balance, block)
    if connectivity > largest:
        each = "filter" if balance == "filter" else "layer"
        raise ValueError(
            f"connectivity {connectivity} is above what {rows} x {columns} kernel groups allow"
            f" (at most {largest:g}, one kernel group per {each}); lower the rate or skip the layer"
        )
    least = rows if balance == "filter" else 1
    return group * block * max(least, round(rows * columns / connectivity))


def _energy(weight: torch.Tensor, group: int, order: torch.Tensor | None = None) -> torch.Tensor:
    """Squared weights summed over the filters that share: ``[O / group, I, kh * kw]``."""
    if weight.ndim not in (2, 4):
        raise ValueError(
            f"a weight is [O, I, kh, kw] of a convolution or [O, I] of a linear layer, got"
            f" {tuple(weight.shape)}"
        )
    out_channels, in_channels = weight.shape[:2]
    if group < 1 or out_channels % group:
        raise ValueError(
            f"group {group} does not divide the {out_channels} filters; use a divisor or 1"
        )
    weight = weight.detach()
    if weight.dtype not in (torch.float32, torch.float64):
        weight = weight.float()  # a squared float16 overflows from 256 on
    square = weight.reshape(out_channels, in_channels, -1).square()
    return grouped(square, group, order)


def _require_finite(score: torch.Tensor) -> None:
    if not bool(torch.isfinite(score.sum())):
        raise ValueError(
            "cannot project: the weights are not finite or too large to square; got NaN or"
            " infinity, expected finite weights. Restore the last good state first"
        )


def _best_pattern(square: torch.Tensor, masks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Energy and index of the best pattern of each kernel group; the lowest index on ties."""
    flat = masks.reshape(masks.shape[0], -1).to(square)
    if flat.shape[1] != square.shape[2]:
        raise ValueError(
            f"the patterns have {flat.shape[1]} positions but the kernels {square.shape[2]};"
            " use a pattern set of the layer's kernel size"
        )
    kernels = square.reshape(-1, flat.shape[1])
    energy = kernels.new_empty(kernels.shape[0])
    index = torch.empty(kernels.shape[0], dtype=torch.uint8, device=square.device)
    # In blocks the energies of all patterns stay in cache: three times faster for 56 patterns.
    for start in range(0, kernels.shape[0], _BLOCK):
        block = slice(start, start + _BLOCK)
        best = torch.matmul(kernels[block], flat.T).max(dim=-1)
        energy[block] = best.values
        index[block] = best.indices.to(torch.uint8)
    _require_finite(energy)
    return energy.view(square.shape[:2]), index.view(square.shape[:2])


def select_largest(score: torch.Tensor, count: int) -> torch.Tensor:
    """Bool mask of exactly ``count`` largest entries of a 1-D ``score``; ties by lowest index."""
    size = score.numel()
    if not 0 <= count <= size:
        raise ValueError(f"cannot select {count} of {size} entries; give 0 to {size}")
    if count == 0:
        return torch.zeros_like(score, dtype=torch.bool)
    threshold = torch.kthvalue(score, size - count + 1).values
    chosen = score > threshold
    # A threshold alone would keep every tie: fill up with the first of the equal ones.
    ties = torch.nonzero(score == threshold).flatten()
    chosen[ties[: count - int(chosen.sum())]] = True
    return chosen


def select_kernel_groups(
    score: torch.Tensor, count: int, balance: Balance = "layer"
) -> torch.Tensor:
    """Choose exactly ``count`` kernel groups of largest score.

    Parameters
    ----------
    score : Tensor ``[rows, in_channels]``
        Energy that keeping each kernel group preserves.
    count : int
        Kernel groups to keep.
    balance : {"layer", "filter"}
        ``"layer"``: the best of the whole layer. ``"filter"``: every row keeps
        ``count // rows`` and the remainder goes to the rows that gain most from one more.

    Returns
    -------
    Tensor
        Bool ``[rows, in_channels]`` with exactly ``count`` True entries.
    """
    rows = score.shape[0]
    if balance == "layer":
        return select_largest(score.reshape(-1), count).view_as(score)
    base, extra = divmod(count, rows)
    order = torch.sort(score, dim=1, descending=True, stable=True).indices
    chosen = torch.zeros_like(score, dtype=torch.bool)
    chosen.scatter_(1, order[:, :base], value=True)
    if extra:
        following = order[:, base : base + 1]
        lucky = select_largest(score.gather(1, following).flatten(), extra)
        chosen.scatter_(1, following, lucky[:, None])
    return chosen


def _count_groups(kept: int, group: int) -> int:
    if kept % group:
        raise ValueError(f"kept kernels must be a multiple of group {group}, got {kept}")
    return kept // group


def select_blocks(
    score: torch.Tensor, kept: int, group: int, balance: Balance = "layer", block: int = 1
) -> torch.Tensor:
    """Choose the kernel groups that survive, ``block`` neighbouring in_channels at once.

    Parameters
    ----------
    score : Tensor ``[rows, in_channels]``
        As for :func:`select_kernel_groups`.
    kept : int
        Kernels that survive; a multiple of ``group * block``.

    Returns
    -------
    Tensor
        Bool ``[rows, in_channels]``.
    """
    summed = score.unflatten(1, (-1, block)).sum(-1)
    chosen = select_kernel_groups(summed, _count_groups(kept, group * block), balance)
    return chosen.repeat_interleave(block, dim=1)


def order_filters(
    weight: torch.Tensor, masks: torch.Tensor, kept: int, group: int
) -> torch.Tensor | None:
    """Order in which like filters of a layer share, from what their kernels could keep.

    Parameters
    ----------
    weight : Tensor ``[O, I, kh, kw]`` or ``[O, I]``
    masks : Tensor ``[num_patterns, kh, kw]``
    kept : int
        Kernels that survive: filters are compared by the energies of their kernels or, when all
        kernels survive, of their weights.
    group : int
        Filters that share.

    Returns
    -------
    Tensor or None
        int64 ``[O]`` on the CPU; None when nothing is shared.
    """
    if group == 1:
        return None
    square = _energy(weight, 1)
    if kept < weight.shape[0] * weight.shape[1]:
        energy, _ = _best_pattern(square, masks)
    else:
        energy = square.flatten(1)
    _require_finite(energy)
    return torch.from_numpy(similar_filters(energy.double().cpu().numpy(), group))


def project_pattern(
    weight: torch.Tensor,
    masks: torch.Tensor,
    group: int = 1,
    order: torch.Tensor | None = None,
) -> torch.Tensor:
    """Pattern projection: per kernel group the pattern that keeps most energy.

    Parameters
    ----------
    weight : Tensor ``[O, I, kh, kw]`` or ``[O, I]``
    masks : Tensor ``[num_patterns, kh, kw]``
    group : int
        Filters that share one pattern per in_channel.
    order : Tensor, optional
        Which filters share.

    Returns
    -------
    Tensor
        ``pattern_id``, uint8 ``[O, I]``.
    """
    _, index = _best_pattern(_energy(weight, group, order), masks)
    return spread(index, group, order)


def project_connectivity(
    weight: torch.Tensor,
    kept: int,
    group: int = 1,
    balance: Balance = "layer",
    order: torch.Tensor | None = None,
    block: int = 1,
) -> torch.Tensor:
    """Connectivity projection: exactly ``kept`` kernels of largest L2 norm.

    Returns
    -------
    Tensor
        Bool ``[O, I]``, True where the kernel survives.
    """
    score = _energy(weight, group, order).sum(-1)
    _require_finite(score)
    return spread(select_blocks(score, kept, group, balance, block), group, order)


def project_joint(
    weight: torch.Tensor,
    masks: torch.Tensor,
    kept: int,
    group: int = 1,
    balance: Balance = "layer",
    order: torch.Tensor | None = None,
    block: int = 1,
) -> torch.Tensor:
    """Projection onto both constraints: one pattern per kernel and exactly ``kept`` kernels.

    Parameters
    ----------
    weight : Tensor ``[O, I, kh, kw]`` or ``[O, I]``
    masks : Tensor ``[num_patterns, kh, kw]``
    kept : int
        Kernels that survive; a multiple of ``group * block``.
    group : int
        Filters that share kernels and patterns.
    balance : {"layer", "filter"}
        See :func:`select_kernel_groups`.
    order : Tensor, optional
        Which filters share.
    block : int
        Neighbouring in_channels whose kernels survive together.

    Returns
    -------
    Tensor
        ``pattern_id``, uint8 ``[O, I]``; 255 marks a removed kernel.
    """
    score, index = _best_pattern(_energy(weight, group, order), masks)
    chosen = select_blocks(score, kept, group, balance, block)
    return spread(index.masked_fill_(~chosen, REMOVED), group, order)


def removed_positions(pattern_id: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """Bool ``[O, I, kh, kw]``, True at every weight that ``pattern_id`` removes."""
    highest = int(pattern_id.masked_fill(pattern_id == REMOVED, 0).max())
    if highest >= masks.shape[0]:
        raise ValueError(f"pattern_id {highest} is outside a set of {masks.shape[0]} patterns")
    table = torch.ones((REMOVED + 1, *masks.shape[1:]), dtype=torch.bool, device=pattern_id.device)
    table[: masks.shape[0]] = ~masks.to(pattern_id.device)
    return table[pattern_id.int()]
