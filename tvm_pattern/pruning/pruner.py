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
from .carried import carry_assignment
from .config import ConfigError, PatternConfig
from .hooks import OptimizerHooks, keep_masked
from .layers import prepare_layers
from .methods import GradualEngine, Method, OneShot, PrunedLayer, make_engine, read_method
from .modules import layers_of, refuse_unusable_model, unwrap
from .report import PruneReport, build_report

STATE_VERSION = 1
_STATE_KEYS = {
    "version", "config", "method", "phase", "started", "updates", "libraries", "pattern_id",
    "orders", "tensors", "history", "energy_kept",
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
    example_inputs : tensor or tuple of them, optional
        The model is run on them, and each pruned layer must convolve with its parameter itself.

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
        example_inputs: Any = None,
    ) -> None:
        refuse_unusable_model(model)
        self.model = unwrap(model)
        self.config = config or PatternConfig()
        self.method = read_method(method)
        plans, self.skipped = prepare_layers(self.model, self.config, example_inputs)
        libraries = [plan.pattern_set for plan in plans]
        if _distributed():
            dist.broadcast_object_list(libraries, src=0)
        modules = layers_of(self.model)
        self.layers = [
            PrunedLayer(replace(plan, pattern_set=library), modules[plan.name].weight)
            for plan, library in zip(plans, libraries, strict=True)
        ]
        self.engine = make_engine(self.layers, self.method, _from_rank_zero)
        self.phase = "training"
        self.history: list[dict[str, Any]] = []
        self.generation = 0
        self._started = False
        self._energy_kept: dict[str, float] = {}
        self._hooks: OptimizerHooks | None = None
        self._handles: list[RemovableHandle] = []

    # Hooks --------------------------------------------------------------------------------------

    def attach(self, *optimizers: torch.optim.Optimizer) -> Pruner:
        """Hook into the optimizers of the pruned weights; again after an optimizer is rebuilt.

        Wrappers with an attribute ``optimizer`` (Accelerate's, Lookahead) are looked through. Until
        :meth:`detach` the pruned convolutions also zero what is pruned before each forward, since
        a wrapper may write weights after its optimizer's step; parameters that are added to an
        optimizer later are held like the others.

        Raises
        ------
        ValueError
            If a trainable pruned weight is in none of them: its pruned positions would come back
            or its penalty be lost.
        """
        hooks = OptimizerHooks(self, optimizers)
        held = hooks.held()
        missing = [
            s.name for s in self.layers if s.weight.requires_grad and id(s.weight) not in held
        ]
        if missing:
            raise ValueError(
                f"the optimizers do not hold the weights of {', '.join(missing[:8])}; build them"
                " from the parameters of the pruned model (after baking, and not sharded by FSDP)"
                " and attach all of them in one call"
            )
        self.detach()
        self._hooks = hooks
        self._handles = [*hooks.register(), *keep_masked(self.model, self.layers)]
        if self.phase == "frozen":
            self._clear_moments()
        return self

    def detach(self) -> None:
        """Remove the hooks; pruned weights are no longer held at zero."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self._hooks = None

    @torch.no_grad()
    def start(self) -> None:
        """Begin the method; called before the first optimizer step or update."""
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
            for optimizer in self._hooks.optimizers if self._hooks is not None else ():
                for value in optimizer.state.get(layer.weight, {}).values():
                    if torch.is_tensor(value) and value.shape == layer.weight.shape:
                        value.masked_fill_(layer.removed, 0)

    def _mask_weights(self) -> None:
        """While attached: zero what a wrapper of an optimizer may have written since its step."""
        if self._hooks is not None:
            for layer in self.layers:
                layer.mask_weight()

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
        self.start()
        figures = self.engine.update()
        if isinstance(self.engine, GradualEngine):
            self._clear_moments()
        record = {"update": self.updates, "phase": self.phase, **figures}
        self.history.append(record)
        return record

    @torch.no_grad()
    def freeze(self, *, early: bool = False) -> None:
        """Prune hard to the asked sparsity and fix the masks; the optimizer's moments follow.

        Parameters
        ----------
        early : bool
            Freeze although the method has not had its updates: what is left to prune goes at once.

        Raises
        ------
        RuntimeError
            If already frozen, before the method's last update without ``early``, or a weight is
            not finite.
        """
        if self.phase != "training":
            raise RuntimeError(f"freeze() belongs to the training phase, got phase {self.phase!r}")
        if not early:
            self._refuse_early_freeze()
        self.start()
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
        carry_assignment(self.model, self.assignment)
        self.generation += 1
        updates = self.engine.updates
        self.engine = make_engine(self.layers, read_method("oneshot"), _from_rank_zero)
        self.engine.updates = updates
        self._clear_moments()

    def _refuse_early_freeze(self) -> None:
        steps = 0 if isinstance(self.method, OneShot) else self.method.steps
        if self.updates >= steps:
            return
        kept = ""
        if isinstance(self.engine, GradualEngine):
            target = sum(s.plan.kept for s in self.layers)
            kept = f" from {self.engine.kept_kernels()} to {target} kernels"
        raise RuntimeError(
            f"freeze() after {self.updates} of the {steps} updates of method {self.method.name!r}"
            f" would prune the rest{kept} at once, which costs accuracy; call step()"
            f" {steps - self.updates} times more while training, set fewer steps in the method, or"
            " say freeze(early=True)"
        )

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
        self._mask_weights()
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
        self._mask_weights()
        return build_report(
            self.model,
            self.assignment,
            self.skipped,
            energy_kept=self._energy_kept,
            method=self.method.name,
            history=self.history,
            plans=[s.plan for s in self.layers],
        )

    # Save and resume ----------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to resume, readable with ``torch.load(..., weights_only=True)``."""
        self._mask_weights()
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
            "orders": {s.name: s.order.clone() for s in self.layers if s.order is not None},
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
            layer.order = state.get("orders", {}).get(layer.name)
            if layer.name in state["pattern_id"]:
                ids = state["pattern_id"][layer.name].to(layer.weight.device, copy=True)
                layer.pattern_id = ids
                layer.removed = layer.removed_by(ids)
        if state["started"]:
            self.engine.restore(state["tensors"])
        if self.phase != "training":
            carry_assignment(self.model, self.assignment)
        self.generation = int(self.phase != "training")

    def _check_state(self, state: dict[str, Any]) -> None:
        def fail(what: str) -> None:
            raise ConfigError(f"not a usable pruner state: {what}")

        # States of before filters alike could share have no orders.
        if not isinstance(state, dict) or {*state, "orders"} != _STATE_KEYS:
            got = sorted(state) if isinstance(state, dict) else type(state).__name__
            fail(f"expected the keys {sorted(_STATE_KEYS)}, got {got}")
        if state["version"] != STATE_VERSION:
            fail(f"version {state['version']!r}, this release reads {STATE_VERSION}")
        if state["phase"] not in ("training", "frozen", "finished"):
            fail(f"unknown phase {state['phase']!r}")
        if not self._made_with_this_config(state):
            fail(f"it was made with the configuration {state['config']}; give the same one")
        if state["method"] != self.method.model_dump_json():
            fail(f"it was made with the method {state['method']}; give the same one")
        names = {layer.name: layer.plan.shape for layer in self.layers}
        weights = {layer.name: tuple(layer.weight.shape) for layer in self.layers}
        if set(state["libraries"]) != set(names):
            fail(f"its layers are {sorted(state['libraries'])}, the model's {sorted(names)}")
        for name, ids in state["pattern_id"].items():
            if ids.dtype != torch.uint8 or tuple(ids.shape) != names[name][:2]:
                fail(
                    f"pattern_id of {name} is {ids.dtype} {tuple(ids.shape)},"
                    f" expected torch.uint8 {names[name][:2]}"
                )
        for name, order in state.get("orders", {}).items():
            filters = names.get(name, (0,))[0]
            if not torch.equal(order.sort().values.cpu(), torch.arange(filters)):
                fail(f"orders of {name} is no permutation of its {filters} filters")
        for key, copies in state["tensors"].items():
            for name, tensor in copies.items():
                if tuple(tensor.shape) != weights.get(name):
                    fail(f"{key} of {name} is {tuple(tensor.shape)}, expected {weights.get(name)}")

    def _made_with_this_config(self, state: dict[str, Any]) -> bool:
        own = self.config.to_dict()
        if "orders" not in state and _shares_nothing_or_neighbours(self.config):
            del own["sharing"]
        return bool(state["config"] == json.dumps(own, sort_keys=True))


def _shares_nothing_or_neighbours(config: PatternConfig) -> bool:
    """Whether a state of before filters alike could share was made by the same settings."""
    groups = (config.group, *(rule.group or 1 for rule in config.rules))
    return config.sharing == "neighbours" or max(groups) == 1
