"""Which convolutions the pattern-sparse operator takes, as far as their description tells.

Plain data and arithmetic: the pruner reads it so that nothing is pruned which the compiler then
leaves dense, and the rewrite reads it so that both say the same.
"""

from __future__ import annotations

from .reorder import GROUP_SIZES

MAX_STRIDE = 4
"""Largest step between outputs."""

DTYPES = ("float32", "float16")
"""Number types of weights and activations."""


def is_depthwise(groups: int, in_channels: int) -> bool:
    """Whether every in_channel has filters of its own."""
    return groups == in_channels and groups > 1


def why_dense(stride: tuple[int, ...]) -> str:
    """Why a 2-D convolution stays dense; empty if the operator takes it.

    Parameters
    ----------
    stride : tuple of int
        Rows, columns.
    """
    if max(stride) > MAX_STRIDE:
        return f"stride {tuple(stride)}; at most {MAX_STRIDE} is supported"
    return ""


def fitting_group(group: int, filters: int) -> int:
    """The group itself where it divides the filters, else the largest smaller size that does."""
    if filters % group == 0:
        return group
    return next(size for size in GROUP_SIZES if size <= group and filters % size == 0)
