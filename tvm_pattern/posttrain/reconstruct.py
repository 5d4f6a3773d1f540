"""Tune the weights that are left, block by block, towards the dense network's own outputs.

What a layer cannot make up for by itself, the layers of its block may do together: they are tuned
by gradients, from the inputs that the pruned network delivers to the block's outputs in the dense
network. There are no labels, and removed weights stay removed. Batch norms keep factor and term and
follow the tuned weights by their statistics: outputs that only come nearer in the mean square
shrink towards their mean, from block to block, until little is left of the signal.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from operator import length_hint
from typing import Any

import torch
from torch import nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm

from ..pruning.assignment import Assignment
from ..pruning.modules import layers_of
from .blocks import Block
from .errors import PosttrainError
from .statistics import Forward

HELD_BYTES = 1024**3
"""Inputs and outputs of a block that are held at a time; of more pictures, some follow others."""
ROWS = 16
"""Pictures of a step."""
RATE = 0.02
"""Step of Adam against the root mean square of what it steps through, falling to 0."""
TESTED = 5
"""One picture of so many is not tuned on: it tells whether tuning helped."""
ENOUGH = 2 * TESTED
FEW = 4
"""Of fewer pictures at a time the statistics of batch norms are no estimate."""
_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")

Pairs = list[tuple[torch.Tensor, torch.Tensor]]


@dataclass(frozen=True)
class BlockFit:
    """Errors of one block's outputs: mean squared change over the mean square.

    Attributes
    ----------
    name : str
    layers : tuple of str
        The pruned layers in it.
    before, after : float
        Of pictures that it was not tuned on, where there are :data:`ENOUGH`. Equal where tuning did
        not help: the weights are as before then.
    """

    name: str
    layers: tuple[str, ...]
    before: float
    after: float


@dataclass
class Tuned:
    """What became of a block: its figures and its tensors by their names in the model."""

    fit: BlockFit
    tensors: dict[str, torch.Tensor] = field(default_factory=dict)


class _Reached(Exception):
    """What was looked for was seen; the rest of the network need not run."""


@dataclass
class Networks:
    """What tuning reads: both networks in evaluation mode, and the calibration data.

    Raises
    ------
    PosttrainError
        Where a batch does not reach a block.
    """

    dense: nn.Module
    pruned: nn.Module
    batches: Iterable[Any]
    forward: Forward

    def pairs(self, block: Block) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Inputs of a block in the pruned network, and its outputs in the dense one."""
        for batch in self.batches:
            first = self.pruned.get_submodule(block.members[0])
            last = self.dense.get_submodule(block.members[-1])
            yield (
                self._see(self.pruned, first.register_forward_pre_hook, batch),
                self._see(self.dense, last.register_forward_hook, batch),
            )

    @torch.no_grad()
    def _see(self, model: nn.Module, register: Any, batch: Any) -> torch.Tensor:
        seen: list[torch.Tensor] = []

        def look(_: nn.Module, args: Any, output: Any = None) -> None:
            seen.append((args[0] if output is None else output).detach())
            raise _Reached

        handle = register(look)
        try:
            with suppress(_Reached):
                self.forward(model, batch)
        finally:
            handle.remove()
        if not seen:
            raise PosttrainError(
                "calibration batches run through different layers, so that not all of them reach"
                " every block; leave reconstruct out for this network"
            )
        return seen[0]


