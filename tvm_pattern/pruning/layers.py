"""Which layers of a model are pruned, with which settings, and why the others are not.

Convolutions; linear layers too where the configuration speaks of them.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from topi_kernels.eligibility import fitting_group, why_dense
from topi_kernels.pattern import PatternSet, builtin_pattern_set, dense_pattern

from .carried import forget_assignment
from .config import ConfigError, LibrarySpec, PatternConfig, Rule
from .kernels import PLAIN, KernelView, kernel_shape, kernels_of, why_no_kernels
from .layer_settings import (
    LayerSettings,
    apply_rules,
    base_settings,
    fitting_connectivity,
    within_groups,
)
from .libraries import count_natural, extract_library, initial_library
from .modules import (
    CONVOLUTIONS,
    Layer,
    convolutions,
    is_transposed,
    layer_kind,
    layers_of,
    refuse_lazy,
    refuse_unusable_model,
    refuse_unusable_weight,
)
from .projection import Balance, kept_kernels, kernel_grid
from .sharing import Sharing
from .weight_reads import layers_read_elsewhere
from .weights import bake_layer, check_by_examples, recipe_of, refuse_computed, why_not_own

SMALLEST_LINEAR = 4096
"""Weights below which a linear layer stays dense: it is read from the cache in a microsecond."""


SMALLEST_BLOCK = 4
"""Outputs of a linear layer that have to share their inputs: the shortest vector."""


@dataclass(frozen=True)
class LayerPlan:
    """How one layer is pruned.

    Parameters
    ----------
    name : str
        Name in the unwrapped model.
    kind : {"conv", "pointwise", "depthwise", "linear"}
    shape : tuple of int
        ``[O, I, kh, kw]`` of the kernels; ``I`` per convolution group. See ``view``.
    pattern_set : PatternSet
        Allowed patterns; the one full pattern for connectivity alone.
    kept : int
        Kernels that survive.
    connectivity : float
        Rate that was asked for; 1.0 for patterns only.
    group : int
    balance : {"layer", "filter"}
    sharing : {"similar", "neighbours"}
        Which filters share.
    block : int
        Neighbouring in_channels whose kernels survive together.
    spec : LibrarySpec or None
        Where ``pattern_set`` was extracted from; phased extraction continues from it.
    notes : tuple of str
        What differs from the configuration, for the report.
    bake : str
        How torch computes the weight (``weight_norm``, ...), when that has to be baked first.
    view : KernelView
        How the weight is kernels.
    """

    name: str
    kind: str
    shape: tuple[int, int, int, int]
    pattern_set: PatternSet
    kept: int
    connectivity: float
    group: int
    balance: Balance
    sharing: Sharing = "neighbours"
    block: int = 1
    spec: LibrarySpec | None = None
    notes: tuple[str, ...] = ()
    bake: str = ""
    view: KernelView = PLAIN


@dataclass(frozen=True)
class SkippedLayer:
    """A layer without a plan of its own, with the reason.

    ``tied_to`` names the layer whose weight it shares: then it is as sparse as that one.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    reason: str
    tied_to: str = ""


def considered_layers(model: nn.Module, config: PatternConfig) -> dict[str, Layer]:
    """The layers that a configuration speaks of: linear ones only where it names them.

    Raises
    ------
    ConfigError
        If there are none.
    """
    if config.connectivity_linear > 1.0 or any(rule.type == "linear" for rule in config.rules):
        layers = layers_of(model)
        refuse_lazy(layers)
        return layers
    return dict(convolutions(model))


def _first_convolution(layers: dict[str, Layer]) -> str:
    return next((name for name, layer in layers.items() if isinstance(layer, CONVOLUTIONS)), "")


def _reaches(rule: Rule, layer: Layer) -> bool:
    """Whether a rule may be meant for a layer: what prunes convolutions prunes nothing else."""
    return not isinstance(layer, nn.Linear) or rule.type == "linear" or bool(rule.skip)


def _matched_rules(layers: dict[str, Layer], config: PatternConfig) -> dict[str, list[Rule]]:
    """Rules of each layer; a rule without any layer is an error."""
    first = _first_convolution(layers)
    matched: dict[str, list[Rule]] = {name: [] for name in layers}
    for rule in config.rules:
        hits = []
        for name, layer in layers.items():
            types = (layer_kind(layer), "first") if name == first else (layer_kind(layer),)
            if _reaches(rule, layer) and rule.matches(name, types, kernel_shape(layer)[2:]):
                hits.append(name)
                matched[name].append(rule)
        if not hits:
            names = ", ".join(list(layers)[:12]) + (", ..." if len(layers) > 12 else "")
            what = "linear layer" if rule.type == "linear" else "convolution"
            raise ConfigError(
                f"rule {rule.describe()} matches no {what}; the model has {names}"
                + ("" if rule.type else " (rules for linear layers say type: linear)")
            )
    return matched


