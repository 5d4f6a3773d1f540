"""What a configuration asks of a layer: by its kind, then by rules, then what the layer allows."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from topi_kernels.eligibility import fitting_group
from topi_kernels.pattern import PatternSet

from .config import LINEAR_RATE, LibrarySpec, PatternConfig, Rule
from .kernels import kernel_shape
from .modules import Layer
from .projection import Balance, largest_connectivity
from .sharing import Sharing


@dataclass(frozen=True)
class LayerSettings:
    """What a configuration asks of one layer; ``*_rule`` is the rule that says so, if one does.

    ``rate_by`` is what ``connectivity`` comes from, in words.
    """

    library: str | LibrarySpec | PatternSet
    connectivity: float
    group: int
    block: int
    balance: Balance
    sharing: Sharing
    skip: bool = False
    connectivity_rule: Rule | None = None
    library_rule: Rule | None = None
    reason: str = "a rule skips it"
    rate_by: str = "default"


def base_settings(config: PatternConfig, kind: str, *, is_first: bool) -> LayerSettings:
    """Settings of a layer by its kind, before any rule."""
    rate = {
        "conv": "connectivity",
        "pointwise": "connectivity_1x1",
        "linear": "connectivity_linear",
    }.get(kind)
    groups = {"depthwise": 1, "linear": config.group_linear}
    settings = LayerSettings(
        library=config.library,
        connectivity=getattr(config, rate) if rate else 1.0,
        group=groups.get(kind, config.group),
        block=config.block_1x1 if kind == "pointwise" else 1,
        balance=config.balance,
        # Blocks of neighbours: comparing thousands of filters pairwise would take minutes.
        sharing="neighbours" if kind == "linear" else config.sharing,
        rate_by=f"{rate}=1",
    )
    if is_first and config.first == "skip":
        return replace(settings, skip=True, reason="first convolution (first: skip)")
    if is_first and config.first == "pattern":
        also = f"{settings.rate_by} and " if settings.connectivity == 1.0 else ""
        return replace(settings, connectivity=1.0, rate_by=f"{also}first='pattern'")
    return settings


def apply_rules(settings: LayerSettings, rules: list[Rule]) -> LayerSettings:
    """Settings after the rules that match the layer, the last one deciding."""
    for rule in rules:
        given: dict[str, Any] = {
            key: getattr(rule, key)
            for key in ("library", "connectivity", "group", "block", "balance", "sharing", "skip")
            if getattr(rule, key) is not None
        }
        if "library" in given:
            given["library_rule"] = rule
        if "connectivity" in given:
            given |= {"connectivity_rule": rule, "rate_by": f"rule {rule.describe()}"}
        if rule.type == "linear" and rule.connectivity is None and settings.connectivity == 1.0:
            given["connectivity"] = LINEAR_RATE
        if "skip" in given:
            given["reason"] = f"rule {rule.describe()} skips it"
        settings = replace(settings, **given)
    return settings


def within_groups(conv: Layer, settings: LayerSettings) -> LayerSettings:
    """Filters of different convolution groups see different inputs and share nothing."""
    if isinstance(conv, nn.Linear) or conv.groups == 1 or settings.group == 1:
        return settings
    group = fitting_group(settings.group, kernel_shape(conv)[0] // conv.groups)
    return replace(settings, group=group, sharing="neighbours")


def fitting_connectivity(conv: Layer, settings: LayerSettings) -> float:
    """The rate of a layer: the configuration's, or the most that a small layer allows.

    A rate of a whole network is meant for its large layers. One that a rule gives to this layer is
    meant as it stands, and :func:`~tvm_pattern.pruning.projection.kept_kernels` refuses it.
    """
    if settings.connectivity_rule is not None:
        return settings.connectivity
    largest = largest_connectivity(
        *kernel_shape(conv)[:2], settings.group, settings.balance, settings.block
    )
    return min(settings.connectivity, largest)
