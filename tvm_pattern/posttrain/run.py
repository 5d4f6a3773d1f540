"""Prune a trained network layer by layer so that its outputs change least on given inputs."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Console
from rich.progress import track
from torch import nn

from topi_kernels.pattern import PatternSet

from ..pruning.assignment import Assignment, LayerAssignment, apply_assignment
from ..pruning.batchnorm import batch_input, recalibrate_bn
from ..pruning.carried import forget_assignment
from ..pruning.config import Library, PatternConfig, Rule
from ..pruning.layers import LayerPlan, prepare_layers
from ..pruning.modules import convolutions, is_transposed, unwrap
from ..pruning.onnx_network import OnnxNetwork
from ..pruning.report import PruneReport, build_report
from ..pruning.sharing import Sharing
from .blocks import find_blocks
from .errors import PosttrainError
from .fit import Fit, fit_layer
from .reconstruct import BlockFit, Networks, tune_block, write_tensors
from .saved import Saved
from .statistics import (
    Forward,
    Moments,
    inputs_from_the_start,
    layer_moments,
    on_images,
    watch_first_norm,
)
from .walks import OtherOrder, Walks, fits, halts_itself


@dataclass(frozen=True)
class LayerFit:
    """Errors of one layer's outputs: mean squared change over the mean square.

    Attributes
    ----------
    name : str
    projected : float
        If the largest weights were kept as they are (:func:`tvm_pattern.pruning.oneshot`).
    fitted : float
        Of the weights that were chosen and solved for.
    patches : int
        Positions that the statistics come from.
    """

    name: str
    projected: float
    fitted: float
    patches: int


@dataclass(frozen=True)
class PosttrainReport:
    """What was pruned, and what it does to each layer's outputs."""

    pruning: PruneReport
    layers: tuple[LayerFit, ...]
    blocks: tuple[BlockFit, ...] = ()

    @property
    def assignment(self) -> Assignment:
        """Patterns of every pruned layer, as ``save_pruned`` takes them."""
        return self.pruning.assignment

    def to_dict(self) -> dict[str, Any]:
        """The report of pruning, with ``outputs`` and ``blocks``: the errors by layer and block."""
        return self.pruning.to_dict() | {
            "outputs": [asdict(layer) for layer in self.layers],
            "blocks": [asdict(block) for block in self.blocks],
        }