def _reason_to_skip(conv: Layer, settings: LayerSettings, frozen: str) -> str | None:
    """Why a layer stays dense, or None when it is pruned."""
    if settings.skip:
        return settings.reason
    if frozen == "skip" and not any(p.requires_grad for p in conv.parameters() if p.ndim > 1):
        return "its weight is frozen (requires_grad is False); frozen: prune includes it"
    if isinstance(conv, nn.Linear):
        return _reason_to_skip_linear(conv, settings)
    dense = "" if is_transposed(conv) else why_dense(tuple(conv.stride))
    if dense:
        return f"the compiler leaves it dense: {dense}"
    several = why_no_kernels(conv)
    if several:
        return several
    kind = layer_kind(conv)
    if kind == "pointwise" and settings.connectivity == 1.0:
        return f"1x1 convolution, which has no patterns; all kernels stay by {settings.rate_by}"
    if kind == "depthwise" and kernel_shape(conv)[2:] == (1, 1):
        return "depthwise 1x1 has one weight per channel"
    return None


def _reason_to_skip_linear(layer: nn.Linear, settings: LayerSettings) -> str | None:
    if settings.connectivity == 1.0:
        return f"linear layer; all weights stay by {settings.rate_by}"
    size = layer.in_features * layer.out_features
    if size < SMALLEST_LINEAR:
        return f"too small to gain: {size} weights, linear layers are pruned from {SMALLEST_LINEAR}"
    return None


def _library_of(name: str, conv: Layer, settings: LayerSettings) -> PatternSet | LibrarySpec | str:
    """Library of a spatial layer; a str is the reason why there is none of its kernel size."""
    library = settings.library
    size = kernel_shape(conv)[2:]
    if isinstance(library, str):
        library = builtin_pattern_set(library)
    if isinstance(library, LibrarySpec):
        # Four taps are the meaning of a bare number for 3x3 kernels only.
        if size != (3, 3) and settings.library_rule is None and not isinstance(conv, nn.Conv2d):
            return _default_library(size)
        if size == (3, 3) or settings.library_rule is not None:
            if library.taps > size[0] * size[1]:
                raise ConfigError(
                    f"{name}: a {size[0]}x{size[1]} kernel has no {library.taps} taps; lower taps"
                )
            return library
        return f"no library for {size[0]}x{size[1]} kernels; add a rule with kernel_size and taps"
    if library.kernel_size == size:
        return library
    if not isinstance(conv, nn.Conv2d) and settings.library_rule is None:
        return _default_library(size)
    message = f"library {library.name} has {library.kernel_size} patterns, the kernel is {size}"
    if settings.library_rule is not None:
        raise ConfigError(f"{name}: {message}; give a library of its size")
    return message + "; add a rule with a library of this size"