def tune_block(block: Block, networks: Networks, assignment: Assignment, steps: int) -> Tuned:
    """Tune one block of the pruned network, in place.

    Parameters
    ----------
    block : Block
    networks : Networks
    assignment : Assignment
        What is removed, and stays so.
    steps : int
        Steps of Adam, on :data:`ROWS` pictures each.

    Returns
    -------
    Tuned
        With its tensors; where tuning did not help, the weights of before.
    """
    tuner = _Tuner(block, networks.pruned, assignment)
    loads = _Loads(block, networks)
    tested: Pairs = []
    as_it_was: dict[str, torch.Tensor] = {}
    power = before = 0.0
    done = 0
    for number in range(loads.count):
        whole, pools, others = loads.take()
        if number == 0:
            tuner.settle(whole)  # the blocks before may deliver something else than they did
            as_it_was = tuner.tensors()
            tested = others or whole
            power = _mean((float(y.float().square().mean()), len(y)) for _, y in tested)
            tuner.power = power
            before = tuner.error(tested)
        until = steps * (number + 1) // loads.count
        for step in range(done, until) if pools else ():
            tuner.step(pools, 0.5 * (1 + math.cos(math.pi * step / steps)))
        done = until
        tuner.settle(whole)
    after = tuner.error(tested)
    if not after < before:  # not finite is no gain either
        after, tensors = before, as_it_was
    else:
        tensors = tuner.tensors()
    write_tensors(networks.pruned, tensors)
    return Tuned(BlockFit(block.name, block.layers, before, after), tensors)


def _mean(parts: Iterable[tuple[float, int]]) -> float:
    """Mean of means of so many each."""
    values = list(parts)
    return sum(v * n for v, n in values) / max(1, sum(n for _, n in values))


