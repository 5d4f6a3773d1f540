"""Which convolutions of a model are pruned, with which settings, and why the others are not."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize

from topi_kernels.pattern import PatternSet, builtin_pattern_set, dense_pattern

from .config import ConfigError, LibrarySpec, PatternConfig, Rule
from .libraries import extract_library, initial_library
from .projection import Balance, kept_kernels


@dataclass(frozen=True)
class LayerPlan:
    """How one convolution is pruned.

    Parameters
    ----------
    name : str
        Name in the unwrapped model.
    kind : {"conv", "pointwise", "depthwise"}
    shape : tuple of int
        ``[O, I, kh, kw]`` of the weight; ``I`` per convolution group.
    pattern_set : PatternSet
        Allowed patterns; the one full pattern for connectivity alone.
    kept : int
        Kernels that survive.
    connectivity : float
        Rate that was asked for; 1.0 for patterns only.
    group : int
    balance : {"layer", "filter"}
    spec : LibrarySpec or None
        Where ``pattern_set`` was extracted from; phased extraction continues from it.
    """

    name: str
    kind: str
    shape: tuple[int, int, int, int]
    pattern_set: PatternSet
    kept: int
    connectivity: float
    group: int
    balance: Balance
    spec: LibrarySpec | None = None


@dataclass(frozen=True)
class SkippedLayer:
    """A layer that stays dense, with the reason."""

    name: str
    kind: str
    shape: tuple[int, ...]
    reason: str


@dataclass(frozen=True)
class _Settings:
    library: str | LibrarySpec | PatternSet
    connectivity: float
    group: int
    balance: Balance
    skip: bool = False
    library_rule: Rule | None = None
    reason: str = "a rule skips it"


def unwrap(model: nn.Module) -> nn.Module:
    """The model inside DistributedDataParallel, DataParallel or torch.compile wrappers."""
    while True:
        if isinstance(model, nn.parallel.DistributedDataParallel | nn.DataParallel):
            model = model.module
        elif isinstance(getattr(model, "_orig_mod", None), nn.Module):
            model = model._orig_mod
        else:
            return model


def clean_name(name: str) -> str:
    """Module or parameter name without the ``_orig_mod`` parts that torch.compile inserts."""
    return ".".join(part for part in name.split(".") if part != "_orig_mod")


def convolutions(model: nn.Module) -> dict[str, nn.Conv2d]:
    """Every 2-D convolution by clean name, in the order of ``named_modules``."""
    found = {
        clean_name(name): module
        for name, module in unwrap(model).named_modules()
        if isinstance(module, nn.Conv2d)
    }
    if not found:
        raise ConfigError(
            f"{type(unwrap(model)).__name__} has no nn.Conv2d; give a model with convolutions"
        )
    return found


def layer_kind(conv: nn.Conv2d) -> str:
    """``pointwise``, ``depthwise`` or ``conv``."""
    if conv.groups > 1 and conv.weight.shape[1] == 1:
        return "depthwise"
    return "pointwise" if tuple(conv.kernel_size) == (1, 1) else "conv"


def _base_settings(config: PatternConfig, kind: str, is_first: bool) -> _Settings:
    rate = {"conv": config.connectivity, "pointwise": config.connectivity_1x1}.get(kind, 1.0)
    settings = _Settings(
        library=config.library,
        connectivity=rate,
        group=1 if kind == "depthwise" else config.group,
        balance=config.balance,
    )
    if is_first and config.first == "skip":
        return replace(settings, skip=True, reason="first convolution (first: skip)")
    if is_first and config.first == "pattern":
        return replace(settings, connectivity=1.0)
    return settings


def _apply_rules(settings: _Settings, rules: list[Rule]) -> _Settings:
    for rule in rules:
        given: dict[str, Any] = {
            key: getattr(rule, key)
            for key in ("library", "connectivity", "group", "balance", "skip")
            if getattr(rule, key) is not None
        }
        if "library" in given:
            given["library_rule"] = rule
        if "skip" in given:
            given["reason"] = f"rule {rule.describe()} skips it"
        settings = replace(settings, **given)
    return settings


def _matched_rules(convs: dict[str, nn.Conv2d], config: PatternConfig) -> dict[str, list[Rule]]:
    """Rules of each layer; a rule without any layer is an error."""
    first = next(iter(convs))
    matched: dict[str, list[Rule]] = {name: [] for name in convs}
    for rule in config.rules:
        hits = []
        for name, conv in convs.items():
            types = (layer_kind(conv), "first") if name == first else (layer_kind(conv),)
            if rule.matches(name, types, tuple(conv.kernel_size)):
                hits.append(name)
                matched[name].append(rule)
        if not hits:
            names = ", ".join(list(convs)[:12]) + (", ..." if len(convs) > 12 else "")
            raise ConfigError(
                f"rule {rule.describe()} matches no convolution; the model has {names}"
            )
    return matched


def _reason_to_skip(
    name: str, conv: nn.Conv2d, settings: _Settings, owners: dict[int, str]
) -> str | None:
    """Why a layer stays dense, or None when it is pruned."""
    if settings.skip:
        return settings.reason
    if parametrize.is_parametrized(conv, "weight"):
        return "its weight is parametrized; call remove_parametrizations before pruning"
    if not isinstance(conv._parameters.get("weight"), nn.Parameter):
        return "its weight is no ordinary parameter (weight_norm, utils.prune); remove that"
    owner = owners.setdefault(id(conv.weight), name)
    if owner != name:
        return f"shares its weight with {owner}"
    kind = layer_kind(conv)
    if kind == "pointwise" and settings.connectivity == 1.0:
        return "1x1 convolution kept dense (connectivity 1)"
    if kind == "depthwise" and tuple(conv.kernel_size) == (1, 1):
        return "depthwise 1x1 has one weight per channel"
    return None


def _library_of(name: str, conv: nn.Conv2d, settings: _Settings) -> PatternSet | LibrarySpec | str:
    """Library of a spatial layer; a str is the reason why there is none of its kernel size."""
    library = settings.library
    size = tuple(conv.kernel_size)
    if isinstance(library, str):
        library = builtin_pattern_set(library)
    if isinstance(library, LibrarySpec):
        # Four taps are the meaning of a bare number for 3x3 kernels only.
        if size == (3, 3) or settings.library_rule is not None:
            if library.taps > size[0] * size[1]:
                raise ConfigError(
                    f"{name}: a {size[0]}x{size[1]} kernel has no {library.taps} taps; lower taps"
                )
            return library
        return f"no library for {size[0]}x{size[1]} kernels; add a rule with kernel_size and taps"
    if library.kernel_size == size:
        return library
    message = f"library {library.name} has {library.kernel_size} patterns, the kernel is {size}"
    if settings.library_rule is not None:
        raise ConfigError(f"{name}: {message}; give a library of its size")
    return message + "; add a rule with a library of this size"


def resolve_layers(
    model: nn.Module, config: PatternConfig
) -> tuple[list[LayerPlan], list[SkippedLayer]]:
    """Decide for every convolution how it is pruned or why not.

    Raises
    ------
    ConfigError
        A rule matches nothing, a rate is out of range, a group does not divide, a library has the
        wrong kernel size, or nothing is left to prune.
    """
    convs = convolutions(model)
    matched = _matched_rules(convs, config)
    first = next(iter(convs))
    owners: dict[int, str] = {}
    skipped: list[SkippedLayer] = []
    chosen: list[tuple[str, _Settings, PatternSet | LibrarySpec]] = []
    for name, conv in convs.items():
        kind = layer_kind(conv)
        settings = _apply_rules(_base_settings(config, kind, name == first), matched[name])
        reason = _reason_to_skip(name, conv, settings, owners)
        library: PatternSet | LibrarySpec | str = ""
        if reason is None and kind == "pointwise":
            library = PatternSet("dense1x1", (dense_pattern((1, 1)),))
        elif reason is None:
            library = _library_of(name, conv, settings)
            reason = library if isinstance(library, str) else None
        if reason is not None or isinstance(library, str):
            skipped.append(SkippedLayer(name, kind, tuple(conv.weight.shape), str(reason)))
        else:
            _check_group(name, conv, kind, settings)
            chosen.append((name, settings, library))
    if not chosen:
        reasons = "; ".join(f"{s.name}: {s.reason}" for s in skipped[:4])
        raise ConfigError(f"no layer is left to prune ({reasons}); relax the configuration")
    return _finish(convs, chosen), skipped


def _check_group(name: str, conv: nn.Conv2d, kind: str, settings: _Settings) -> None:
    if kind == "depthwise" and settings.connectivity != 1.0:
        raise ConfigError(
            f"{name} is depthwise: connectivity {settings.connectivity} would delete channels;"
            " add type: conv or pointwise to the rule, or connectivity: 1"
        )
    per_group = conv.out_channels // conv.groups
    if conv.groups > 1 and kind != "depthwise" and per_group % settings.group:
        raise ConfigError(
            f"{name}: group {settings.group} crosses the convolution's {conv.groups} groups of"
            f" {per_group} filters; use a divisor of {per_group}"
        )


def _finish(
    convs: dict[str, nn.Conv2d],
    chosen: list[tuple[str, _Settings, PatternSet | LibrarySpec]],
) -> list[LayerPlan]:
    """Extract the libraries (one for all layers of a specification and size) and count kernels."""
    weights: dict[tuple[LibrarySpec, tuple[int, ...]], list[torch.Tensor]] = {}
    for name, _, library in chosen:
        if isinstance(library, LibrarySpec):
            key = (library, tuple(convs[name].kernel_size))
            weights.setdefault(key, []).append(convs[name].weight.detach())
    extracted = {
        key: initial_library(key[0], w) if key[0].source == "phased" else extract_library(key[0], w)
        for key, w in weights.items()
    }
    plans = []
    for name, settings, library in chosen:
        conv = convs[name]
        spec = None
        if isinstance(library, LibrarySpec):
            spec, library = library, extracted[library, tuple(conv.kernel_size)]
        out_channels, in_channels, kh, kw = conv.weight.shape
        try:
            kept = kept_kernels(
                out_channels, in_channels, settings.connectivity, settings.group, settings.balance
            )
        except ValueError as error:
            raise ConfigError(f"{name}: {error}") from error
        plans.append(
            LayerPlan(
                name=name,
                kind=layer_kind(conv),
                shape=(out_channels, in_channels, kh, kw),
                pattern_set=library,
                kept=kept,
                connectivity=settings.connectivity,
                group=settings.group,
                balance=settings.balance,
                spec=spec,
            )
        )
    return plans
