"""Masks and penalties of the members of a batched model, changed after every epoch."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from topi_kernels.reorder import similar_filters

from . import projection
from .model import Members
from .networks import ConvSpec, Network
from .rows import (
    PATTERN_METHODS,
    Row,
    connectivity,
    fraction_by_latency,
    fraction_by_weights,
    kept_kernels,
    prunable_share,
)


@dataclass(frozen=True)
class PruneSettings:
    """``steps`` epochs of ramp or ADMM; the rest of the epochs have fixed masks.

    Gradual: ``target + (all - target) * (1 - step / steps) ** exponent`` kernels. ADMM: ``rho``
    spread evenly over the steps, dual updates times ``dual_step``.
    """

    steps: int
    exponent: float = 3.0
    rho: tuple[float, ...] = (0.01, 0.02, 0.05, 0.1)
    dual_step: float = 0.2

    def left(self, step: int) -> float:
        """What a ramp still has above its target."""
        return max(0.0, 1 - step / self.steps) ** self.exponent

    def rho_at(self, step: int) -> float:
        """Penalty in force after ``step`` updates."""
        return self.rho[min(len(self.rho) - 1, step * len(self.rho) // self.steps)]


@dataclass
class Pruning:
    """The methods of a batch of members; ``rows[s]`` is what member ``s`` undergoes.

    Call :meth:`start` before the first step and :meth:`after_epoch` after every epoch.
    """

    rows: list[Row]
    members: Members
    settings: PruneSettings
    latency: dict[str, Any] | None = None
    step: int = 0
    libraries: list[torch.Tensor] = field(default_factory=list)
    orders: dict[str, torch.Tensor] = field(default_factory=dict)
    dual: torch.Tensor | None = None
    penalty: torch.Tensor | None = None

    @property
    def network(self) -> Network:
        return self.members.layout.network

    @torch.no_grad()
    def start(self) -> None:
        """First choices, from the dense weights."""
        weights = self._weights()
        self.libraries = []
        for index, row in enumerate(self.rows):
            mine = [weights[c.name][index] for c in self.network.prunable]
            pattern = row.method in PATTERN_METHODS
            masks = projection.masks_of(row.library if pattern else "fixed8", mine)
            self.libraries.append(masks.to(self.members.parameters.device))
            if row.method.startswith("filter"):
                self._remove_filters(index, row)
        self._order_filters(weights)
        if any(row.method == "admm" for row in self.rows):
            self._start_admm()
        self._choose(("gradual", "unstructured"))
        self._choose(("oneshot",), final=True)
        self._apply()

    @torch.no_grad()
    def after_epoch(self) -> None:
        """One update of every method that still changes its masks."""
        if self.step >= self.settings.steps:
            return
        self.step += 1
        self._choose(("gradual", "unstructured"))
        if self.dual is not None:
            self._update_admm()
        if self.step == self.settings.steps:
            self._choose(("admm",), final=True)
            self.members.target = self.members.penalty = self.dual = None
        self._apply()

    # Choices ------------------------------------------------------------------------------------

    def _weights(self) -> dict[str, torch.Tensor]:
        flat = self.members.parameters
        return {c.name: self.members.layout.slots[c.name].of(flat) for c in self.network.prunable}

    def _kept(self, row: Row, conv: ConvSpec, final: bool) -> int:
        """Kernels (or weights, unstructured) of a layer that stay now."""
        left = 0.0 if final else self.settings.left(self.step)
        if row.method == "unstructured":
            total = math.prod(conv.shape)
            target = round(prunable_share(self.network, row.rate) * total)
            return target + math.ceil((total - target) * left)
        units = conv.out_channels // row.group * conv.in_channels
        rate = connectivity(self.network, row.rate)
        target = kept_kernels(conv.shape, rate, row.group) // row.group
        return row.group * (target + math.ceil((units - target) * left))

    def _choose(self, methods: tuple[str, ...], final: bool = False) -> None:
        """New masks of the members with these methods."""
        masks = self.members.layout.slots
        for conv in self.network.prunable:
            slot = masks[conv.name]
            weight = slot.of(self.members.parameters)
            mask = slot.of(self.members.mask)
            for indices, row in self._batches(methods):
                chosen = self._project(weight[indices], indices, row, conv, final)
                mask[indices] = chosen.to(mask.dtype)

    def _batches(self, methods: tuple[str, ...]) -> list[tuple[torch.Tensor, Row]]:
        """Members that are projected alike, together."""
        found: dict[tuple[Any, ...], list[int]] = {}
        for index, row in enumerate(self.rows):
            if row.method in methods:
                key = (row.method == "unstructured", row.rate, row.group, row.similar)
                found.setdefault((*key, len(self.libraries[index])), []).append(index)
        device = self.members.parameters.device
        return [
            (torch.tensor(indices, device=device), self.rows[indices[0]])
            for indices in found.values()
        ]

    def _project(
        self, weight: torch.Tensor, indices: torch.Tensor, row: Row, conv: ConvSpec, final: bool
    ) -> torch.Tensor:
        kept = self._kept(row, conv, final)
        if row.method == "unstructured":
            return projection.magnitude(weight, kept)
        masks = torch.stack([self.libraries[i] for i in indices.tolist()])
        order = self.orders[conv.name][indices] if row.similar else None
        return projection.project(weight, masks, kept, row.group, order)

    def _order_filters(self, weights: dict[str, torch.Tensor]) -> None:
        """Filters that share, by the likeness of what their kernels keep."""
        if not any(row.similar for row in self.rows):
            return
        for conv in self.network.prunable:
            order = torch.arange(conv.out_channels).repeat(len(self.rows), 1)
            for index, row in enumerate(self.rows):
                if row.similar:
                    square = weights[conv.name][index].flatten(2).square()
                    masks = self.libraries[index].to(square)
                    energy = (square @ masks.T).amax(-1).double().cpu().numpy()
                    found = similar_filters(energy, row.group)
                    order[index] = torch.from_numpy(found)
            self.orders[conv.name] = order.to(self.members.parameters.device)

    def _apply(self) -> None:
        self.members.parameters.mul_(self.members.mask)
        self.members.momentum.mul_(self.members.mask)

    # ADMM ---------------------------------------------------------------------------------------

    def _start_admm(self) -> None:
        members = self.members
        members.target = self._project_all(members.parameters.clone())
        self.dual = torch.zeros_like(members.parameters)
        members.penalty = torch.zeros_like(members.parameters)
        self._set_penalty()

    def _set_penalty(self) -> None:
        penalty = self.members.penalty
        assert penalty is not None
        for conv in self.network.prunable:
            place = self.members.layout.slots[conv.name].of(penalty)
            for index, row in enumerate(self.rows):
                if row.method == "admm":
                    place[index] = self.settings.rho_at(self.step)

    def _project_all(self, values: torch.Tensor) -> torch.Tensor:
        """``values`` of the ADMM members on their constraints, in place."""
        for conv in self.network.prunable:
            weight = self.members.layout.slots[conv.name].of(values)
            for indices, row in self._batches(("admm",)):
                part = weight[indices]
                weight[indices] = part * self._project(part, indices, row, conv, True)
        return values

    def _update_admm(self) -> None:
        """Z = projection of W + U; U += dual_step (W - Z); ``target`` is Z - U."""
        members, dual = self.members, self.dual
        assert dual is not None
        before, after = self.settings.rho_at(self.step - 1), self.settings.rho_at(self.step)
        z = self._project_all(members.parameters + dual)
        # The scaled dual is the multiplier over rho: it shrinks when rho grows.
        dual.add_(members.parameters - z, alpha=self.settings.dual_step).mul_(before / after)
        members.target = z - dual
        self._set_penalty()

    # Whole filters ------------------------------------------------------------------------------

    def fraction(self, row: Row) -> float:
        """Share of the width that a filter row keeps."""
        if row.method == "filter-weights":
            return fraction_by_weights(row.network, row.rate)
        if self.latency is None:
            raise ValueError(f"{row.label} needs the latency table; name it with --latency")
        return fraction_by_latency(self.latency, row.network, row.rate)

    def _remove_filters(self, index: int, row: Row) -> None:
        """Mask all but the strongest filters; what is left is exactly the thin network."""
        layout = self.members.layout
        alive = strongest_channels(
            self.network,
            lambda conv: layout.slots[conv.name].of(self.members.parameters)[index],
            self.fraction(row),
        )
        mask = self.members.mask[index : index + 1]
        for conv in self.network.convs:
            out = alive[conv.name].to(mask)
            layout.slots[f"{conv.name}.gamma"].of(mask)[0] = out
            layout.slots[f"{conv.name}.beta"].of(mask)[0] = out
            place = layout.slots[conv.name].of(mask)[0]
            place.mul_(out[:, None, None, None])
            if conv.source:
                place.mul_(alive[conv.source].to(mask)[None, :, None, None])
        layout.slots["classifier"].of(mask)[0].mul_(alive[self.network.convs[-1].name].to(mask))

    # Save and resume ----------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """What a checkpoint needs beside the members."""
        return {
            "step": self.step,
            "libraries": self.libraries,
            "orders": self.orders,
            "dual": self.dual,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Take over what :meth:`state` gave."""
        self.step, self.libraries = state["step"], state["libraries"]
        self.orders, self.dual = state["orders"], state["dual"]


def strongest_channels(
    network: Network, weight: Callable[[ConvSpec], torch.Tensor], fraction: float
) -> dict[str, torch.Tensor]:
    """Layer name to a bool ``[O]`` of the channels that stay.

    Layers that are added to each other keep the same channels: those whose filters have the largest
    squared norms, each layer's taken relative to its mean.
    """
    leader: dict[str, str] = {}
    for conv in network.convs:
        # An addend comes earlier in the list, so its leader is known.
        leader[conv.name] = leader[conv.residual] if conv.residual else conv.name
    score: dict[str, torch.Tensor] = {}
    for conv in network.convs:
        norm = weight(conv).double().flatten(1).square().sum(1).cpu()
        norm = norm / norm.mean()
        name = leader[conv.name]
        score[name] = score[name] + norm if name in score else norm
    alive = {}
    for name, values in score.items():
        count = max(1, round(len(values) * fraction))
        alive[name] = projection.keep_largest(values[None], count)[0]
    return {conv.name: alive[leader[conv.name]] for conv in network.convs}