def _default_library(size: tuple[int, int]) -> LibrarySpec:
    """What layers get whose kernels are of another size than the built-in patterns: 2 of 3 taps, 3
    of 5, 4 of 7 and of more, 2 of 2x2, the most frequent natural ones."""
    taps = min(4, (size[0] * size[1] + 1) // 2)
    return LibrarySpec(taps=taps, size=min(8, count_natural(size, taps)))


@dataclass(frozen=True)
class _Chosen:
    """A layer that is to be pruned, before its library is extracted."""

    name: str
    settings: LayerSettings
    library: PatternSet | LibrarySpec
    bake: str
    notes: tuple[str, ...]
    lowered_from: float | None = None


def resolve_layers(
    model: nn.Module, config: PatternConfig
) -> tuple[list[LayerPlan], list[SkippedLayer]]:
    """Decide for every layer how it is pruned or why not; the model is not changed.

    Raises
    ------
    ConfigError
        A rule matches nothing, a rate is out of range, a library has the wrong kernel size, a
        weight is computed in the forward or cannot be projected, or nothing is left to prune.
    """
    refuse_unusable_model(model)
    convs = considered_layers(model, config)
    matched = _matched_rules(convs, config)
    first = _first_convolution(convs)
    skipped: list[SkippedLayer] = []
    chosen: list[_Chosen] = []
    owners: dict[int, str] = {}
    for name, conv in convs.items():
        settings = apply_rules(
            base_settings(config, layer_kind(conv), is_first=name == first), matched[name]
        )
        found = _resolve(name, conv, within_groups(conv, settings), config.frozen)
        if isinstance(found, _Chosen) and conv._parameters.get("weight") is not None:
            owner = owners.setdefault(id(conv.weight), name)
            if owner != name:
                found = _skip(name, conv, f"shares its weight with {owner}", owner)
        if isinstance(found, _Chosen):
            chosen.append(found)
        else:
            skipped.append(found)
    if not chosen:
        reasons = "; ".join(f"{s.name}: {s.reason}" for s in skipped[:4])
        raise ConfigError(f"no layer is left to prune ({reasons}); relax the configuration")
    _check_weights(convs, chosen, skipped, owners)
    _refuse_rate_of_no_layer(convs, chosen)
    return _finish(convs, chosen), skipped


def prepare_layers(
    model: nn.Module, config: PatternConfig, example_inputs: Any = None
) -> tuple[list[LayerPlan], list[SkippedLayer]]:
    """:func:`resolve_layers`, then bake what torch computes and check against examples, in place.

    Raises
    ------
    ConfigError
        As :func:`resolve_layers`; or no convolution takes a planned weight itself when the model
        runs on ``example_inputs``.
    """
    plans, skipped = resolve_layers(model, config)
    convs = considered_layers(model, config)
    forget_assignment(model)
    baked = {plan.name: plan.bake for plan in plans if plan.bake}
    for name in baked:
        bake_layer(convs[name])
    if baked:
        kinds = " and ".join(sorted(set(baked.values())))
        warnings.warn(
            f"{kinds} of {len(baked)} layers ({', '.join(list(baked)[:6])}) was baked into plain"
            " weights, which are what trains and is pruned from now on",
            stacklevel=3,
        )
    names = [plan.name for plan in plans]
    if example_inputs is not None:
        check_by_examples(model, example_inputs, names)
    else:
        _warn_of_reads(layers_read_elsewhere(model, names))
    return plans, skipped


def _warn_of_reads(reads: dict[str, str]) -> None:
    if reads:
        shown = ", ".join(f"{name} (by {reader})" for name, reader in list(reads.items())[:6])
        warnings.warn(
            f"the weights of {len(reads)} layers are read outside of their layer: {shown}; where"
            " that computes another weight of them, their zeros are lost. Pass example_inputs to"
            " have it tried",
            stacklevel=4,
        )


def _skip(name: str, conv: Layer, reason: str, tied_to: str = "") -> SkippedLayer:
    return SkippedLayer(name, layer_kind(conv), tuple(conv.weight.shape), reason, tied_to)


def _resolve(
    name: str, conv: Layer, settings: LayerSettings, frozen: str
) -> _Chosen | SkippedLayer:
    """What becomes of one layer."""
    reason = _reason_to_skip(conv, settings, frozen)
    if reason is not None:
        return _skip(name, conv, reason)
    kind = layer_kind(conv)
    library: PatternSet | LibrarySpec | str = PatternSet("dense1x1", (dense_pattern((1, 1)),))
    if kind not in ("pointwise", "linear"):
        library = _library_of(name, conv, settings)
    if isinstance(library, str):
        return _skip(name, conv, library)
    if kind == "depthwise" and settings.connectivity != 1.0:
        raise ConfigError(
            f"{name} is depthwise: connectivity {settings.connectivity} would delete channels;"
            " add type: conv or pointwise to the rule, or connectivity: 1"
        )
    notes = []
    filters = kernel_shape(conv)[0]
    group = fitting_group(settings.group, filters)
    if kind == "linear" and group < min(SMALLEST_BLOCK, settings.group):
        needed = f"no block of {SMALLEST_BLOCK} to {settings.group} outputs divides its {filters}"
        return _skip(name, conv, f"{needed}, and smaller ones are not faster than dense")
    if group != settings.group:
        notes.append(
            f"group {settings.group} lowered to {group}: it does not divide {filters} filters"
        )
    block = _fitting_block(name, kind, kernel_shape(conv)[1], settings.block)
    if block != settings.block:
        notes.append(f"blocks of {settings.block} in_channels lowered to {block}: no divisor")
    elif block > 1:
        notes.append(f"1x{block} blocks of in_channels")
    bake = recipe_of(conv)
    if bake:
        notes.append(f"{bake} baked into the weight")
    settings = replace(settings, group=group, block=block)
    asked, lowered_from = settings.connectivity, None
    rate = fitting_connectivity(conv, settings)
    if rate < asked:
        lowered_from = asked
        rows, columns = kernel_grid(*kernel_shape(conv)[:2], group, block)
        allows = f"{rows} x {columns} kernel groups of the layer allow"
        if rate == 1.0 and kind in ("pointwise", "linear"):
            return _skip(name, conv, f"connectivity {asked:g} is more than {allows}")
        notes.append(f"connectivity {asked:g} lowered to {rate:g}: {allows} no more")
    settings = replace(settings, connectivity=rate)
    return _Chosen(name, settings, library, bake, tuple(notes), lowered_from)


def _fitting_block(name: str, kind: str, in_channels: int, block: int) -> int:
    """The largest block up to ``block`` that divides the in_channels.

    Raises
    ------
    ConfigError
        If a rule asks for blocks in a layer that has patterns.
    """
    if block > 1 and kind != "pointwise":
        raise ConfigError(
            f"{name}: block {block} is for 1x1 convolutions, and this is a {kind} layer; add type:"
            " pointwise to the rule"
        )
    return fitting_group(block, in_channels)


def _check_weights(
    convs: dict[str, Layer],
    chosen: list[_Chosen],
    skipped: list[SkippedLayer],
    owners: dict[int, str],
) -> None:
    """Refuse weights that cannot be pruned, or that another layer wants dense."""
    problems = {}
    for layer in chosen:
        refuse_unusable_weight(layer.name, convs[layer.name])
        if not layer.bake:
            problems[layer.name] = why_not_own(convs[layer.name])
    refuse_computed({name: why for name, why in problems.items() if why})
    for dense in skipped:
        weight = convs[dense.name]._parameters.get("weight")
        owner = owners.get(id(weight))
        if owner is not None and not dense.tied_to:
            raise ConfigError(
                f"{dense.name} is to stay dense ({dense.reason}), but it shares its weight with"
                f" {owner}, which is pruned; treat both alike"
            )


def _refuse_rate_of_no_layer(convs: dict[str, Layer], chosen: list[_Chosen]) -> None:
    """A rate is lowered for the small layers of a network; one that none of a kind can have is not
    what was meant."""
    lowered: dict[str, tuple[_Chosen, float]] = {}
    reached = set()
    for layer in chosen:
        kind = layer_kind(convs[layer.name])
        if layer.lowered_from is not None:
            lowered.setdefault(kind, (layer, layer.lowered_from))
        elif layer.settings.connectivity > 1.0:
            reached.add(kind)
    for kind, (layer, asked) in lowered.items():
        if kind not in reached:
            settings = replace(layer.settings, connectivity=asked)
            _kept_kernels(layer.name, convs[layer.name], settings)


def _kept_kernels(name: str, conv: Layer, settings: LayerSettings) -> int:
    """Kernels that a layer keeps; a rate that it cannot have is refused with its name."""
    out_channels, in_channels = kernel_shape(conv)[:2]
    rate, group, block = settings.connectivity, settings.group, settings.block
    try:
        return kept_kernels(out_channels, in_channels, rate, group, settings.balance, block)
    except ValueError as error:
        raise ConfigError(f"{name}: {error}") from error


def _finish(
    convs: dict[str, Layer],
    chosen: list[_Chosen],
) -> list[LayerPlan]:
    """Extract the libraries (one for all layers of a specification and size) and count kernels."""
    weights: dict[tuple[LibrarySpec, tuple[int, ...]], list[torch.Tensor]] = {}
    for layer in chosen:
        if isinstance(layer.library, LibrarySpec):
            key = (layer.library, kernel_shape(convs[layer.name])[2:])
            weights.setdefault(key, []).append(kernels_of(convs[layer.name]).detach())
    extracted = {
        key: initial_library(key[0], w) if key[0].source == "phased" else extract_library(key[0], w)
        for key, w in weights.items()
    }
    plans = []
    for layer in chosen:
        name, settings, library = layer.name, layer.settings, layer.library
        conv = convs[name]
        spec = None
        if isinstance(library, LibrarySpec):
            spec, library = library, extracted[library, kernel_shape(conv)[2:]]
        plans.append(
            LayerPlan(
                name=name,
                kind=layer_kind(conv),
                shape=kernel_shape(conv),
                pattern_set=library,
                kept=_kept_kernels(name, conv, settings),
                connectivity=settings.connectivity,
                group=settings.group,
                balance=settings.balance,
                sharing=settings.sharing,
                block=settings.block,
                spec=spec,
                notes=layer.notes,
                bake=layer.bake,
                view=KernelView.of(conv),
            )
        )
    return plans
