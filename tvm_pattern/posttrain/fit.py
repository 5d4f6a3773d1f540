"""Patterns, kernels and weights of one layer, from the moments of its inputs."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import nn

from topi_kernels.reorder import similar_filters

from ..pruning.assignment import project_layer
from ..pruning.layers import LayerPlan
from ..pruning.projection import REMOVED, pattern_masks, removed_positions, select_blocks
from ..pruning.sharing import grouped, members, spread
from .solve import blocks_of, kernel_energy, relative_error, removal_errors, solve_masked
from .statistics import Moments

_COARSE, _FINE = 25, 150


@dataclass
class Fit:
    """What becomes of one layer.

    Attributes
    ----------
    pattern_id : Tensor
        uint8 ``[O, I]``.
    weight : Tensor ``[O, I, kh, kw]``
    bias : Tensor ``[O]`` or None
    projected, fitted : float
        Relative errors of the outputs, as in :class:`tvm_pattern.posttrain.LayerFit`.
    patches : int
    """

    pattern_id: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor | None
    projected: float
    fitted: float
    patches: int


@torch.no_grad()
def fit_layer(
    conv: nn.Conv2d, plan: LayerPlan, moments: Moments, steps: int, damping: float
) -> Fit:
    """Choose and solve for one layer; ``conv`` is the dense network's and not changed."""
    dense = conv.weight.float()
    if conv.bias is not None:
        moments.centre(dense)
    problem = _problem(conv, dense, moments, damping)
    pattern_id, weight = problem.fit(plan, steps)
    masks = pattern_masks(plan.pattern_set, dense.device)
    projected = dense.masked_fill(removed_positions(project_layer(dense, plan), masks), 0)
    bias = None
    if conv.bias is not None:
        bias = conv.bias.float() + _means(dense, moments.dense_mean) - _means(weight, moments.mean)
    return Fit(
        pattern_id.cpu(),
        weight.to(conv.weight.dtype),
        bias,
        problem.error(projected),
        problem.error(weight),
        moments.count,
    )


def _problem(
    conv: nn.Conv2d, dense: torch.Tensor, moments: Moments, damping: float
) -> _Full | _Grouped | _Depthwise:
    if conv.groups == 1:
        return _Full(dense, moments, damping)
    if conv.groups == conv.in_channels:
        return _Depthwise(dense, moments, damping)
    return _Grouped(dense, moments, damping)


def _means(weight: torch.Tensor, mean: torch.Tensor) -> torch.Tensor:
    """Mean outputs ``[O]`` for mean patches ``[groups, K]``."""
    filters = weight.reshape(mean.shape[0], -1, mean.shape[1])
    return (filters @ mean[:, :, None]).reshape(-1)


class _Full:
    """A convolution of one group: all filters see the same patches."""

    def __init__(self, dense: torch.Tensor, moments: Moments, damping: float) -> None:
        self.shape = dense.shape
        flat = dense.flatten(1)
        self._gram, self._power = moments.gram[0], moments.power
        self._target = flat @ moments.cross[0]
        pull = damping * self._gram.diagonal().mean().clamp_min(1e-12)
        self._damped = self._gram + pull * torch.eye(len(self._gram), device=dense.device)
        self._goal = self._target + pull * flat
        self._dense = flat

    @property
    def power(self) -> float:
        """Power of the dense outputs, over all filters."""
        return float(self._power.sum())

    def error(self, weight: torch.Tensor) -> float:
        return relative_error(weight.flatten(1), self._gram, self._target, self._power)

    def fit(self, plan: LayerPlan, steps: int) -> tuple[torch.Tensor, torch.Tensor]:
        everywhere = torch.ones_like(self._dense, dtype=torch.bool)
        weight = self._solve(everywhere, self._dense, _COARSE)
        blocks = blocks_of(self._damped, self.shape[2] * self.shape[3])
        masks = pattern_masks(plan.pattern_set, weight.device)
        errors = removal_errors(self._kernels(weight), blocks, masks.flatten(1))
        order = self._order(weight, blocks, plan)
        by_group = grouped(errors.transpose(0, 1), plan.group, order)
        pattern_id = spread(by_group.argmin(1).to(torch.uint8), plan.group, order)
        together = plan.group * plan.block
        for number, count in enumerate(_counts(pattern_id.numel(), plan.kept, together, steps)):
            if number:
                pattern_id = self._drop(pattern_id, weight, blocks, count, plan, order)
            kept = ~removed_positions(pattern_id, masks).flatten(1)
            last = count * together == plan.kept
            weight = self._solve(kept, weight, _FINE if last else _COARSE)
        return pattern_id, weight.view(self.shape)

    def _solve(self, mask: torch.Tensor, start: torch.Tensor, iterations: int) -> torch.Tensor:
        return solve_masked(self._damped, self._goal, mask, start, iterations=iterations)

    def _kernels(self, weight: torch.Tensor) -> torch.Tensor:
        return weight.view(self.shape[0], self.shape[1], -1)

    def _drop(
        self,
        pattern_id: torch.Tensor,
        weight: torch.Tensor,
        blocks: torch.Tensor,
        count: int,
        plan: LayerPlan,
        order: torch.Tensor | None,
    ) -> torch.Tensor:
        """Keep the ``count`` kernel groups (or blocks of them) whose loss would cost most."""
        energy = kernel_energy(self._kernels(weight), blocks)
        score = grouped(energy, plan.group, order)
        score[members(pattern_id == REMOVED, plan.group, order)[:, 0]] = -1.0
        kept = count * plan.group * plan.block
        chosen = select_blocks(score, kept, plan.group, plan.balance, plan.block)
        return pattern_id.masked_fill(~spread(chosen, plan.group, order), REMOVED)

    def _order(
        self, weight: torch.Tensor, blocks: torch.Tensor, plan: LayerPlan
    ) -> torch.Tensor | None:
        """Which filters share: those whose kernels' losses would cost alike."""
        if plan.group == 1 or plan.sharing == "neighbours":
            return None
        energy = kernel_energy(self._kernels(weight), blocks)
        return torch.from_numpy(similar_filters(energy.double().cpu().numpy(), plan.group))


