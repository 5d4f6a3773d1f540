"""The structure of pruned weights: how a layer is filed, and how far its filters share."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .fkw import distinct_patterns
from .pattern import Pattern, dense_pattern, single_tap_patterns
from .reorder import GROUP_SIZES, detect_group

# Above this many distinct patterns one loop body per pattern costs more instruction cache and
# mispredicted loop ends than it saves; weights are then filed tap by tap.
MAX_PATTERNS = 24
# Above this density skipping the zeros costs more than multiplying by them.
DENSE_DENSITY = 0.6


@dataclass(frozen=True)
class Structure:
    """What the analysis found in the weights of a layer."""

    kind: str
    patterns: tuple[Pattern, ...]
    max_group: int
    kept_kernels: int
    kept_weights: int


def analyse(weight: np.ndarray) -> Structure:
    """How a layer is best filed: by patterns, tap by tap, or dense, and how far filters share.

    Parameters
    ----------
    weight : numpy.ndarray
        ``[out_channels, in_channels, kh, kw]``.
    """
    out_channels, _, kh, kw = weight.shape
    kept = weight != 0
    kept_weights = int(np.count_nonzero(kept))
    kept_kernels = int(np.count_nonzero(kept.any(axis=(2, 3))))
    if kept_weights > DENSE_DENSITY * weight.size:
        widest = max(g for g in GROUP_SIZES if g <= max(1, out_channels))
        return Structure("dense", (dense_pattern((kh, kw)),), widest, kept_kernels, kept_weights)
    patterns = distinct_patterns(weight)
    kind = "pattern"
    if len(patterns) > MAX_PATTERNS:
        kind, patterns = "tap", single_tap_patterns((kh, kw))
    patterns = patterns or (Pattern((kh, kw), ((0, 0),)),)
    return Structure(kind, patterns, detect_group(weight), kept_kernels, kept_weights)
