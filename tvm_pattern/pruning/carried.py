"""The patterns that a live model carries: an attribute of each pruned layer.

Zeros say less than the assignment does: a kept weight may be zero, and after rounding to integers
many are. So the assignment stays with the module. An attribute that is no tensor of the module
survives ``deepcopy``, ``half()``, DistributedDataParallel and pickling, and is no part of the
``state_dict``, which stays that of the plain model.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from .modules import CONVOLUTIONS, Layer, clean_name, unwrap

if TYPE_CHECKING:
    from .assignment import Assignment

ATTRIBUTE = "pattern_assignment"


class StalePatternsError(ValueError):
    """The weights of a model are not zero where its patterns say that they are pruned."""


def _layers(model: nn.Module) -> dict[str, Layer]:
    return {
        clean_name(name): module
        for name, module in unwrap(model).named_modules()
        if isinstance(module, (*CONVOLUTIONS, nn.Linear))
    }


def carry_assignment(model: nn.Module, assignment: Assignment) -> None:
    """Leave the patterns on the layers, also on those that share a pruned weight."""
    convs = _layers(model)
    owners = {id(convs[name].weight): layer for name, layer in assignment.items()}
    for conv in convs.values():
        if id(conv.weight) in owners:
            setattr(conv, ATTRIBUTE, owners[id(conv.weight)])


def forget_assignment(model: nn.Module) -> None:
    """Remove the patterns from the layers; the weights stay as they are.

    For a model that was pruned once and is dense again, or is to be pruned anew.
    """
    for conv in _layers(model).values():
        if hasattr(conv, ATTRIBUTE):
            delattr(conv, ATTRIBUTE)


def carried_layers(model: nn.Module) -> Assignment:
    """The patterns by the names that the modules have inside this model, wrappers included."""
    return {
        name: getattr(module, ATTRIBUTE)
        for name, module in model.named_modules()
        if isinstance(module, (*CONVOLUTIONS, nn.Linear)) and hasattr(module, ATTRIBUTE)
    }


@torch.no_grad()
def carried_assignment(model: nn.Module) -> Assignment:
    """The patterns that a model carries, by layer name; empty if it was not pruned.

    Raises
    ------
    StalePatternsError
        Naming the layers whose weights contradict their patterns: a pruned position is not zero.
    """
    found: Assignment = {}
    wrong = []
    for name, conv in _layers(model).items():
        layer = getattr(conv, ATTRIBUTE, None)
        if layer is None:
            continue
        found[name] = layer
        try:
            removed = layer.removed_from(conv.weight)
        except ValueError as error:
            wrong.append(f"{name} ({error})")
            continue
        if alive := int(torch.count_nonzero(conv.weight.masked_fill(~removed, 0))):
            wrong.append(f"{name} ({alive} weights)")
    if wrong:
        raise StalePatternsError(
            f"pruned positions are not zero in {', '.join(wrong[:8])}: the weights were trained or"
            " loaded without their masks. Train with a Pruner attached, apply the patterns again by"
            " tvm_pattern.pruning.apply_assignment, or call tvm_pattern.pruning.forget_assignment"
            "(model) if they are meant to be dense"
        )
    return found
