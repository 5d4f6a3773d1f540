"""Deterministic random weights that keep the scale of activations."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn


def build(factory: Callable[[], nn.Module], seed: int) -> nn.Module:
    """Construct ``factory()`` without its own initialisation and fill it by :func:`fill`.

    Parameters
    ----------
    factory : callable
        Returns the network; called under ``torch.device("meta")`` so that nothing is drawn twice.
    seed : int

    Returns
    -------
    torch.nn.Module
        In evaluation mode, on the CPU.
    """
    with torch.device("meta"):
        model = factory()
    model.to_empty(device="cpu")
    fill(model, seed)
    return model.eval()


@torch.no_grad()
def fill(model: nn.Module, seed: int) -> None:
    """Draw every parameter and buffer of ``model`` in place.

    Convolutions and linear layers get normal weights of variance ``gain / fan_in``; gain is 2,
    which undoes the halving of the second moment by ReLU (He et al., ICCV'15, section 2.2), or
    the module's attribute ``init_gain``. Batch norms get statistics near those of such activations,
    with a spread, so that folding them is not the identity.

    Raises
    ------
    TypeError
        If a module owns parameters but is none of the above.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, module in model.named_modules():
        gain = getattr(module, "init_gain", 2.0)
        if isinstance(module, nn.Conv2d | nn.Linear):
            fan_in = module.weight[0].numel()
            module.weight.normal_(0.0, (gain / fan_in) ** 0.5, generator=generator)
            if module.bias is not None:
                module.bias.uniform_(-0.05, 0.05, generator=generator)
        elif isinstance(module, nn.BatchNorm2d):
            scale = getattr(module, "init_scale", 1.0)
            module.weight.uniform_(0.8 * scale, 1.2 * scale, generator=generator)
            module.bias.uniform_(-0.1, 0.1, generator=generator)
            module.running_mean.normal_(0.0, 0.1, generator=generator)
            module.running_var.uniform_(0.7, 1.3, generator=generator)
            module.num_batches_tracked.zero_()
        elif any(True for _ in module.parameters(recurse=False)):
            raise TypeError(
                f"no initialisation for {type(module).__name__} ({name!r}); expected Conv2d,"
                " Linear or BatchNorm2d"
            )
