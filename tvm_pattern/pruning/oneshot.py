"""Prune a model at once, without training."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import Any, Literal

from torch import nn

from topi_kernels.pattern import PatternSet

from .assignment import Assignment, LayerAssignment, apply_assignment, project_layer
from .config import ConfigError, Library, PatternConfig, Rule
from .layers import LayerPlan, prepare_layers
from .modules import layers_of
from .report import PruneReport, build_report
from .sharing import Sharing


def assign(model: nn.Module, plans: list[LayerPlan]) -> Assignment:
    """Exact joint projection of every planned layer; the model is not changed."""
    layers = layers_of(model)
    return {
        plan.name: LayerAssignment(
            project_layer(layers[plan.name].weight, plan),
            plan.pattern_set,
            plan.group,
            plan.connectivity,
            plan.view,
        )
        for plan in plans
    }


def prune_config(
    model: nn.Module, config: PatternConfig, example_inputs: Any = None
) -> PruneReport:
    """One-shot projection of ``model`` in place by a full configuration."""
    plans, skipped = prepare_layers(model, config, example_inputs)
    assignment = assign(model, plans)
    energy = apply_assignment(model, assignment)
    return build_report(model, assignment, skipped, energy_kept=energy, plans=plans)


def oneshot(
    model: nn.Module,
    connectivity: float | PatternConfig = 3.6,
    group: int = 1,
    library: Library | PatternSet = "fixed8",
    connectivity_1x1: float = 1.0,
    skip: Iterable[str] = (),
    *,
    sharing: Sharing = "similar",
    balance: Literal["layer", "filter"] = "layer",
    first: Literal["pattern", "skip", "prune"] = "pattern",
    frozen: Literal["skip", "prune"] = "skip",
    rules: Iterable[Rule] = (),
    connectivity_linear: float = 1.0,
    group_linear: int = 8,
    block_1x1: int = 1,
    example_inputs: Any = None,
) -> PruneReport:
    """Project the weights of ``model`` in place onto the nearest pattern-sparse weights.

    Parameters
    ----------
    model : nn.Module
        Changed in place; accuracy needs batch norm recalibration and retraining afterwards.
    connectivity : float or PatternConfig
        Kernels before / after for convolutions with more than one tap. 3.6 with 4-of-9 patterns
        is PatDNN's 8.1x. Or a whole configuration, which stands for all other settings.
    group : int
        Filters that share kernels and patterns.
    library : str, int, LibrarySpec or PatternSet
        Built-in name, or k for the k most frequent natural patterns of this model.
    connectivity_1x1 : float
        Kernels before / after for 1x1 convolutions; 1.0 keeps them dense.
    skip : iterable of str
        Name globs of layers left dense.
    sharing : {"similar", "neighbours"}
        Which filters share: those whose kernels have like energies, or neighbours.
    balance : {"layer", "filter"}
        Choose kernels over the whole layer or evenly per filter.
    first : {"pattern", "skip", "prune"}
        Treatment of the first convolution.
    frozen : {"skip", "prune"}
        Treatment of layers whose weight has ``requires_grad`` False.
    rules : iterable of Rule
        Per-layer exceptions.
    connectivity_linear : float
        Inputs of each block of a linear layer before / after; 1.0 keeps them dense.
    group_linear : int
        Neighbouring outputs of a linear layer that read the same inputs: a 1xN block.
    block_1x1 : int
        Neighbouring in_channels of a 1x1 convolution whose kernels survive together; 4 for int8.
    example_inputs : tensor or tuple of them, optional
        The model is run on them, and each pruned layer must convolve with its parameter itself.
        Without them only layers that are no plain convolutions of torch are looked at, one by one.

    Returns
    -------
    PruneReport
        Per-layer rows; ``report.assignment`` holds the patterns, which ``save_pruned`` stores.

    Raises
    ------
    ConfigError
        Settings beside a whole configuration, a rate below 1 or above what a layer allows, a
        ``skip`` glob or rule that matches nothing, a weight that is computed in the forward or has
        no values, or nothing left to prune.
    """
    settings: dict[str, Any] = {
        "group": group,
        "library": library,
        "connectivity_1x1": connectivity_1x1,
        "sharing": sharing,
        "balance": balance,
        "first": first,
        "frozen": frozen,
        "connectivity_linear": connectivity_linear,
        "group_linear": group_linear,
        "block_1x1": block_1x1,
    }
    if isinstance(connectivity, PatternConfig):
        _refuse_beside(skip=tuple(skip), rules=tuple(rules), **settings)
        return prune_config(model, connectivity, example_inputs)
    config = PatternConfig.of(skip=skip, rules=rules, connectivity=connectivity, **settings)
    return prune_config(model, config, example_inputs)


def _refuse_beside(**settings: Any) -> None:
    """Refuse settings that a configuration beside them would override without a word."""
    defaults = inspect.signature(oneshot).parameters
    given = [name for name, value in settings.items() if value != defaults[name].default]
    if given:
        raise ConfigError(
            f"got a PatternConfig and {', '.join(given)}; expected one or the other: put these into"
            " the configuration, config.model_copy(update={...})"
        )
