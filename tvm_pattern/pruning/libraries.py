"""Pattern libraries extracted from a model's own weights.

Built-in sets (fixed 8, PCONV's SCPs, all natural patterns) live in :mod:`topi_kernels.pattern`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import nn

from topi_kernels.pattern import Pattern, PatternSet

from .config import LibrarySpec

MAX_CANDIDATES = 4096
"""Candidates of a greedy selection for kernels with more natural patterns than this."""


def natural_taps(weight: torch.Tensor, taps: int) -> torch.Tensor:
    """Natural pattern of every kernel: the centre and the ``taps - 1`` largest others.

    Kernels of even size have no centre: their ``taps`` largest weights are taken.

    Parameters
    ----------
    weight : Tensor ``[O, I, kh, kw]``
    taps : int
        Positions to keep, 1 to ``kh * kw``.

    Returns
    -------
    Tensor
        int64 ``[O * I, taps]``, flat positions ``row * kw + column`` in rising order.
    """
    kh, kw = weight.shape[2:]
    _check_taps(taps, (kh, kw))
    magnitude = weight.detach().double().abs().reshape(-1, kh * kw).clone()
    if kh % 2 and kw % 2:
        magnitude[:, kh * kw // 2] = math.inf
    order = torch.sort(magnitude, dim=1, descending=True, stable=True).indices
    return order[:, :taps].sort(dim=1).values


def _check_taps(taps: int, kernel_size: tuple[int, int]) -> None:
    total = kernel_size[0] * kernel_size[1]
    if not 1 <= taps <= total:
        raise ValueError(
            f"a {kernel_size[0]}x{kernel_size[1]} kernel keeps 1 to {total} taps, got {taps}"
        )


def pattern_frequencies(weights: Iterable[torch.Tensor], taps: int = 4) -> dict[Pattern, int]:
    """How many kernels have each natural pattern, most frequent first.

    Parameters
    ----------
    weights : iterable of Tensor ``[O, I, kh, kw]``
        Weights of one kernel size.
    taps : int
        Taps of a pattern.
    """
    counts: dict[Pattern, int] = {}
    for weight in weights:
        size = (int(weight.shape[2]), int(weight.shape[3]))
        rows, number = np.unique(
            natural_taps(weight, taps).cpu().numpy(), axis=0, return_counts=True
        )
        for row, count in zip(rows, number, strict=True):
            pattern = Pattern(size, tuple(divmod(int(t), size[1]) for t in row))
            counts[pattern] = counts.get(pattern, 0) + int(count)
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def count_natural(kernel_size: tuple[int, int], taps: int) -> int:
    """Natural patterns that kernels of a size have."""
    kh, kw = kernel_size
    centre = int(kh % 2 and kw % 2)
    return math.comb(kh * kw - centre, taps - centre)


def _all_natural(kernel_size: tuple[int, int], taps: int) -> Iterable[Pattern]:
    kh, kw = kernel_size
    centre = [kh * kw // 2] if kh % 2 and kw % 2 else []
    others = [t for t in range(kh * kw) if t not in centre]
    for chosen in itertools.combinations(others, taps - len(centre)):
        yield Pattern(kernel_size, tuple(divmod(t, kw) for t in (*centre, *chosen)))


def _size_of(weights: Sequence[torch.Tensor]) -> tuple[int, int]:
    sizes = {(int(w.shape[2]), int(w.shape[3])) for w in weights}
    if len(sizes) != 1:
        raise ValueError(
            f"a library is extracted from weights of one kernel size, got {sorted(sizes)}"
        )
    return sizes.pop()


def natural_library(weights: Sequence[torch.Tensor], size: int = 8, taps: int = 4) -> PatternSet:
    """The ``size`` most frequent natural patterns (PatDNN, section 4.1).

    Patterns that no kernel has fill up the set in tap order when the weights hold too few, so that
    the size is the asked one whenever that many natural patterns exist.
    """
    kernel_size = _size_of(weights)
    _check_taps(taps, kernel_size)
    chosen = list(pattern_frequencies(weights, taps))[:size]
    if len(chosen) < size:
        known = set(chosen)
        spare = (p for p in _all_natural(kernel_size, taps) if p not in known)
        chosen += itertools.islice(spare, size - len(chosen))
    if len(chosen) < size:
        raise ValueError(
            f"{kernel_size} kernels have only {len(chosen)} natural patterns of {taps} taps;"
            f" got size {size}, ask for fewer"
        )
    return PatternSet(f"natural{size}", tuple(chosen))


def greedy_library(weights: Sequence[torch.Tensor], size: int = 8, taps: int = 4) -> PatternSet:
    """Patterns added one at a time, each the one that adds most kept energy.

    Energies are relative to each layer's total, so that no layer decides by its scale. The
    result keeps at least 1 - 1/e of the energy that the best set of this size would add.

    Returns
    -------
    PatternSet
        In order of choice, so its first patterns are the best smaller set.
    """
    kernel_size = _size_of(weights)
    _check_taps(taps, kernel_size)
    if count_natural(kernel_size, taps) <= MAX_CANDIDATES:
        candidates = list(_all_natural(kernel_size, taps))
    else:
        candidates = list(pattern_frequencies(weights, taps))[:MAX_CANDIDATES]
    if len(candidates) < size:
        raise ValueError(
            f"{kernel_size} kernels offer {len(candidates)} patterns of {taps} taps; got size"
            f" {size}, ask for fewer"
        )
    flat = np.stack([p.mask.reshape(-1) for p in candidates])
    masks = torch.from_numpy(flat).float().T
    squares = [_relative_energy(w) for w in weights]
    best = [torch.zeros(len(s), 1) for s in squares]
    chosen: list[int] = []
    for _ in range(size):
        gain = torch.zeros(len(candidates), dtype=torch.float64)
        for square, kept in zip(squares, best, strict=True):
            # Blocks bound the kernels x candidates table to a few hundred MB.
            for s, k in zip(square.split(1 << 14), kept.split(1 << 14), strict=True):
                gain += (s @ masks - k).clamp_(min=0).sum(0, dtype=torch.float64)
        gain[chosen] = -1.0
        chosen.append(int(gain.argmax()))
        column = masks[:, chosen[-1:]]
        best = [torch.maximum(k, s @ column) for s, k in zip(squares, best, strict=True)]
    return PatternSet(f"greedy{size}", tuple(candidates[i] for i in chosen))


def _relative_energy(weight: torch.Tensor) -> torch.Tensor:
    square = weight.detach().cpu().float().flatten(0, 1).flatten(1).square()
    return square / square.sum().clamp_(min=torch.finfo(torch.float32).tiny)


def extract_library(spec: LibrarySpec, weights: Sequence[torch.Tensor]) -> PatternSet:
    """Library of a ``natural`` or ``greedy`` specification."""
    if spec.source == "greedy":
        return greedy_library(weights, spec.size, spec.taps)
    return natural_library(weights, spec.size, spec.taps)


def initial_library(spec: LibrarySpec, weights: Sequence[torch.Tensor]) -> PatternSet:
    """First phase of a ``phased`` extraction: the most frequent natural patterns."""
    library = natural_library(weights, spec.sizes[0], spec.taps)
    return PatternSet(f"phased{spec.sizes[0]}", library.patterns)


def shrink_library(
    library: PatternSet, pattern_ids: Iterable[torch.Tensor], size: int
) -> PatternSet:
    """Next phase of the extraction: the ``size`` patterns that surviving kernels use most.

    Parameters
    ----------
    library : PatternSet
        Current phase.
    pattern_ids : iterable of uint8 Tensor ``[O, I]``
        Current choice per kernel; 255 is removed and not counted.
    size : int
        Patterns to keep.
    """
    usage = torch.zeros(256, dtype=torch.int64)
    for ids in pattern_ids:
        usage += torch.bincount(ids.reshape(-1).cpu().long(), minlength=256)
    order = torch.sort(usage[: len(library)], descending=True, stable=True).indices[:size]
    return PatternSet(f"phased{size}", tuple(library[int(i)] for i in order))


def model_library(
    model: nn.Module, spec: LibrarySpec, kernel_size: tuple[int, int] = (3, 3)
) -> PatternSet:
    """Extract a library from all ordinary convolutions of a model with that kernel size.

    Raises
    ------
    ValueError
        If the model has no such convolution.
    """
    weights = [
        m.weight.detach()
        for m in model.modules()
        if isinstance(m, nn.Conv2d) and tuple(m.kernel_size) == kernel_size and m.groups == 1
    ]
    if not weights:
        raise ValueError(f"the model has no {kernel_size} convolution to extract a library from")
    if spec.source == "phased":
        return initial_library(spec, weights)
    return extract_library(spec, weights)
