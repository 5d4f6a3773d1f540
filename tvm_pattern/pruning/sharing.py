"""Sums over the filters that share their kernels and patterns: neighbours, or filters alike.

Filter kernel reorder (PatDNN, section 5.2) stores the filters in any order, so that it costs no
time to let like filters share instead of neighbours, and it keeps more of the weights' energy.
"""

from __future__ import annotations

from typing import Literal

import torch

Sharing = Literal["similar", "neighbours"]


def grouped(values: torch.Tensor, group: int, order: torch.Tensor | None = None) -> torch.Tensor:
    """Sum of ``values`` ``[O, ...]`` over the filters that share, ``[O / group, ...]``."""
    if group == 1:
        return values
    return members(values, group, order).sum(1)


def members(values: torch.Tensor, group: int, order: torch.Tensor | None = None) -> torch.Tensor:
    """``values`` ``[O, ...]`` by the filters that share, ``[O / group, group, ...]``.

    Parameters
    ----------
    order : Tensor, optional
        int64 ``[O]``: each ``group`` successive filters of it share. None: neighbours.
    """
    if order is not None:
        values = values[order.to(values.device)]
    return values.unflatten(0, (-1, group))


def spread(values: torch.Tensor, group: int, order: torch.Tensor | None = None) -> torch.Tensor:
    """What holds for each group, ``[O / group, ...]``, for its filters ``[O, ...]``."""
    values = values.repeat_interleave(group, dim=0)
    if order is None:
        return values
    in_place = torch.empty_like(values)
    in_place[order.to(values.device)] = values
    return in_place
