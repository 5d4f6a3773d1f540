"""The outcome of pruning: which pattern every kernel of every pruned layer has."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from topi_kernels.pattern import PatternSet

from .carried import carry_assignment
from .kernels import PLAIN, KernelView
from .layers import LayerPlan
from .modules import layers_of
from .projection import (
    REMOVED,
    order_filters,
    pattern_masks,
    project_joint,
    removed_positions,
)


@dataclass(frozen=True)
class LayerAssignment:
    """Patterns of one layer's kernels.

    Parameters
    ----------
    pattern_id : Tensor
        uint8 ``[O, I]``; an index into ``pattern_set``, 255 for a removed kernel.
    pattern_set : PatternSet
    group : int
        Filters that share kernels and patterns.
    connectivity : float
        Rate that was asked for.
    view : KernelView
        How the weight is kernels.
    """

    pattern_id: torch.Tensor
    pattern_set: PatternSet
    group: int = 1
    connectivity: float = 1.0
    view: KernelView = PLAIN

    @property
    def kept(self) -> int:
        """Surviving kernels."""
        return int((self.pattern_id != REMOVED).sum())

    def removed(self) -> torch.Tensor:
        """Bool ``[O, I, kh, kw]``, True where the weight is pruned."""
        masks = pattern_masks(self.pattern_set, self.pattern_id.device)
        return removed_positions(self.pattern_id, masks)

    def removed_from(self, weight: torch.Tensor) -> torch.Tensor:
        """:meth:`removed` in the shape of ``weight``, on its device.

        Raises
        ------
        ValueError
            If the patterns are for another shape.
        """
        return self.view.weight(self.removed(), weight).to(weight.device)

    def nonzeros(self) -> int:
        """Weights that survive."""
        return int((~self.removed()).sum())


Assignment = dict[str, LayerAssignment]


def filter_order(weight: torch.Tensor, plan: LayerPlan) -> torch.Tensor | None:
    """Which filters of a layer share by its plan: int64 ``[O]``, or None for neighbours."""
    if plan.sharing == "neighbours":
        return None
    masks = pattern_masks(plan.pattern_set, weight.device)
    return order_filters(plan.view.kernels(weight), masks, plan.kept, plan.group)


def project_layer(
    weight: torch.Tensor,
    plan: LayerPlan,
    kept: int | None = None,
    order: torch.Tensor | None = None,
) -> torch.Tensor:
    """Joint projection of one layer by its plan.

    Parameters
    ----------
    weight : Tensor
        Of the layer's own shape.
    plan : LayerPlan
    kept : int, optional
        Kernels that survive; the plan's unless given.
    order : Tensor, optional
        Which filters share, chosen before; else they are chosen by this weight.

    Returns
    -------
    Tensor
        ``pattern_id``, uint8 ``[O, I]``.
    """
    if order is None:
        order = filter_order(weight, plan)
    masks = pattern_masks(plan.pattern_set, weight.device)
    kept = plan.kept if kept is None else kept
    kernels = plan.view.kernels(weight)
    return project_joint(kernels, masks, kept, plan.group, plan.balance, order, plan.block)


class SparsityError(RuntimeError):
    """The weights do not have the sparsity that was asked for."""


@torch.no_grad()
def apply_assignment(model: nn.Module, assignment: Assignment) -> dict[str, float]:
    """Zero the pruned weights of ``model`` in place; its layers carry the patterns then.

    Returns
    -------
    dict
        Layer name to the fraction of energy (squared norm) that is left.

    Raises
    ------
    ValueError
        If a layer is missing or has another shape.
    """
    layers = layers_of(model)
    kept = {}
    for name, layer in assignment.items():
        if name not in layers:
            raise ValueError(f"the model has no convolution {name!r}; give the pruned architecture")
        weight = layers[name].weight
        try:
            removed = layer.removed_from(weight)
        except ValueError as error:
            raise ValueError(f"{name}: {error}; give the pruned architecture") from error
        before = float(weight.double().square().sum())
        weight.masked_fill_(removed, 0)
        after = float(weight.double().square().sum())
        kept[name] = after / before if before > 0 else 1.0
    carry_assignment(model, assignment)
    return kept


def verify_assignment(model: nn.Module, assignment: Assignment, plans: list[LayerPlan]) -> None:
    """Check that the weights obey the assignment and the assignment the plans.

    Raises
    ------
    SparsityError
        Naming every layer with wrong counts, non-zero pruned weights or non-finite weights.
    """
    layers = layers_of(model)
    wrong = []
    for plan in plans:
        layer = assignment[plan.name]
        weight = layers[plan.name].weight.detach()
        removed = layer.removed_from(weight)
        alive = int(torch.count_nonzero(weight[removed]))
        if layer.kept != plan.kept:
            wrong.append(f"{plan.name}: {layer.kept} kernels kept, asked {plan.kept}")
        if alive:
            wrong.append(f"{plan.name}: {alive} pruned weights are not zero")
        if not bool(torch.isfinite(weight).all()):
            wrong.append(f"{plan.name}: weights are not finite")
    if wrong:
        raise SparsityError(
            "the achieved sparsity is not the asked one: "
            + "; ".join(wrong)
            + ". Call freeze() and keep the pruner attached to every optimizer of these weights"
        )
