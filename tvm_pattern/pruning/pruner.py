"""Lifecycle of pruning inside a user's own training loop."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.utils.hooks import RemovableHandle

from topi_kernels.pattern import PatternSet

from . import batchnorm
from .assignment import Assignment, SparsityError, apply_assignment, verify_assignment
from .config import ConfigError, PatternConfig
from .layers import convolutions, resolve_layers, unwrap
from .methods import AdmmEngine, GradualEngine, Method, PrunedLayer, make_engine, read_method
from .report import PruneReport, build_report

STATE_VERSION = 1
_STATE_KEYS = {
    "version", "config", "method", "phase", "started", "updates", "libraries", "pattern_id",
    "tensors", "history", "energy_kept",
}  # fmt: skip


def _distributed() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def _from_rank_zero(choice: torch.Tensor) -> torch.Tensor:
    """The choice of rank 0: rounding may differ between processes, masks may not."""
    if _distributed():
        choice = choice.contiguous()
        dist.broadcast(choice, src=0)
    return choice


class Pruner:
    """Prune a model by patterns and connectivity while a user's own loop trains it.

    >>> pruner = Pruner(model, PatternConfig(connectivity=3.6), method="gradual")
    >>> pruner.attach(optimizer)
    >>> for epoch in range(30):
    ...     train_one_epoch(model, optimizer)      # optimizer.step() as always
    ...     pruner.step()
    >>> pruner.freeze()
    >>> pruner.recalibrate_bn(loader, batches=50)
    >>> for epoch in range(20):                    # masked retraining
    ...     train_one_epoch(model, optimizer)
    >>> report = pruner.finalize()
    >>> save_pruned("model.safetensors", model, report.assignment)

    Lifecycle: ``training`` (the method works through optimizer hooks and :meth:`step`), ``frozen``
    (fixed masks; pruned weights stay exactly zero whatever the optimizer does), ``finished``.
    Mixed precision, gradient accumulation, torch.compile and DistributedDataParallel need nothing
    special: penalties are added once per optimizer step, in true scale, and rank 0 chooses masks.
    With several processes every one of them makes the same calls.

    Parameters
    ----------
    model : nn.Module
        Wrapped (DDP, torch.compile) or not; the weights of its convolutions are pruned in place.
    config : PatternConfig, optional
        What to prune.
    method : str, dict or settings
        ``"gradual"`` (default), ``"admm"``, ``"oneshot"``, or their settings.

    Attributes
    ----------
    phase : str
    history : list of dict
        What each :meth:`step` returned.
    generation : int
        Rises when the masks become final; an average of weights restarts then.

    Raises
    ------
    ConfigError
        If the configuration does not fit the model.
    """

    def __init__(
        self,
        model: nn.Module,
        config: PatternConfig | None = None,
        method: Method | str | dict[str, Any] = "gradual",
    ) -> None:
        self.model = unwrap(model)
        self.config = config or PatternConfig()
        self.method = read_method(method)
        plans, self.skipped = resolve_layers(self.model, self.config)
        libraries = [plan.pattern_set for plan in plans]
        if _distributed():
            dist.broadcast_object_list(libraries, src=0)
        convs = convolutions(self.model)
        self.layers = [
            PrunedLayer(replace(plan, pattern_set=library), convs[plan.name].weight)
            for plan, library in zip(plans, libraries, strict=True)
        ]
        self.engine = make_engine(self.layers, self.method, _from_rank_zero)
        self.phase = "training"
        self.history: list[dict[str, Any]] = []
        self.generation = 0
        self._started = False
        self._energy_kept: dict[str, float] = {}
        self._optimizers: list[torch.optim.Optimizer] = []
        self._handles: list[RemovableHandle] = []

    # Hooks --------------------------------------------------------------------------------------

    def attach(self, *optimizers: torch.optim.Optimizer) -> Pruner:
        """Hook into the optimizers of the pruned weights; again after an optimizer is rebuilt.

        Raises
        ------
        ValueError
            If a trainable pruned weight is in none of them: its pruned positions would come back
            or its penalty be lost.
        """
        held = {id(p) for o in optimizers for group in o.param_groups for p in group["params"]}
        missing = [
            s.name for s in self.layers if s.weight.requires_grad and id(s.weight) not in held
        ]
        if missing:
            raise ValueError(
                f"the optimizers do not hold the weights of {', '.join(missing[:8])}; build them"
                " from the parameters of the pruned model and attach all of them in one call"
            )
        self.detach()
        for optimizer in optimizers:
            mine = {id(p) for group in optimizer.param_groups for p in group["params"]}
            layers = [s for s in self.layers if id(s.weight) in mine]
            self._handles += [
                optimizer.register_step_pre_hook(self._make_pre_hook(layers)),
                optimizer.register_step_post_hook(self._make_post_hook(layers)),
            ]
        self._optimizers = list(optimizers)
        if self.phase == "frozen":
            self._clear_moments()
        return self

    def detach(self) -> None:
        """Remove the hooks; pruned weights are no longer held at zero."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self._optimizers = []

    def _make_pre_hook(self, layers: list[PrunedLayer]) -> Callable[..., None]:
        @torch.no_grad()
        def before_step(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
            self._start()
            if self.phase == "training":
                closure = args[1] if len(args) > 1 else kwargs.get("closure")
                if closure is not None and isinstance(self.engine, AdmmEngine):
                    raise ValueError(
                        "ADMM adds its penalty to finished gradients: got optimizer.step(closure);"
                        " call backward() first and then step() without a closure"
                    )
                # Fused optimizers unscale inside their step, so they are shown scaled gradients.
                scale = getattr(optimizer, "grad_scale", None)
                self.engine.add_penalty(layers, 1.0 if scale is None else float(scale))
            for layer in layers:
                if layer.removed is not None and layer.weight.grad is not None:
                    layer.weight.grad.masked_fill_(layer.removed, 0)

        return before_step

    @staticmethod
    def _make_post_hook(layers: list[PrunedLayer]) -> Callable[..., None]:
        def after_step(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
            for layer in layers:
                layer.mask_weight()  # momentum and weight decay revive weights without a gradient

        return after_step

    @torch.no_grad()
    def _start(self) -> None:
        # At the first optimizer step and not earlier: the state may still be loaded, and DDP makes
        # the weights of all processes equal only when it wraps the model.
        if not self._started:
            self._started = True
            self.engine.start()

    def _clear_moments(self) -> None:
        """Zero the optimizer's moments of pruned weights."""
        for layer in self.layers:
            if layer.removed is None:
                continue
            for optimizer in self._optimizers:
                for value in optimizer.state.get(layer.weight, {}).values():
                    if torch.is_tensor(value) and value.shape == layer.weight.shape:
                        value.masked_fill_(layer.removed, 0)

    # Phases -------------------------------------------------------------------------------------

    @property
    def updates(self) -> int:
        """Calls of :meth:`step` so far in the training phase."""
        return self.engine.updates

    @torch.no_grad()
    def step(self) -> dict[str, Any]:
        """One update of the method: call it once per epoch, or at another steady interval.

        Returns
        -------
        dict
            ``update`` and ``phase``; for ADMM ``rho`` and ``residual`` (``|W - Z| / |W|``), for
            gradual ``kernels_kept``. After the freeze nothing happens.
        """
        if self.phase != "training":
            return {"update": self.updates, "phase": self.phase}
        self._start()
        figures = self.engine.update()
        if isinstance(self.engine, GradualEngine):
            self._clear_moments()
        record = {"update": self.updates, "phase": self.phase, **figures}
        self.history.append(record)
        return record

    @torch.no_grad()
    def freeze(self) -> None:
        """Prune hard to the asked sparsity and fix the masks; the optimizer's moments follow.

        Raises
        ------
        RuntimeError
            If already frozen, or a weight is not finite.
        """
        if self.phase != "training":
            raise RuntimeError(f"freeze() belongs to the training phase, got phase {self.phase!r}")
        self._start()
        bad = [s.name for s in self.layers if not bool(torch.isfinite(s.weight).all())]
        if bad:
            raise RuntimeError(
                f"cannot freeze: weights of {', '.join(bad[:8])} are not finite; restore the last"
                " good checkpoint"
            )
        self.engine.shrink_libraries(1.0)
        for layer in self.layers:
            before = float(layer.weight.double().square().sum())
            layer.choose(_from_rank_zero(layer.project(layer.weight)))
            after = float(layer.weight.double().square().sum())
            self._energy_kept[layer.name] = after / before if before > 0 else 1.0
        self.phase = "frozen"
        self.generation += 1
        updates = self.engine.updates
        self.engine = make_engine(self.layers, read_method("oneshot"), _from_rank_zero)
        self.engine.updates = updates
        self._clear_moments()

    def recalibrate_bn(
        self,
        data: Iterable[Any],
        batches: int | None = None,
        forward: Callable[[nn.Module, Any], Any] | None = None,
    ) -> int:
        """Batch norm statistics from ``data``; see :func:`.batchnorm.recalibrate_bn`."""
        return batchnorm.recalibrate_bn(self.model, data, batches, forward)

    def finalize(self) -> PruneReport:
        """Check that the achieved sparsity is the asked one, detach and report.

        Raises
        ------
        SparsityError
            If not frozen, or any layer has other counts, revived weights or non-finite ones.
        """
        if self.phase != "frozen":
            raise SparsityError(
                f"finalize() needs the frozen phase, got {self.phase!r}; call freeze() and retrain"
            )
        self.verify()
        report = self.report()
        self.detach()
        self.phase = "finished"
        return report

    def verify(self) -> None:
        """Raise :class:`SparsityError` unless the weights are pruned exactly as asked."""
        verify_assignment(self.model, self.assignment, [s.plan for s in self.layers])

    # Results ------------------------------------------------------------------------------------

    @property
    def assignment(self) -> Assignment:
        """Patterns per layer: the current masks or, before any exist, what a freeze would give."""
        return {layer.name: layer.assignment() for layer in self.layers}

    def projected(self) -> Assignment:
        """What :meth:`freeze` would choose now; nothing is changed."""
        return {
            s.name: replace(s.assignment(), pattern_id=s.project(s.weight)) for s in self.layers
        }

    def mask(self, model: nn.Module) -> None:
        """Zero the pruned weights of ``model``: a copy or an average of the pruned model."""
        if any(layer.removed is not None for layer in self.layers):
            apply_assignment(model, self.assignment)

    def report(self) -> PruneReport:
        """Per-layer report of the current state."""
        return build_report(
            self.model,
            self.assignment,
            self.skipped,
            energy_kept=self._energy_kept,
            method=self.method.name,
            history=self.history,
        )

    # Save and resume ----------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to resume, readable with ``torch.load(..., weights_only=True)``."""
        chosen = {s.name: s.pattern_id for s in self.layers if s.pattern_id is not None}
        return {
            "version": STATE_VERSION,
            "config": json.dumps(self.config.to_dict(), sort_keys=True),
            "method": self.method.model_dump_json(),
            "phase": self.phase,
            "started": self._started,
            "updates": self.updates,
            "libraries": {s.name: s.plan.pattern_set.to_json() for s in self.layers},
            "pattern_id": {name: ids.clone() for name, ids in chosen.items()},
            "tensors": {
                key: {name: t.clone() for name, t in copies.items()}
                for key, copies in self.engine.tensors().items()
            },
            "history": json.dumps(self.history),
            "energy_kept": dict(self._energy_kept),
        }

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume from :meth:`state_dict`; load the model and the optimizer as well.

        Raises
        ------
        ConfigError
            If the state is of another version, configuration, method or model, or damaged.
        """
        self._check_state(state)
        self.phase = state["phase"]
        self._started = state["started"]
        self.history = json.loads(state["history"])
        self._energy_kept = dict(state["energy_kept"])
        method = self.method if self.phase == "training" else read_method("oneshot")
        self.engine = make_engine(self.layers, method, _from_rank_zero)
        self.engine.updates = state["updates"]
        for layer in self.layers:
            library = PatternSet.from_json(state["libraries"][layer.name])
            layer.plan = replace(layer.plan, pattern_set=library)
            layer.pattern_id = layer.removed = None
            if layer.name in state["pattern_id"]:
                ids = state["pattern_id"][layer.name].to(layer.weight.device, copy=True)
                layer.pattern_id = ids
                layer.removed = layer.removed_by(ids)
        if state["started"]:
            self.engine.restore(state["tensors"])
        self.generation = int(self.phase != "training")

    def _check_state(self, state: dict[str, Any]) -> None:
        def fail(what: str) -> None:
            raise ConfigError(f"not a usable pruner state: {what}")

        if not isinstance(state, dict) or set(state) != _STATE_KEYS:
            got = sorted(state) if isinstance(state, dict) else type(state).__name__
            fail(f"expected the keys {sorted(_STATE_KEYS)}, got {got}")
        if state["version"] != STATE_VERSION:
            fail(f"version {state['version']!r}, this release reads {STATE_VERSION}")
        if state["phase"] not in ("training", "frozen", "finished"):
            fail(f"unknown phase {state['phase']!r}")
        if state["config"] != json.dumps(self.config.to_dict(), sort_keys=True):
            fail(f"it was made with the configuration {state['config']}; give the same one")
        if state["method"] != self.method.model_dump_json():
            fail(f"it was made with the method {state['method']}; give the same one")
        names = {layer.name: layer.plan.shape for layer in self.layers}
        if set(state["libraries"]) != set(names):
            fail(f"its layers are {sorted(state['libraries'])}, the model's {sorted(names)}")
        for name, ids in state["pattern_id"].items():
            if ids.dtype != torch.uint8 or tuple(ids.shape) != names[name][:2]:
                fail(
                    f"pattern_id of {name} is {ids.dtype} {tuple(ids.shape)},"
                    f" expected torch.uint8 {names[name][:2]}"
                )
        for key, copies in state["tensors"].items():
            for name, tensor in copies.items():
                if tuple(tensor.shape) != names.get(name):
                    fail(f"{key} of {name} is {tuple(tensor.shape)}, expected {names.get(name)}")
