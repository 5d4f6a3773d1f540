"""What a recipe's settings mean: optimizer, learning rate, distillation, mixed pictures."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from .config import ConfigError
from .recipe import Recipe, TrainSettings

Mix = Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
"""Pictures and classes ``[N]`` of a batch to mixed pictures and shares of classes
``[N, num_classes]``."""


def make_optimizer(model: nn.Module, train: TrainSettings) -> torch.optim.Optimizer:
    """Optimizer of a recipe; batch norms and biases get no weight decay."""
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    groups = [
        {"params": decayed, "weight_decay": train.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    if train.optimizer == "adamw":
        return torch.optim.AdamW(groups, train.lr)
    return torch.optim.SGD(groups, train.lr, momentum=train.momentum)


def learning_rate(recipe: Recipe, epoch: float) -> float:
    """Rate at a point of the run: warm-up, held while pruning, cosine from the freeze on."""
    train = recipe.train
    if epoch < train.warmup:
        return train.lr * (epoch + 1e-3) / train.warmup
    frozen = epoch - recipe.prune_epochs
    if frozen < 0:
        return train.lr
    return train.lr * 0.5 * (1 + math.cos(math.pi * frozen / (train.epochs - recipe.prune_epochs)))


def distillation(outputs: torch.Tensor, wanted: torch.Tensor, temperature: float) -> torch.Tensor:
    """Divergence of the softened classes from the wanted ones, times the temperature's square.

    Parameters
    ----------
    outputs, wanted : Tensor ``[N, classes]``
        Before the softmax.
    temperature : float

    References
    ----------
    Hinton, Vinyals and Dean, "Distilling the knowledge in a neural network", 2015, section 2.
    """
    if not len(outputs):
        return outputs.sum()
    log_p, log_q = (F.log_softmax(v.float() / temperature, 1) for v in (outputs, wanted))
    divergence = F.kl_div(log_p, log_q, reduction="batchmean", log_target=True)
    return divergence * temperature**2


def make_mix(train: TrainSettings, num_classes: int) -> Mix | None:
    """Mixup and cutmix of a recipe; None where it asks for neither.

    Raises
    ------
    ConfigError
        If torchvision, whose transforms these are, is not installed.
    """
    if not train.mixup and not train.cutmix:
        return None
    try:
        from torchvision.transforms import v2
    except (ImportError, RuntimeError) as error:  # the latter where it is of another torch
        raise ConfigError(
            f"mixup and cutmix are transforms of torchvision, which cannot be imported ({error});"
            " pip install torchvision of this torch, or leave them out of the recipe"
        ) from error
    kinds = [(v2.MixUp, train.mixup), (v2.CutMix, train.cutmix)]
    chosen = [kind(alpha=alpha, num_classes=num_classes) for kind, alpha in kinds if alpha]
    mix: Mix = chosen[0] if len(chosen) == 1 else v2.RandomChoice(chosen)
    return mix
