"""Batch norm recalibration: pruning moves the activations, the running statistics must follow."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from .modules import unwrap


def batch_input(batch: Any) -> Any:
    """Model input of a loader's batch: the batch itself or its first element."""
    return batch[0] if isinstance(batch, list | tuple) else batch


def _norms(model: nn.Module) -> list[_BatchNorm]:
    """Batch norms that keep running statistics."""
    return [m for m in model.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]


@contextmanager
def norms_at_rest(model: nn.Module) -> Iterator[None]:
    """Running statistics of batch norms stay as they are, and are what is used."""
    modes = {norm: norm.training for norm in _norms(model)}
    try:
        for norm in modes:
            norm.eval()
        yield
    finally:
        for norm, mode in modes.items():
            norm.train(mode)


@contextmanager
def _statistics_only(model: nn.Module, norms: list[_BatchNorm]) -> Iterator[None]:
    """Batch norms in training mode with a cumulative average, everything else in eval mode."""
    modes = {module: module.training for module in model.modules()}
    momenta = {norm: norm.momentum for norm in norms}
    try:
        model.eval()
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None
            norm.train()
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
        for norm, momentum in momenta.items():
            norm.momentum = momentum


@torch.no_grad()
def recalibrate_bn(
    model: nn.Module,
    data: Iterable[Any],
    batches: int | None = None,
    forward: Callable[[nn.Module, Any], Any] | None = None,
) -> int:
    """Replace running statistics by the average over ``data``; no gradient, no label is used.

    Parameters
    ----------
    model : nn.Module
        Its batch norms are changed in place; modes and momenta are restored. Dropout stays off.
    data : iterable
        Batches on the model's device: inputs, or tuples whose first element is the input.
    batches : int, optional
        Stop after so many.
    forward : callable, optional
        ``forward(model, batch)`` for models with other inputs.

    Returns
    -------
    int
        Batches used; 0 when the model has no batch norm with running statistics.

    Raises
    ------
    ValueError
        If ``data`` gives no batch: the statistics would be those of no data at all.
    """
    model = unwrap(model)
    norms = _norms(model)
    if not norms:
        return 0
    if batches is not None and batches < 1:
        raise ValueError(f"batches must be at least 1, got {batches}")
    before = [(n.running_mean.clone(), n.running_var.clone()) for n in norms]
    used = 0
    with _statistics_only(model, norms):
        for batch in data:
            if forward is None:
                model(batch_input(batch))
            else:
                forward(model, batch)
            used += 1
            if used == batches:
                break
    if used == 0:
        for norm, (mean, var) in zip(norms, before, strict=True):
            norm.running_mean.copy_(mean)
            norm.running_var.copy_(var)
        raise ValueError("recalibrate_bn got no batch; give a loader with at least one")
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        for norm in norms:
            for statistic in (norm.running_mean, norm.running_var):
                dist.all_reduce(statistic)
                statistic.div_(dist.get_world_size())
    return used