class _Grouped:
    """A grouped convolution: each group is a convolution by itself and keeps its share."""

    def __init__(self, dense: torch.Tensor, moments: Moments, damping: float) -> None:
        count = len(moments.gram)
        self.shape = dense.shape
        self._parts = [
            _Full(filters, moments.of_group(index), damping)
            for index, filters in enumerate(dense.chunk(count))
        ]

    def error(self, weight: torch.Tensor) -> float:
        powers = [part.power for part in self._parts]
        errors = [part.error(w) for part, w in zip(self._parts, self._chunks(weight), strict=True)]
        total = sum(e * p for e, p in zip(errors, powers, strict=True))
        return total / max(sum(powers), 1e-38)

    def _chunks(self, weight: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return weight.chunk(len(self._parts))

    def fit(self, plan: LayerPlan, steps: int) -> tuple[torch.Tensor, torch.Tensor]:
        count = len(self._parts)
        out_channels, per_group, kh, kw = plan.shape
        together = plan.group * plan.block
        each, more = divmod(plan.kept // together, count)
        fitted = []
        for index, part in enumerate(self._parts):
            kept = (each + (index < more)) * together
            shape = (out_channels // count, per_group, kh, kw)
            fitted.append(part.fit(replace(plan, shape=shape, kept=kept), steps))
        ids, weights = zip(*fitted, strict=True)
        return torch.cat(ids), torch.cat(weights)


class _Depthwise:
    """Every filter sees one channel of its own, so that its best pattern is found exactly."""

    def __init__(self, dense: torch.Tensor, moments: Moments, damping: float) -> None:
        groups, taps = moments.mean.shape
        self.shape = dense.shape
        self._gram, self._power = moments.gram, moments.power
        self._dense = dense.reshape(groups, -1, taps)
        self._target = self._dense @ moments.cross
        diagonal = torch.diagonal(self._gram, dim1=1, dim2=2).mean(1)
        pull = (damping * diagonal.clamp_min(1e-12))[:, None, None]
        self._damped = self._gram + pull * torch.eye(taps, device=dense.device)
        self._goal = self._target + pull * self._dense

    def error(self, weight: torch.Tensor) -> float:
        filters = weight.reshape(self._dense.shape)
        changed = ((filters @ self._gram) * filters).sum(2) - 2 * (self._target * filters).sum(2)
        total = changed.sum() + self._power.sum()
        return float(total / self._power.sum().clamp_min(1e-38))

    def fit(self, plan: LayerPlan, steps: int) -> tuple[torch.Tensor, torch.Tensor]:
        del steps  # no kernel of a depthwise layer is dropped
        best = torch.linalg.solve(self._damped, self._goal.transpose(1, 2)).transpose(1, 2)
        masks = pattern_masks(plan.pattern_set, best.device)
        errors = removal_errors(best.transpose(0, 1), self._damped, masks.flatten(1))
        choice = errors.argmin(0).transpose(0, 1)  # [groups, filters of each]
        kept = masks.flatten(1)[choice]
        both = kept[..., :, None] & kept[..., None, :]
        identity = torch.eye(best.shape[2], device=best.device)
        system = torch.where(both, self._damped[:, None], identity)
        goal = torch.where(kept, self._goal, 0.0)
        weight = torch.linalg.solve(system, goal)
        return choice.reshape(-1, 1).to(torch.uint8), weight.reshape(self.shape)


def _counts(kernels: int, kept: int, group: int, steps: int) -> list[int]:
    """Kernel groups before the first step and after each, by equal ratios."""
    units, last = kernels // group, kept // group
    if last == units:
        return [units]
    ratio = last / units
    between = [round(units * ratio ** (step / steps)) for step in range(1, steps)]
    return [units, *between, last]
