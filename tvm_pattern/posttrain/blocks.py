"""Which parts of a network are tuned together: from one tensor to one tensor, residual adds inside.

One forward is watched. Modules that follow each other without anything between them are a chain;
a module that is no chain of its own children, such as a residual block, is taken whole.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

MOST_LAYERS = 8
"""Pruned layers of a module that is taken whole; of a larger one, its parts are."""
CHAIN_LAYERS = 3
"""Pruned layers of a piece of a chain."""


@dataclass(frozen=True)
class Block:
    """Modules called one after the other.

    Attributes
    ----------
    members : tuple of str
        Their names.
    layers : tuple of str
        The pruned layers in them.
    """

    members: tuple[str, ...]
    layers: tuple[str, ...]

    @property
    def name(self) -> str:
        """For reports: the first member, and the last where there are several."""
        ends = dict.fromkeys((self.members[0], self.members[-1]))
        return " to ".join(ends)


class _Seen:
    """A tensor as it was at some moment, without keeping it alive."""

    def __init__(self, value: torch.Tensor) -> None:
        self._ref, self._version = weakref.ref(value), value._version
        self.rows = len(value)

    def is_same(self, other: _Seen | None) -> bool:
        """Whether it is the same tensor, and nothing was written into it between."""
        return other is not None and self._ref is other._ref and self._version == other._version


@dataclass
class _Call:
    """What went into a module and came out of it; None for other things than one tensor."""

    order: int
    entered: _Seen | None
    left: _Seen | None = None


@dataclass
class _Watched:
    """The calls of each module, by name."""

    calls: dict[str, list[_Call]] = field(default_factory=dict)
    count: int = 0


def _seen(value: Any) -> _Seen | None:
    return _Seen(value) if isinstance(value, torch.Tensor) and value.ndim > 1 else None


@contextmanager
def _watching(model: nn.Module) -> Iterator[_Watched]:
    watched, handles = _Watched(), []

    def enter(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            only = _seen(args[0]) if len(args) == 1 and not kwargs else None
            watched.calls.setdefault(name, []).append(_Call(watched.count, only))
            watched.count += 1

        return hook

    def leave(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, __: Any, output: Any) -> None:
            watched.calls[name][-1].left = _seen(output)

        return hook

    for name, module in model.named_modules():
        handles.append(module.register_forward_pre_hook(enter(name), with_kwargs=True))
        handles.append(module.register_forward_hook(leave(name)))
    try:
        yield watched
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def find_blocks(
    model: nn.Module, layers: Collection[str], run: Callable[[nn.Module], Any]
) -> list[Block]:
    """Blocks that hold pruned layers, in the order in which they run.

    Parameters
    ----------
    model : nn.Module
        In evaluation mode.
    layers : collection of str
        Names of the pruned layers.
    run : callable
        ``run(model)``: one forward.

    Returns
    -------
    list of Block
        No layer is in two of them; one that is called several times, or with other things than a
        tensor, is in none.
    """
    with _watching(model) as watched:
        run(model)
    return _Finder(model, set(layers), watched.calls).blocks("")


class _Finder:
    def __init__(self, model: nn.Module, layers: set[str], calls: dict[str, list[_Call]]) -> None:
        self._model, self._layers, self._calls = model, layers, calls

    def blocks(self, parent: str) -> list[Block]:
        """Blocks among the children of a module."""
        found: list[Block] = []
        piece: list[str] = []
        for name in self._children(parent):
            if not self._is_simple(name):
                found += self._cut(piece) + self.blocks(name)
                piece = []
                continue
            parts = self._parts(name)
            if parts is None:  # too large to be taken whole
                found += self._cut(piece) + self.blocks(name)
                piece = []
                continue
            if piece and not self._follows(piece[-1], parts[0]):
                found += self._cut(piece)
                piece = []
            piece += parts
        return found + self._cut(piece)

    def _children(self, parent: str) -> list[str]:
        """Children that are called, in the order of their first calls."""
        prefix = f"{parent}." if parent else ""
        module = self._model.get_submodule(parent)
        names = [prefix + name for name, _ in module.named_children()]
        called = [name for name in names if name in self._calls]
        # A list of modules is called by nobody, what is in it may be.
        lists = [name for name in names if name not in self._calls]
        called += [inner for name in lists for inner in self._children(name)]
        return sorted(called, key=lambda name: self._calls[name][0].order)

    def _is_simple(self, name: str) -> bool:
        """Whether it is called once, from one tensor to one of as many rows."""
        [call, *more] = self._calls[name]
        if more or call.entered is None or call.left is None:
            return False
        return call.entered.rows == call.left.rows

    def _follows(self, first: str, second: str) -> bool:
        left = self._calls[first][0].left
        return left is not None and left.is_same(self._calls[second][0].entered)

    def _inside(self, name: str) -> list[str]:
        return [layer for layer in self._layers if layer == name or layer.startswith(f"{name}.")]

    def _parts(self, name: str) -> list[str] | None:
        """A module as pieces of a chain: of its own if it is one, itself if it is not."""
        inside = self._inside(name)
        if not inside or name in self._layers:
            return [name]
        chain = self._chain(name)
        if chain is not None:
            return chain
        return [name] if len(inside) <= MOST_LAYERS else None

    def _chain(self, name: str) -> list[str] | None:
        """The children, taken apart as far as they are chains, if they do all that it does."""
        parts: list[str] = []
        for child in self._children(name):
            if not self._is_simple(child):
                return None
            inner = self._parts(child)
            if inner is None or (parts and not self._follows(parts[-1], inner[0])):
                return None
            parts += inner
        if not parts:
            return None
        whole, first, last = (self._calls[part][0] for part in (name, parts[0], parts[-1]))
        same_input = first.entered is not None and first.entered.is_same(whole.entered)
        same_output = last.left is not None and last.left.is_same(whole.left)
        return parts if same_input and same_output else None

    def _cut(self, chain: list[str]) -> list[Block]:
        """Pieces of a chain that hold not too many layers; the rest of the chain goes with them."""
        found: list[Block] = []
        members: list[str] = []
        layers: list[str] = []
        for name in chain:
            inside = self._inside(name)
            if layers and inside and len(layers) + len(inside) > CHAIN_LAYERS:
                found.append(Block(tuple(members), tuple(layers)))
                members, layers = [], []
            members.append(name)
            layers += sorted(inside, key=lambda layer: self._calls[layer][0].order)
        return [*found, Block(tuple(members), tuple(layers))] if layers else found