class _Loads:
    """Pairs of a block, as many at a time as may be held."""

    def __init__(self, block: Block, networks: Networks) -> None:
        batches = networks.batches
        count = length_hint(batches, 0) or sum(1 for _ in batches)
        pairs = networks.pairs(block)
        first = next(pairs)
        size = sum(t.numel() * t.element_size() for t in first)
        self._each = max(1, HELD_BYTES // max(1, size))
        self._pairs = itertools.chain([first], pairs)
        self._row = 0
        self._is_enough = len(first[0]) * count >= ENOUGH
        self.count = -(-count // self._each)

    def take(self) -> tuple[Pairs, list[Pairs], Pairs]:
        """Pairs as they came; their pictures to tune on, by size, as views; what is set aside."""
        whole: Pairs = []
        pools: dict[Any, Pairs] = {}
        others: Pairs = []
        for x, y in itertools.islice(self._pairs, self._each):
            aside = (torch.arange(self._row, self._row + len(x)) + 1) % TESTED == 0
            aside &= self._is_enough
            self._row += len(x)
            whole.append((x, y))
            if bool(aside.any()):
                others.append((x[aside], y[aside]))
            pool = pools.setdefault((x.shape[1:], y.shape[1:]), [])
            pool += [(x[row], y[row]) for row in (~aside).nonzero().flatten().tolist()]
        return whole, [pool for pool in pools.values() if pool], others


class _Tuner:
    """A block's tensors as leaves of their own, so that the model's parameters stay untouched."""

    def __init__(self, block: Block, model: nn.Module, assignment: Assignment) -> None:
        self._block, self._model = block, model
        self._removed: dict[str, torch.Tensor] = {}
        self._leaves: dict[str, torch.Tensor] = {}
        self._scales: list[float] = []
        for name, scale in self._scaled(assignment):
            parameter = model.get_parameter(name)
            self._leaves[name] = parameter.detach().float().clone().requires_grad_()
            self._scales.append(scale)
        self._norms = dict(self._normed())
        self._statistics = {
            f"{name}.{of}": getattr(norm, of).clone()
            for name, norm in self._norms.items()
            for of in _STATISTICS
        }
        self._optimizer = torch.optim.Adam([{"params": [t]} for t in self._leaves.values()])
        self._random = torch.Generator().manual_seed(0)
        self.power = 1.0

    def _scaled(self, assignment: Assignment) -> Iterator[tuple[str, float]]:
        """Parameters that are tuned, and the size of what they hold."""
        layers = layers_of(self._model)
        for name in self._block.layers:
            layer = layers[name]
            removed = assignment[name].removed_from(layer.weight)
            self._removed[f"{name}.weight"] = removed
            scale = _size(layer.weight.detach()[~removed])
            yield f"{name}.weight", scale
            if layer.bias is not None:
                yield f"{name}.bias", scale * math.sqrt(layer.weight[0].numel())

    def _normed(self) -> Iterator[tuple[str, _BatchNorm]]:
        """Batch norms that keep running statistics."""
        for member in self._block.members:
            for name, module in self._model.get_submodule(member).named_modules(prefix=member):
                if isinstance(module, _BatchNorm) and module.running_mean is not None:
                    yield name, module

    @contextmanager
    def _by_batch(self, momentum: float | None = 0.1) -> Iterator[None]:
        """Norms use the statistics of what comes, and average them; None: all alike."""
        momenta = {norm: norm.momentum for norm in self._norms.values()}
        try:
            for norm in momenta:
                norm.momentum, norm.training = momentum, True
            yield
        finally:
            for norm, before in momenta.items():
                norm.momentum, norm.training = before, False

    @torch.no_grad()
    def settle(self, pairs: Pairs) -> None:
        """Running statistics become those of the weights and inputs as they are.

        By the batches that came, as :func:`~tvm_pattern.pruning.recalibrate_bn` takes them.
        """
        if not self._norms:
            return
        for statistic in self._statistics.values():
            statistic.zero_()
        with self._by_batch(momentum=None):
            for x, y in pairs:
                self._change(x.clone(), y)

    def _some(self, pools: list[Pairs]) -> tuple[torch.Tensor, torch.Tensor]:
        """:data:`ROWS` pictures of one size, whichever batches they came in."""
        number = int(torch.randint(sum(map(len, pools)), (), generator=self._random))
        pool = [pool for pool in pools for _ in pool][number]
        order = torch.randperm(len(pool), generator=self._random)[:ROWS]
        xs, ys = zip(*(pool[i] for i in order.tolist()), strict=True)
        return torch.stack(xs), torch.stack(ys)

    def _change(self, x: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        """Mean squared change of the block's outputs for inputs ``x``."""
        for member in self._block.members:
            module = self._model.get_submodule(member)
            own = {
                name.removeprefix(f"{member}."): leaf.to(x.dtype)
                for name, leaf in self._leaves.items()
                if name.startswith(f"{member}.")
            }
            own |= {
                name.removeprefix(f"{member}."): statistic
                for name, statistic in self._statistics.items()
                if name.startswith(f"{member}.")
            }
            x = functional_call(module, own, (x,))
        return (x.float() - wanted.float()).square().mean()

    @torch.no_grad()
    def error(self, pairs: Pairs) -> float:
        """Over all of them, against the power."""
        return _mean((float(self._change(x.clone(), y)), len(y)) for x, y in pairs) / max(
            self.power, 1e-38
        )

    def step(self, pools: list[Pairs], share: float) -> None:
        """One step at a share of the rate."""
        x, wanted = self._some(pools)
        # Of few pictures the statistics are no estimate.
        by_batch = self._by_batch() if len(x) >= FEW else nullcontext()
        with torch.enable_grad(), by_batch:
            loss = self._change(x, wanted) / max(self.power, 1e-38)
            gradients = torch.autograd.grad(loss, list(self._leaves.values()), allow_unused=True)
        for (name, leaf), gradient in zip(self._leaves.items(), gradients, strict=True):
            removed = self._removed.get(name)
            leaf.grad = gradient
            if gradient is not None and removed is not None:
                leaf.grad = gradient.masked_fill(removed, 0)
        for group, scale in zip(self._optimizer.param_groups, self._scales, strict=True):
            group["lr"] = RATE * scale * share
        self._optimizer.step()

    def tensors(self) -> dict[str, torch.Tensor]:
        """What was tuned, as the model holds it."""
        found = {}
        for name, leaf in self._leaves.items():
            removed = self._removed.get(name)
            value = leaf.detach().clone()
            if removed is not None:
                value.masked_fill_(removed, 0)
            found[name] = value.to(self._model.get_parameter(name).dtype)
        return {**found, **{name: value.clone() for name, value in self._statistics.items()}}


def _size(values: torch.Tensor) -> float:
    """Root mean square, and never zero."""
    return max(float(values.float().square().mean().sqrt()), 1e-8) if values.numel() else 1e-8


@torch.no_grad()
def write_tensors(model: nn.Module, tensors: dict[str, torch.Tensor]) -> None:
    """Put parameters and buffers into a model by their names."""
    held = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    for name, tensor in tensors.items():
        held[name].copy_(tensor)