def posttrain(
    model: nn.Module,
    calibration: Iterable[Any],
    connectivity: float = 3.6,
    group: int = 1,
    library: Library | PatternSet = "fixed8",
    connectivity_1x1: float = 1.0,
    skip: Iterable[str] = (),
    *,
    sharing: Sharing = "similar",
    balance: Literal["layer", "filter"] = "layer",
    first: Literal["pattern", "skip", "prune"] = "pattern",
    frozen: Literal["skip", "prune"] = "prune",
    rules: Iterable[Rule] = (),
    block_1x1: int = 1,
    forward: Forward | None = None,
    steps: int = 8,
    damping: float = 0.01,
    positions: int = 1024,
    reconstruct: int = 0,
    checkpoint: str | Path | None = None,
    progress: bool | None = None,
) -> PosttrainReport:
    """Prune ``model`` in place by inputs alone: no labels, no loss, no training.

    Layer by layer, in the order in which they run: patterns are chosen by the error that they cause
    in the layer's outputs, kernels are dropped in ``steps`` steps, and after each the weights that
    are left are solved for by least squares against the dense network's outputs, given the inputs
    that the already pruned layers deliver. Biases follow; batch norms are recalibrated at the end.

    Parameters
    ----------
    model : nn.Module
        Trained; changed in place, or not at all where this ends by an error.
    calibration : iterable
        Batches as for :func:`tvm_pattern.pruning.recalibrate_bn`: inputs, or tuples that begin
        with them, on the model's device. It is read once per layer, so a list or a loader. Some
        hundred pictures, prepared as for training, are enough.
    connectivity, group, library, connectivity_1x1, block_1x1, skip, sharing, balance, first, \
frozen, rules
        As for :func:`tvm_pattern.pruning.oneshot`; frozen layers are pruned here by default.
    forward : callable, optional
        ``forward(model, batch)`` for models with other inputs.
    steps : int
        Steps in which kernels are dropped.
    damping : float
        Pull to the dense weights, against the mean square of the inputs.
    positions : int
        Output positions per picture that the statistics take at most.
    reconstruct : int
        Steps by which each block of layers is tuned by gradients afterwards, towards the dense
        block's own outputs (residual blocks, or pieces of three layers); 0 for none. Some hundred
        help at high rates. For networks in torch alone.
    checkpoint : str or pathlib.Path, optional
        File to write after each layer and block, and to go on from; removed at the end. The data
        must come in the same order again.
    progress : bool, optional
        Show a bar; by default where standard error is a terminal.

    Returns
    -------
    PosttrainReport

    Raises
    ------
    PosttrainError
        If ``calibration`` is empty or can be read only once, gives values that are not finite, does
        not reach a layer, or ``checkpoint`` belongs to another run.
    ConfigError
        As :func:`tvm_pattern.pruning.oneshot`.

    References
    ----------
    Frantar and Alistarh, "Optimal Brain Compression", NeurIPS 2022, section 4, for pruning by the
    layers' outputs; Niu et al., "PatDNN", ASPLOS 2020, section 4, for the constraints.
    """
    _check_settings(model, steps, positions, reconstruct, damping)
    config = PatternConfig.of(
        skip=skip, rules=rules, connectivity=connectivity, group=group, library=library,
        connectivity_1x1=connectivity_1x1, block_1x1=block_1x1, sharing=sharing, balance=balance,
        first=first,
        frozen=frozen,
    )  # fmt: skip
    _refuse_linear(config)
    batches = _checked(calibration)
    inner = unwrap(model)
    left = [name for name, layer in convolutions(inner).items() if is_transposed(layer)]
    rules_of_left = tuple(Rule(name=name, skip=True) for name in left)
    config = config.model_copy(update={"rules": (*config.rules, *rules_of_left)})
    plans, skipped = prepare_layers(inner, config)
    skipped = [replace(s, reason=_TRANSPOSED) if s.name in left else s for s in skipped]
    run = _Run(inner, batches, forward or _forward, steps, damping, positions, reconstruct)
    with run.all_or_nothing():
        saved = Saved(checkpoint, run.fingerprint(plans))
        console = Console(stderr=True)
        shown = console.is_terminal if progress is None else progress
        fits = run.fit_all(plans, saved, console, shown=shown)
        assignment = {p.name: _assignment(p, fits[p.name]) for p in plans}
        apply_assignment(inner, assignment)
        recalibrate_bn(inner, batches, forward=forward)
        blocks = run.tune_all(assignment, saved, console, shown=shown) if reconstruct else ()
    if checkpoint is not None:
        Path(checkpoint).unlink(missing_ok=True)
    report = build_report(inner, assignment, skipped, plans=plans)
    report.method = "posttrain"
    rows = (LayerFit(name, fit.projected, fit.fitted, fit.patches) for name, fit in fits.items())
    return PosttrainReport(report, tuple(rows), blocks)


_TRANSPOSED = "transposed: pruned by oneshot or a Pruner, not by pictures"


def _check_settings(
    model: nn.Module, steps: int, positions: int, reconstruct: int, damping: float
) -> None:
    if steps < 1 or positions < 1 or reconstruct < 0 or not 0 < damping < float("inf"):
        raise PosttrainError(
            f"got steps={steps}, positions={positions}, reconstruct={reconstruct},"
            f" damping={damping}; expected at least 1, 1 and 0, and a finite number above 0"
        )
    if reconstruct and isinstance(unwrap(model), OnnxNetwork):
        raise PosttrainError(
            f"got reconstruct={reconstruct} for an ONNX file; ONNX Runtime, which runs what lies"
            " between its convolutions, gives no gradients: leave reconstruct out, or give the"
            " torch network"
        )


def _refuse_linear(config: PatternConfig) -> None:
    for rule in config.rules:
        if rule.type == "linear" and not rule.skip:
            raise PosttrainError(
                f"got the rule {rule.describe()}; by pictures convolutions are pruned: leave it"
                " out here, and prune linear layers by oneshot or a Pruner"
            )


