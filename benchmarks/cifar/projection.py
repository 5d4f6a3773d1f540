"""The pruner's projections for many members at once; tests hold them to ``tvm_pattern.pruning``.

``energy`` is always the squared weights of kernels, ``[S, O, I, 9]``.
"""

from __future__ import annotations

import torch

from topi_kernels.pattern import PatternSet, builtin_pattern_set, natural_patterns

EXTRACTED_SIZE = 8


def keep_largest(score: torch.Tensor, count: int) -> torch.Tensor:
    """Bool mask of exactly ``count`` largest entries of each row; ties by lowest index."""
    order = torch.sort(score, dim=1, descending=True, stable=True).indices
    chosen = torch.zeros_like(score, dtype=torch.bool)
    return chosen.scatter_(1, order[:, :count], True)


def grouped(energy: torch.Tensor, group: int, order: torch.Tensor | None) -> torch.Tensor:
    """Energy of each group of filters, ``[S, O / group, I, 9]``.

    ``order`` (int64 ``[S, O]``) lists filters so that ``group`` at a time share; None: neighbours.
    """
    if order is not None:
        energy = energy.gather(1, order[:, :, None, None].expand_as(energy))
    return energy.unflatten(1, (-1, group)).sum(2)


def spread(values: torch.Tensor, group: int, order: torch.Tensor | None) -> torch.Tensor:
    """Inverse of grouping: ``[S, O / group, ...]`` to the filters in their own order."""
    values = values.repeat_interleave(group, dim=1)
    if order is None:
        return values
    place = order.view(*order.shape, *[1] * (values.ndim - 2)).expand_as(values)
    return torch.empty_like(values).scatter_(1, place, values)


def project(
    weight: torch.Tensor,
    masks: torch.Tensor,
    kept: int,
    group: int = 1,
    order: torch.Tensor | None = None,
) -> torch.Tensor:
    """Joint projection onto patterns and connectivity.

    Parameters
    ----------
    weight : Tensor ``[S, O, I, 3, 3]``
    masks : Tensor ``[num_patterns, 9]`` or, per member, ``[S, num_patterns, 9]``
    kept : int
        Kernels that survive; a multiple of ``group``.
    group, order
        See :func:`grouped`.

    Returns
    -------
    Tensor
        Bool, the weight's shape: True where a weight survives.
    """
    energy = grouped(weight.flatten(3).square(), group, order)
    if masks.ndim == 2:
        masks = masks.expand(len(weight), *masks.shape)
    masks = masks.to(energy)
    best = torch.einsum("soit,spt->soip", energy, masks).max(-1)
    alive = keep_largest(best.values.flatten(1), kept // group).view_as(best.values)
    taps = masks.gather(1, best.indices.flatten(1)[..., None].expand(-1, -1, 9)).bool()
    taps = taps.view_as(energy) & alive[..., None]
    return spread(taps, group, order).view_as(weight)


def magnitude(weight: torch.Tensor, kept: int) -> torch.Tensor:
    """Bool, the weight's shape: the ``kept`` largest magnitudes of each member."""
    return keep_largest(weight.flatten(1).abs(), kept).view_as(weight)


# Pattern sets -----------------------------------------------------------------------------------


def natural_masks(weights: list[torch.Tensor], size: int = EXTRACTED_SIZE) -> torch.Tensor:
    """The ``size`` most frequent natural patterns of one member's layers, bool ``[size, 9]``."""
    everything = natural_patterns()
    code = {p.bits: index for index, p in enumerate(everything)}
    lookup = torch.full((512,), -1, dtype=torch.int64)
    for bits, index in code.items():
        lookup[bits] = index
    counts = torch.zeros(len(everything), dtype=torch.int64)
    for weight in weights:
        value = weight.detach().double().cpu().abs().reshape(-1, 9).clone()
        value[:, 4] = torch.inf
        taps = torch.sort(value, dim=1, descending=True, stable=True).indices[:, :4]
        counts += torch.bincount(lookup[(1 << taps).sum(1)], minlength=len(everything))
    ranked = sorted(range(len(everything)), key=lambda i: (-int(counts[i]), everything[i]))
    return flat_masks(PatternSet("natural", tuple(everything[i] for i in ranked[:size])))


def flat_masks(patterns: PatternSet) -> torch.Tensor:
    """Bool ``[num_patterns, 9]``."""
    return torch.from_numpy(patterns.masks).flatten(1)


def masks_of(library: str, weights: list[torch.Tensor]) -> torch.Tensor:
    """Bool ``[num_patterns, 9]`` of a named library; ``natural8`` comes from the weights."""
    if library == "natural8":
        return natural_masks(weights)
    return flat_masks(builtin_pattern_set(library))
