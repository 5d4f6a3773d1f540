"""The pruning methods: settings that a recipe stores, and the engine that runs each of them.

An engine owns the tensors of its method and the mathematics; the lifecycle (hooks, phases, saving)
is :class:`tvm_pattern.pruning.pruner.Pruner`'s.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, TypeAdapter, ValidationError, model_validator

from .assignment import LayerAssignment, filter_order, project_layer
from .config import ConfigError, Settings, explain
from .layers import LayerPlan
from .libraries import shrink_library
from .projection import (
    pattern_masks,
    project_connectivity,
    project_pattern,
    removed_positions,
)

Tensors = dict[str, torch.Tensor]


class OneShot(Settings):
    """Project once at the freeze, then retrain with fixed masks."""

    name: Literal["oneshot"] = "oneshot"
    steps: Literal[1] = 1


class Gradual(Settings):
    """Patterns from the first step; kernels removed along a power sparsity_ramp.

    After update ``t`` of ``steps`` a layer keeps
    ``kept + (total - kept) * (1 - t / steps) ** exponent`` kernels.

    Parameters
    ----------
    steps : int
        Calls of ``Pruner.step`` until the target is reached.
    exponent : float
        3 is the cubic ramp of Zhu and Gupta (2017).
    """

    name: Literal["gradual"] = "gradual"
    steps: Annotated[int, Field(ge=1)] = 20
    exponent: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 3.0


class Admm(Settings):
    """PatDNN's ADMM regularisation (section 4): W by SGD or Adam, Z and Y by projection.

    Joint: one pair (Z, U) and the exact projection onto both constraints; ``separate``: the
    paper's two pairs, (Z, U) for patterns and (Y, V) for connectivity.

    Parameters
    ----------
    steps : int
        Calls of ``Pruner.step`` over which ``rho`` is spread evenly.
    rho : tuple of float
        Rising penalties; U and V are rescaled by rho_old / rho_new at each change.
    dual_step : float
        Factor of the dual update, in (0, 1]; 1 is textbook ADMM. Short trainings wind up the dual
        with 1; 0.2 converges.
    separate : bool
    """

    name: Literal["admm"] = "admm"
    steps: Annotated[int, Field(ge=1)] = 24
    rho: tuple[Annotated[float, Field(gt=0, allow_inf_nan=False)], ...] = (0.01, 0.02, 0.05, 0.1)
    dual_step: Annotated[float, Field(gt=0, le=1)] = 0.2
    separate: bool = False

    @model_validator(mode="after")
    def _check(self) -> Admm:
        if not self.rho:
            raise ValueError("rho needs at least one value")
        return self

    def rho_at(self, update: int) -> float:
        """Penalty in force after ``update`` updates."""
        return self.rho[min(len(self.rho) - 1, update * len(self.rho) // self.steps)]


Method = OneShot | Gradual | Admm
_ADAPTER: TypeAdapter[Method] = TypeAdapter(Annotated[Method, Field(discriminator="name")])


def read_method(value: Method | str | dict[str, Any]) -> Method:
    """A method from its settings, its name (with defaults) or a mapping with ``name``.

    Raises
    ------
    ConfigError
        Unknown name, unknown key or a value out of range.
    """
    if isinstance(value, OneShot | Gradual | Admm):
        return value
    try:
        return _ADAPTER.validate_python({"name": value} if isinstance(value, str) else value)
    except ValidationError as error:
        raise ConfigError(
            f"invalid method (expected oneshot, gradual or admm): {explain(error)}"
        ) from error


@dataclass
class PrunedLayer:
    """One layer under pruning: its plan, weight and current choice.

    ``order`` says which filters share, once that is settled: each ``plan.group`` successive ones.
    """

    plan: LayerPlan
    weight: torch.nn.Parameter
    order: torch.Tensor | None = None
    pattern_id: torch.Tensor | None = None
    removed: torch.Tensor | None = None

    @property
    def name(self) -> str:
        """Layer name."""
        return self.plan.name

    @property
    def units(self) -> int:
        """Kernel groups of the layer, or blocks of them."""
        return self.plan.shape[0] // self.plan.group * (self.plan.shape[1] // self.plan.block)

    def masks(self) -> torch.Tensor:
        """Bool ``[num_patterns, kh, kw]`` of the current library."""
        return pattern_masks(self.plan.pattern_set, self.weight.device)

    def project(self, weight: torch.Tensor, kept: int | None = None) -> torch.Tensor:
        """Joint projection of ``weight``: uint8 ``pattern_id [O, I]``."""
        return project_layer(weight, self.plan, kept, self.order)

    def removed_by(self, pattern_id: torch.Tensor) -> torch.Tensor:
        """Removed positions in the memory format of the weight."""
        removed = torch.empty_like(self.weight, dtype=torch.bool)
        kernels = removed_positions(pattern_id, self.masks())
        return removed.copy_(self.plan.view.weight(kernels, removed))

    def choose(self, pattern_id: torch.Tensor) -> None:
        """Make ``pattern_id`` the current choice and zero what it removes."""
        self.pattern_id = pattern_id
        self.removed = self.removed_by(pattern_id)
        self.mask_weight()

    def mask_weight(self) -> None:
        """Zero what the current choice removes."""
        if self.removed is not None:
            with torch.no_grad():
                self.weight.masked_fill_(self.removed, 0)

    def assignment(self) -> LayerAssignment:
        """Current choice, or the projection of the weights when nothing is chosen yet."""
        ids = self.pattern_id if self.pattern_id is not None else self.project(self.weight)
        plan = self.plan
        return LayerAssignment(ids, plan.pattern_set, plan.group, plan.connectivity, plan.view)


Sync = Callable[[torch.Tensor], torch.Tensor]


class Engine:
    """Base of the engines, and the whole of the one-shot method: nothing happens before the freeze.

    Parameters
    ----------
    layers : list of PrunedLayer
    method : Method
    sync : callable
        Makes a choice made on this process the one of rank 0.
    """

    def __init__(self, layers: list[PrunedLayer], method: Method, sync: Sync) -> None:
        self.layers = layers
        self.method = method
        self.sync = sync
        self.updates = 0

    def start(self) -> None:
        """Called once, before the first optimizer step."""

    def _settle_sharing(self) -> None:
        """Let the filters that are alike now share for the rest of the pruning."""
        for layer in self.layers:
            order = filter_order(layer.weight, layer.plan)
            if order is not None:
                layer.order = self.sync(order.to(layer.weight.device))

    def add_penalty(self, layers: Iterable[PrunedLayer], scale: float) -> None:
        """Add the gradient of the method's penalty, times ``scale``, to the weights' gradients."""

    def update(self) -> dict[str, Any]:
        """One update of the method; figures for the history."""
        self.updates += 1
        return {}

    def tensors(self) -> dict[str, Tensors]:
        """State to save: name of the copy to tensors by layer."""
        return {}

    def restore(self, tensors: dict[str, Tensors]) -> None:
        """Take over what :meth:`tensors` gave."""

    def shrink_libraries(self, progress: float) -> None:
        """Advance phased libraries to the phase of ``progress`` (0 to 1)."""
        families: dict[tuple[Any, ...], list[PrunedLayer]] = {}
        for layer in self.layers:
            if layer.plan.spec is not None and layer.plan.spec.source == "phased":
                key = (layer.plan.spec, layer.plan.shape[2:])
                families.setdefault(key, []).append(layer)
        for (spec, _), members in families.items():
            sizes = spec.sizes
            wanted = sizes[min(len(sizes) - 1, int(progress * len(sizes)))]
            library = members[0].plan.pattern_set
            for size in (s for s in sizes if wanted <= s < len(library)):
                ids = [self.sync(m.project(m.weight)) for m in members]
                library = shrink_library(library, ids, size)
                for member in members:
                    member.plan = replace(member.plan, pattern_set=library)


class GradualEngine(Engine):
    """Masks recomputed at each update, with fewer kernels each time."""

    method: Gradual

    def start(self) -> None:
        self._settle_sharing()
        self._choose()

    def _kept(self, layer: PrunedLayer) -> int:
        left = max(0.0, 1 - self.updates / self.method.steps) ** self.method.exponent
        together = layer.plan.group * layer.plan.block
        target = layer.plan.kept // together
        return together * (target + math.ceil((layer.units - target) * left))

    def kept_kernels(self) -> int:
        """Kernels of all layers that survive at this point of the ramp."""
        return sum(self._kept(layer) for layer in self.layers)

    def _choose(self) -> None:
        for layer in self.layers:
            layer.choose(self.sync(layer.project(layer.weight, self._kept(layer))))

    def update(self) -> dict[str, Any]:
        self.updates += 1
        self.shrink_libraries(min(1.0, self.updates / self.method.steps))
        self._choose()
        total = sum(layer.plan.shape[0] * layer.plan.shape[1] for layer in self.layers)
        return {"kernels_kept": self.kept_kernels() / total}


class AdmmEngine(Engine):
    """Z and U (joint), or Z, U, Y and V (separate), per layer."""

    method: Admm

    def __init__(self, layers: list[PrunedLayer], method: Method, sync: Sync) -> None:
        super().__init__(layers, method, sync)
        self.z: Tensors = {}
        self.u: Tensors = {}
        self.y: Tensors = {}
        self.v: Tensors = {}

    def _project_z(self, layer: PrunedLayer, target: torch.Tensor) -> torch.Tensor:
        """``target`` on the pattern set (separate) or on both constraints, in place."""
        if self.method.separate:
            kernels = layer.plan.view.kernels(target)
            ids = project_pattern(kernels, layer.masks(), layer.plan.group, layer.order)
        else:
            ids = layer.project(target)
        return target.masked_fill_(layer.removed_by(self.sync(ids)), 0)

    def _project_y(self, layer: PrunedLayer, target: torch.Tensor) -> torch.Tensor:
        plan = layer.plan
        kernels = plan.view.kernels(target)
        alive = project_connectivity(
            kernels, plan.kept, plan.group, plan.balance, layer.order, plan.block
        )
        alive = self.sync(alive.to(torch.uint8)).bool()
        dead = (~alive)[:, :, None, None].expand(kernels.shape)
        return target.masked_fill_(plan.view.weight(dead, target), 0)

    def start(self) -> None:
        self._settle_sharing()
        for layer in self.layers:
            weight = layer.weight.detach()
            self.u[layer.name] = torch.zeros_like(weight)
            self.z[layer.name] = self._project_z(layer, weight.clone())
            if self.method.separate:
                self.v[layer.name] = torch.zeros_like(weight)
                self.y[layer.name] = self._project_y(layer, weight.clone())

    def add_penalty(self, layers: Iterable[PrunedLayer], scale: float) -> None:
        rho = self.method.rho_at(self.updates) * scale
        for layer in layers:
            grad = layer.weight.grad
            if grad is None:
                continue
            weight = layer.weight.detach()
            for target, dual in ((self.z, self.u), (self.y, self.v)):
                if layer.name in target:
                    grad.add_(weight, alpha=rho)
                    grad.sub_(target[layer.name].to(grad.dtype), alpha=rho)
                    grad.add_(dual[layer.name].to(grad.dtype), alpha=rho)

    def update(self) -> dict[str, Any]:
        rho = self.method.rho_at(self.updates)
        self.updates += 1
        self.shrink_libraries(min(1.0, self.updates / self.method.steps))
        following = self.method.rho_at(self.updates)
        distance = {"z": 0.0, "y": 0.0}
        norm = 0.0
        for layer in self.layers:
            weight = layer.weight.detach()
            norm += float(weight.double().square().sum())
            pairs = [("z", self.z, self.u, self._project_z)]
            if self.method.separate:
                pairs.append(("y", self.y, self.v, self._project_y))
            for key, target, dual, project in pairs:
                target[layer.name] = project(layer, weight + dual[layer.name])
                gap = weight - target[layer.name]
                distance[key] += float(gap.double().square().sum())
                # The scaled dual is the multiplier over rho: it shrinks when rho grows.
                dual[layer.name].add_(gap, alpha=self.method.dual_step).mul_(rho / following)
        record = {"rho": rho, "residual": math.sqrt(distance["z"] / norm) if norm else 0.0}
        if self.method.separate:
            record["residual_connectivity"] = math.sqrt(distance["y"] / norm) if norm else 0.0
        return record

    def tensors(self) -> dict[str, Tensors]:
        copies = {"z": self.z, "u": self.u}
        return copies | {"y": self.y, "v": self.v} if self.method.separate else copies

    def restore(self, tensors: dict[str, Tensors]) -> None:
        for key, copies in self.tensors().items():
            copies.clear()
            for layer in self.layers:
                copy = torch.empty_like(layer.weight.detach())
                copies[layer.name] = copy.copy_(tensors[key][layer.name])


def make_engine(layers: list[PrunedLayer], method: Method, sync: Sync) -> Engine:
    """Engine of a method."""
    kinds = {"oneshot": Engine, "gradual": GradualEngine, "admm": AdmmEngine}
    return kinds[method.name](layers, method, sync)
