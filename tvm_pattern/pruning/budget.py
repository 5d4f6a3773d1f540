"""Budgets: which layer takes which connectivity rate and group, for a cost that may remain.

Every layer is pruned alone, at each candidate, the batch norms are recalibrated, and the loss on
held-out data is compared with the dense model's. A multiple-choice knapsack over layers then picks
the candidates whose losses add up least within the budget.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from .assignment import apply_assignment
from .batchnorm import recalibrate_bn
from .config import ConfigError, PatternConfig, Rule
from .layers import LayerPlan, prepare_layers, resolve_layers
from .modules import CONVOLUTIONS, convolutions, is_transposed, unwrap
from .oneshot import assign

_BINS = 4096


@dataclass(frozen=True)
class Candidate:
    """One way to treat a layer; ``connectivity`` None leaves it dense.

    ``cost`` is in MACs per sample or milliseconds, ``loss`` the increase over the dense model.
    """

    connectivity: float | None
    group: int
    cost: float
    loss: float = 0.0


@dataclass(frozen=True)
class LatencyRow:
    """Measured time of one layer: ``connectivity`` None for the dense layer."""

    layer: str
    connectivity: float | None
    group: int
    milliseconds: float


@dataclass
class Plan:
    """Result of :func:`plan`.

    Attributes
    ----------
    config : PatternConfig
        The better of the planned and the uniform configuration on held-out data.
    planned, uniform : PatternConfig
        ``uniform`` is None when no uniform rate among the candidates meets the budget.
    planned_loss, uniform_loss, dense_loss : float
        One-shot loss on held-out data after batch norm recalibration.
    planned_cost, uniform_cost, dense_cost : float
        MACs per sample, or milliseconds.
    curves : dict
        Layer name to its measured candidates.
    """

    config: PatternConfig
    planned: PatternConfig
    uniform: PatternConfig | None
    planned_loss: float
    uniform_loss: float
    dense_loss: float
    planned_cost: float
    uniform_cost: float
    dense_cost: float
    unit: str
    curves: dict[str, list[Candidate]] = field(repr=False, default_factory=dict)

    def sensitivity(self) -> dict[str, list[tuple[float, float]]]:
        """Per layer ``(connectivity, loss increase)`` at the smallest group, for plotting."""
        return {
            name: [
                (c.connectivity, c.loss)
                for c in candidates
                if c.connectivity is not None and c.group == min(x.group for x in candidates)
            ]
            for name, candidates in self.curves.items()
        }


def layer_macs(model: nn.Module, inputs: torch.Tensor) -> dict[str, int]:
    """Multiply-accumulates per sample of every convolution and linear layer."""
    inner = unwrap(model)
    macs: dict[str, int] = {}
    handles = []

    def count(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: torch.Tensor) -> None:
            # Every weight is used once per output position of a convolution; per input position of
            # a transposed one.
            image = args[0] if is_transposed(module) else output
            channels = 1 if isinstance(module, nn.Linear) else image.shape[1]
            positions = image[0].numel() // channels
            if isinstance(module, nn.Linear):
                positions //= module.out_features
            macs[name] = macs.get(name, 0) + module.weight.numel() * positions

        return hook

    for name, module in inner.named_modules():
        if isinstance(module, (*CONVOLUTIONS, nn.Linear)):
            handles.append(module.register_forward_hook(count(name)))
    mode = inner.training
    try:
        with torch.no_grad():
            inner.eval()(inputs)
    finally:
        inner.train(mode)
        for handle in handles:
            handle.remove()
    return macs


@torch.no_grad()
def held_out_loss(model: nn.Module, data: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> float:
    """Mean cross-entropy over labelled batches, in evaluation mode."""
    mode = model.training
    model.eval()
    total = sum(float(F.cross_entropy(model(x), y, reduction="sum")) for x, y in data)
    model.train(mode)
    return total / sum(len(y) for _, y in data)


def _one_layer(config: PatternConfig, name: str, connectivity: float, group: int) -> PatternConfig:
    rule = Rule(name=name, connectivity=connectivity, group=group, skip=False)
    return config.model_copy(update={"rules": (*config.rules, rule)})


class _Probe:
    """A private copy of the model on which candidates are tried and undone."""

    def __init__(self, model: nn.Module, batches: list[Any]) -> None:
        half = max(1, len(batches) // 2)
        # Recalibration and evaluation see different samples.
        self.statistics, self.held_out = batches[:half], batches[half:]
        self.model = copy.deepcopy(unwrap(model))
        self.state = copy.deepcopy(self.model.state_dict())
        recalibrate_bn(self.model, self.statistics)
        self.dense_loss = held_out_loss(self.model, self.held_out)

    def loss(self, plans: list[LayerPlan]) -> float:
        """Held-out loss with these layers pruned one-shot."""
        self.model.load_state_dict(self.state)
        apply_assignment(self.model, assign(self.model, plans))
        recalibrate_bn(self.model, self.statistics)
        return held_out_loss(self.model, self.held_out)


def _density(plan: LayerPlan) -> float:
    taps = sum(len(p) for p in plan.pattern_set) / len(plan.pattern_set)
    kernels = plan.shape[0] * plan.shape[1]
    return plan.kept * taps / (kernels * plan.shape[2] * plan.shape[3])


def _latencies(rows: Iterable[LatencyRow], names: set[str]) -> dict[str, list[Candidate]]:
    table: dict[str, list[Candidate]] = {}
    for row in rows:
        if row.layer in names:
            candidate = Candidate(row.connectivity, row.group, row.milliseconds)
            table.setdefault(row.layer, []).append(candidate)
    missing = sorted(n for n in names if not any(c.connectivity is None for c in table.get(n, [])))
    if missing:
        raise ConfigError(
            f"the latency table has no dense time (connectivity None) of {', '.join(missing[:6])};"
            " measure every layer that may be pruned"
        )
    return table


def _mac_candidates(
    model: nn.Module,
    config: PatternConfig,
    plans: list[LayerPlan],
    macs: Mapping[str, int],
    rates: Sequence[float],
    groups: Sequence[int],
) -> dict[str, list[Candidate]]:
    found = {}
    for layer in plans:
        options = [Candidate(None, 1, float(macs[layer.name]))]
        for group in groups if layer.kind != "depthwise" else (1,):
            for rate in rates if layer.kind != "depthwise" else (1.0,):
                pruned = _try_plan(model, config, layer.name, rate, group)
                if pruned is not None:
                    options.append(Candidate(rate, group, macs[layer.name] * _density(pruned)))
        found[layer.name] = options
    return found


def _try_plan(
    model: nn.Module, config: PatternConfig, name: str, rate: float, group: int
) -> LayerPlan | None:
    """Plan of one layer at a candidate, None where its shape does not allow that candidate."""
    try:
        plans, _ = resolve_layers(model, _one_layer(config, name, rate, group))
    except ConfigError:
        return None
    return next((p for p in plans if p.name == name and p.group == group), None)


def choose(
    curves: Mapping[str, Sequence[Candidate]], allowance: float
) -> dict[str, Candidate] | None:
    """Least total loss with total cost <= ``allowance``, by dynamic programming.

    Costs are rounded up to 1/4096 of the allowance, so the budget always holds; None when even
    the cheapest candidates exceed it.
    """
    if allowance <= 0:
        return None
    best = np.zeros(_BINS + 1)
    picks = []
    for candidates in curves.values():
        bins = [int(np.ceil(c.cost / allowance * _BINS - 1e-9)) for c in candidates]
        table = np.full((len(candidates), _BINS + 1), np.inf)
        for row, (candidate, size) in enumerate(zip(candidates, bins, strict=True)):
            if size <= _BINS:
                table[row, size:] = best[: _BINS + 1 - size] + candidate.loss
        pick = table.argmin(0)
        best = table[pick, np.arange(_BINS + 1)]
        picks.append((pick, bins))
    if not np.isfinite(best[_BINS]):
        return None
    left = _BINS
    chosen = {}
    for (name, candidates), (pick, bins) in reversed(list(zip(curves.items(), picks, strict=True))):
        index = int(pick[left])
        chosen[name] = candidates[index]
        left -= bins[index]
    return {name: chosen[name] for name in curves}


def _to_config(config: PatternConfig, chosen: Mapping[str, Candidate]) -> PatternConfig:
    rules = [
        Rule(name=name, skip=True)
        if c.connectivity is None
        else Rule(name=name, connectivity=c.connectivity, group=c.group, skip=False)
        for name, c in chosen.items()
    ]
    return config.model_copy(update={"rules": (*config.rules, *rules)})


def _uniform(
    curves: Mapping[str, Sequence[Candidate]], allowance: float
) -> dict[str, Candidate] | None:
    """The lowest uniform (connectivity, group) that meets the allowance on every layer."""
    pairs = sorted(
        {(c.connectivity, c.group) for cs in curves.values() for c in cs if c.connectivity}
    )
    for connectivity, group in pairs:
        chosen = {}
        for name, candidates in curves.items():
            exact = [c for c in candidates if (c.connectivity, c.group) == (connectivity, group)]
            pruned = [c for c in candidates if c.connectivity is not None]
            # A layer that does not allow the pair (a depthwise one) takes its nearest candidate.
            nearest = min(
                pruned, key=lambda c: abs((c.connectivity or 1) - connectivity), default=None
            )
            chosen[name] = exact[0] if exact else (nearest or candidates[0])
        if sum(c.cost for c in chosen.values()) <= allowance:
            return chosen
    return None


def _measure(
    probe: _Probe,
    model: nn.Module,
    config: PatternConfig,
    options: Mapping[str, Sequence[Candidate]],
    progress: Callable[[int, int], None] | None,
) -> dict[str, list[Candidate]]:
    """Fill in the loss increase of every candidate."""
    curves: dict[str, list[Candidate]] = {}
    total = sum(len(c) for c in options.values())
    done = 0
    for name, candidates in options.items():
        curves[name] = []
        for c in candidates:
            loss = 0.0
            if c.connectivity is not None:
                pruned = _try_plan(model, config, name, c.connectivity, c.group)
                if pruned is None:
                    raise ConfigError(
                        f"{name} does not allow connectivity {c.connectivity} with group {c.group};"
                        " remove that row of the latency table"
                    )
                loss = max(0.0, probe.loss([pruned]) - probe.dense_loss)
            curves[name].append(Candidate(c.connectivity, c.group, c.cost, loss))
            done += 1
            if progress is not None:
                progress(done, total)
    return curves


def plan(
    model: nn.Module,
    calibration_data: Iterable[tuple[torch.Tensor, torch.Tensor]],
    budget: float,
    *,
    config: PatternConfig | None = None,
    latencies: Iterable[LatencyRow] | None = None,
    rates: Sequence[float] = (1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0),
    groups: Sequence[int] = (1,),
    progress: Callable[[int, int], None] | None = None,
) -> Plan:
    """Choose per-layer connectivity and group for a budget.

    Parameters
    ----------
    model : nn.Module
        Trained; it is not changed.
    calibration_data : iterable of (inputs, labels)
        At least two batches, on the model's device, not of the test set. The first half
        recalibrates batch norms, the second half measures the loss.
    budget : float
        Part of the dense cost of the prunable layers that may remain, in (0, 1).
    config : PatternConfig, optional
        Library, rules and treatment of the first layer to start from.
    latencies : iterable of LatencyRow, optional
        Measured times; then the cost is milliseconds and its rows are the candidates. Without it
        the cost is multiply-accumulates and ``rates`` x ``groups`` are the candidates.
    rates, groups : sequence
        Candidates for the MAC cost.
    progress : callable, optional
        Called with (done, total) after every candidate.

    Returns
    -------
    Plan

    Raises
    ------
    ConfigError
        Too little data, a budget out of range or out of reach, or an incomplete latency table.
    """
    if not 0.0 < budget < 1.0:
        raise ConfigError(f"budget is the part of the dense cost left, in (0, 1); got {budget}")
    batches = [(x, y) for x, y in calibration_data]
    if len(batches) < 2:
        raise ConfigError(f"calibration needs at least 2 batches, got {len(batches)}")
    config = config or PatternConfig()
    model = copy.deepcopy(unwrap(model))  # baking changes it
    # 1x1 layers are candidates too, so their default rate must not hide them.
    wide = config.model_copy(update={"connectivity_1x1": max(config.connectivity_1x1, 1.5)})
    plans = [p for p in prepare_layers(model, wide)[0] if p.kind != "linear"]
    probe = _Probe(model, batches)
    if config.first == "pattern":
        first = next(iter(convolutions(model)))
        plans = [p for p in plans if p.name != first]
    if latencies is not None:
        names = {p.name for p in plans}
        options, unit = _latencies(latencies, names), "ms"
    else:
        macs = layer_macs(model, batches[0][0][:1])
        options, unit = _mac_candidates(model, wide, plans, macs, rates, groups), "MACs"
    curves = _measure(probe, model, wide, options, progress)
    return _decide(model, probe, wide, curves, budget, unit)


def _decide(
    model: nn.Module,
    probe: _Probe,
    config: PatternConfig,
    curves: dict[str, list[Candidate]],
    budget: float,
    unit: str,
) -> Plan:
    dense = sum(next(c.cost for c in cs if c.connectivity is None) for cs in curves.values())
    chosen = choose(curves, budget * dense)
    if chosen is None:
        least = sum(min(c.cost for c in cs) for cs in curves.values()) / dense
        raise ConfigError(
            f"budget {budget} is out of reach: the candidates leave at least {least:.3f}; raise the"
            " budget or offer higher rates"
        )
    planned = _to_config(config, chosen)
    same = _uniform(curves, budget * dense)
    uniform = None if same is None else _to_config(config, same)
    planned_loss = probe.loss(resolve_layers(model, planned)[0])
    uniform_loss = float("nan")
    if uniform is not None:
        uniform_loss = probe.loss(resolve_layers(model, uniform)[0])
    better = uniform if uniform is not None and uniform_loss < planned_loss else planned
    return Plan(
        config=better,
        planned=planned,
        uniform=uniform,
        planned_loss=planned_loss,
        uniform_loss=uniform_loss,
        dense_loss=probe.dense_loss,
        planned_cost=sum(c.cost for c in chosen.values()),
        uniform_cost=float("nan") if same is None else sum(c.cost for c in same.values()),
        dense_cost=dense,
        unit=unit,
        curves=curves,
    )