def _assignment(plan: LayerPlan, fit: Fit) -> LayerAssignment:
    return LayerAssignment(fit.pattern_id, plan.pattern_set, plan.group, plan.connectivity)


def _forward(model: nn.Module, batch: Any) -> Any:
    return model(batch_input(batch))


def _checked(calibration: Iterable[Any]) -> Iterable[Any]:
    if isinstance(calibration, torch.Tensor):
        return [calibration]
    if not isinstance(calibration, Iterable) or isinstance(calibration, str | bytes | Mapping):
        raise PosttrainError(
            f"got {type(calibration).__name__} as calibration data, expected a list of batches or a"
            " loader; a batch is a tensor, or a tuple or list that begins with one"
        )
    if isinstance(calibration, Iterator):
        raise PosttrainError(
            f"got a {type(calibration).__name__} that can be read once, expected a list of batches"
            " or a loader: every layer reads the data again. Give list(batches)"
        )
    return calibration


class _Run:
    """One run over a model: the dense copy, and the layers in the order in which they run."""

    def __init__(
        self,
        model: nn.Module,
        batches: Iterable[Any],
        forward: Forward,
        steps: int,
        damping: float,
        positions: int,
        reconstruct: int = 0,
    ) -> None:
        self.model, self.batches, self.forward = model, batches, forward
        self.steps, self.damping, self.positions = steps, damping, positions
        self.reconstruct = reconstruct
        self.dense = copy.deepcopy(model).eval()
        self._walks: Walks | None = None
        self._may_walk = True

    @contextmanager
    def all_or_nothing(self) -> Iterator[None]:
        """The model as it was, if the work on it ends by an exception."""
        try:
            yield
        except BaseException:
            self._end_walks()
            self.model.load_state_dict(self.dense.state_dict())
            forget_assignment(self.model)
            raise

    def fit_all(
        self, plans: list[LayerPlan], saved: Saved, console: Console, *, shown: bool
    ) -> dict[str, Fit]:
        """Fit every planned layer, in place; the fits are in the order in which layers run."""
        first = self._first()
        with _evaluating(self.model):
            calls = self._calls([plan.name for plan in plans], first)
            by_name = {plan.name: plan for plan in plans}
            for name in track(calls, "Fitting layers", console=console, disable=not shown):
                fit = saved.layers.get(name)
                if fit is None:
                    fit = self._fit(by_name[name], calls)
                    saved.add(name, fit)
                self._set(name, fit)
            self._end_walks()
        return {name: saved.layers[name] for name in calls}

    def tune_all(
        self, assignment: Assignment, saved: Saved, console: Console, *, shown: bool
    ) -> tuple[BlockFit, ...]:
        """Tune every block, in place."""
        first = self._first()
        networks = Networks(self.dense, self.model, self.batches, self.forward)
        found = []
        with _evaluating(self.model):
            blocks = find_blocks(self.model, assignment, lambda model: self.forward(model, first))
            for block in track(blocks, "Tuning blocks", console=console, disable=not shown):
                tuned = saved.blocks.get(block.name)
                if tuned is None:
                    tuned = tune_block(block, networks, assignment, self.reconstruct)
                    saved.add_block(tuned)
                else:
                    write_tensors(self.model, tuned.tensors)
                found.append(tuned.fit)
        return tuple(found)

    def _first(self) -> Any:
        first = next(iter(self.batches), None)
        if first is None:
            raise PosttrainError("the calibration data give no batch; expected at least one")
        return first

    def _calls(self, names: list[str], batch: Any) -> dict[str, int]:
        """How often each layer is called by a forward, in the order of the first calls."""
        calls: dict[str, int] = {}
        convs = convolutions(self.dense)

        def count(name: str) -> Any:
            def hook(*_: Any) -> None:
                calls[name] = calls.get(name, 0) + 1

            return hook

        handles = [convs[name].register_forward_pre_hook(count(name)) for name in names]
        handles += watch_first_norm(self.dense)
        try:
            with torch.no_grad():
                self.forward(self.dense, batch)
        except (RuntimeError, TypeError, ValueError, AttributeError) as error:
            value = batch_input(batch)
            if not isinstance(value, torch.Tensor):
                raise PosttrainError(
                    f"the network takes no {type(value).__name__} as a calibration batch; give"
                    " tensors, or forward=, a function of model and batch"
                ) from error
            shape = list(value.shape)
            raise PosttrainError(
                f"the network refuses a calibration batch of {shape}: {error}; give pictures of the"
                " size and the colours that it was trained on (--image-size)"
            ) from error
        finally:
            for handle in handles:
                handle.remove()
        never = [name for name in names if name not in calls]
        if never:
            raise PosttrainError(
                f"the calibration data do not reach {', '.join(never[:6])}: a forward does not call"
                " these layers; skip them, or give a forward= that does"
            )
        return calls

    def _fit(self, plan: LayerPlan, calls: dict[str, int]) -> Fit:
        convs = (convolutions(self.dense)[plan.name], convolutions(self.model)[plan.name])
        moments = self._moments(plan.name, convs, calls)
        if not all(bool(torch.isfinite(m).all()) for m in (moments.gram, moments.cross)):
            raise PosttrainError(
                f"{plan.name}: its inputs are not finite on the calibration data; look for NaN in"
                " the pictures or the weights"
            )
        return fit_layer(on_images(convs[0]), plan, moments, self.steps, self.damping)

    def _moments(
        self, name: str, convs: tuple[nn.Module, nn.Module], calls: dict[str, int]
    ) -> Moments:
        if self._walks is None and self._may_walk:
            self._begin_walks(name, calls)
        if self._walks is not None:
            try:
                return layer_moments(convs, self._walks.inputs(name), self.positions)
            except OtherOrder:
                self._end_walks()
                self._may_walk = False
        inputs = inputs_from_the_start(
            (self.dense, self.model), convs, calls[name], self.batches, self.forward
        )
        return layer_moments(convs, inputs, self.positions)

    def _begin_walks(self, name: str, calls: dict[str, int]) -> None:
        """Halt all forwards at this layer, if what they hold is little enough from here on."""
        order = list(calls)
        left = order[order.index(name) :]
        if any(calls[later] > 1 for later in left):
            return
        dense, pruned = convolutions(self.dense), convolutions(self.model)
        pairs = {n: (dense[n], pruned[n]) for n in left}
        first = next(iter(self.batches))
        probe = inputs_from_the_start(
            (self.dense, self.model), pairs[name], 1, [first], self.forward
        )
        [([value], _)] = probe
        is_plain = self.forward is _forward
        if fits(value, self.batches, in_threads=not halts_itself(self.model, is_plain=is_plain)):
            self._walks = Walks(
                (self.dense, self.model),
                pairs,
                self.batches,
                self.forward,
                is_plain=is_plain,
            )

    def _end_walks(self) -> None:
        if self._walks is not None:
            self._walks.close()
            self._walks = None

    @torch.no_grad()
    def _set(self, name: str, fit: Fit) -> None:
        conv = convolutions(self.model)[name]
        conv.weight.copy_(fit.weight.reshape(conv.weight.shape))
        if conv.bias is not None and fit.bias is not None:
            conv.bias.copy_(fit.bias)

    def fingerprint(self, plans: list[LayerPlan]) -> str:
        """Of the weights, the plans, the settings and the first batch."""
        settings: tuple[Any, ...] = (self.steps, self.damping, self.positions)
        if self.reconstruct:
            settings = (*settings, self.reconstruct)
        digest = hashlib.sha256(repr(settings).encode())
        for plan in plans:
            facts: tuple[Any, ...] = (
                plan.name, plan.shape, plan.kept, plan.group, plan.balance, plan.sharing,
            )  # fmt: skip
            if plan.block > 1:
                facts = (*facts, plan.block)
            digest.update(repr(facts).encode() + plan.pattern_set.masks.tobytes())
        tensors = [*self.dense.state_dict().values(), batch_input(self._first())]
        for tensor in tensors:
            if isinstance(tensor, torch.Tensor):
                digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
