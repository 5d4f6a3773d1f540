"""Hooks that keep pruned weights at zero: around optimizer steps and before each forward."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Protocol

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from .methods import Engine, PrunedLayer
from .modules import layers_of


class Pruning(Protocol):
    """What the hooks need of a pruner."""

    layers: list[PrunedLayer]
    engine: Engine
    phase: str

    def start(self) -> None:
        """Begin the method."""


def unwrap_optimizer(optimizer: Any) -> list[torch.optim.Optimizer]:
    """The optimizer and those inside it, outermost first.

    Raises
    ------
    TypeError
        If there is no ``torch.optim.Optimizer`` at the end.
    """
    chain: list[Any] = []
    inner = optimizer
    while inner is not None and all(inner is not seen for seen in chain):
        chain.append(inner)
        inner = getattr(inner, "optimizer", None)
    if not _has_hooks(chain[-1]):
        raise TypeError(
            f"cannot attach to a {type(optimizer).__name__}: expected a torch.optim.Optimizer, or a"
            " wrapper with one as its attribute 'optimizer'"
        )
    return chain


def _has_hooks(optimizer: Any) -> bool:
    """Whether it was set up by ``Optimizer.__init__``; wrappers often leave that out."""
    return isinstance(optimizer, torch.optim.Optimizer) and hasattr(
        optimizer, "_optimizer_step_post_hooks"
    )


class OptimizerHooks:
    """Penalties and masked gradients before, masked weights after each step.

    Which optimizer holds a weight is looked up at each step: parameters may be added later.

    Parameters
    ----------
    pruner : Pruning
    optimizers : iterable of torch.optim.Optimizer
        Wrapped or not.
    """

    def __init__(self, pruner: Pruning, optimizers: Iterable[Any]) -> None:
        self.pruner = pruner
        self._chains = [unwrap_optimizer(optimizer) for optimizer in optimizers]

    @property
    def optimizers(self) -> list[torch.optim.Optimizer]:
        """The innermost ones, which hold the state."""
        return [chain[-1] for chain in self._chains]

    def held(self) -> set[int]:
        """Identities of all parameters that the optimizers hold now."""
        return set().union(*map(_parameters, self.optimizers))

    def register(self) -> list[RemovableHandle]:
        """Start to work; the handles stop it."""
        handles = []
        for chain in self._chains:
            handles.append(chain[-1].register_step_pre_hook(self._before))
            # A wrapper that writes weights itself is followed as well, where it can be.
            for optimizer in filter(_has_hooks, chain):
                handles.append(optimizer.register_step_post_hook(self._after))
        return handles

    def _before(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> Any:
        closure = args[1] if len(args) > 1 else kwargs.get("closure")
        if closure is None:
            self._prepare_gradients(optimizer)
            return None
        # The closure computes the gradients, so they are completed inside it.
        wrapped = self._completing(closure, optimizer)
        if len(args) > 1:
            return (args[0], wrapped, *args[2:]), kwargs
        return args, {**kwargs, "closure": wrapped}

    def _completing(
        self, closure: Callable[[], Any], optimizer: torch.optim.Optimizer
    ) -> Callable[[], Any]:
        def complete() -> Any:
            loss = closure()
            self._prepare_gradients(optimizer)
            return loss

        return complete

    @torch.no_grad()
    def _prepare_gradients(self, optimizer: torch.optim.Optimizer) -> None:
        self.pruner.start()
        mine = _parameters(optimizer)
        layers = [layer for layer in self.pruner.layers if id(layer.weight) in mine]
        if self.pruner.phase == "training":
            # Fused optimizers unscale inside their step, so they are shown scaled gradients.
            scale = getattr(optimizer, "grad_scale", None)
            self.pruner.engine.add_penalty(layers, 1.0 if scale is None else float(scale))
        for layer in layers:
            if layer.removed is not None and layer.weight.grad is not None:
                layer.weight.grad.masked_fill_(layer.removed, 0)

    def _after(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        for layer in self.pruner.layers:
            layer.mask_weight()  # momentum and weight decay revive weights without a gradient


def _parameters(optimizer: torch.optim.Optimizer) -> set[int]:
    return {id(p) for group in optimizer.param_groups for p in group["params"]}


class _KeepMasked:
    """Zeroes a layer's pruned weights before its forward; copies of the module as well.

    Whoever writes weights between two steps (Lookahead, swapped averages) revives pruned ones.
    """

    def __init__(self, layer: PrunedLayer) -> None:
        self.layer = layer

    def __call__(self, module: nn.Module, args: Any) -> None:
        removed = self.layer.removed
        weight = module._parameters.get("weight")
        if removed is None or weight is None or torch.compiler.is_compiling():
            return
        # Not through autograd, nor its version counter: zeros stay zeros for a saved weight.
        weight.data.masked_fill_(removed.to(weight.device), 0)

    def __deepcopy__(self, memo: Any) -> _KeepMasked:
        return self

    def __reduce__(self) -> Any:
        return _no_hook, ()


def _no_hook() -> Callable[..., None]:
    """Stands for the hook in a pickled model: there is no pruner where it is opened."""
    return _nothing


def _nothing(module: nn.Module, args: Any) -> None:
    return None


def keep_masked(model: nn.Module, layers: Iterable[PrunedLayer]) -> list[RemovableHandle]:
    """Hold pruned weights at zero in every forward of these layers, tied ones included."""
    modules = layers_of(model).values()
    return [
        module.register_forward_pre_hook(_KeepMasked(layer))
        for layer in layers
        for module in modules
        if module._parameters.get("weight") is layer.weight
    ]
