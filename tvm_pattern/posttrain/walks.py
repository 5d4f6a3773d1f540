"""What reaches each layer in turn, in the dense and in the pruned network, by one forward of each.

A forward halts before every layer that is to be pruned. When the layer has its new weights, the
forwards of the pruned network go on through it, so that nothing is computed twice.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from operator import length_hint
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from ..pruning.batchnorm import batch_input
from ..pruning.onnx_network import OnnxNetwork
from .statistics import Forward

HELD_BYTES = 2 * 1024**3
"""Estimated bytes of activations that halted forwards may hold together."""

MOST_THREADS = 128
_LIVE = 3
"""Activations alive at a layer, in terms of its input: residuals, branches, frames' arguments."""

_THREAD = threading.local()


class OtherOrder(Exception):
    """A forward reaches another layer than the one that is due: batches run in different orders."""


class _Stop(BaseException):
    """Ends a halted forward; nothing of a user's model may catch it."""


class Walks:
    """Forwards of two networks over all batches, halted before the same layer.

    Parameters
    ----------
    pair : tuple of nn.Module
        The dense network and the one that is being pruned.
    layers : mapping of str to tuple of nn.Module
        The layers to halt at, in both networks.
    batches : iterable
    forward : callable
        ``forward(model, batch)``.
    is_plain : bool
        Whether ``forward`` only calls the model on the batch's input.
    """

    def __init__(
        self,
        pair: tuple[nn.Module, nn.Module],
        layers: Mapping[str, tuple[nn.Module, nn.Module]],
        batches: Iterable[Any],
        forward: Forward,
        *,
        is_plain: bool,
    ) -> None:
        self._handles: list[RemovableHandle] = []
        self._walks: list[tuple[_Walk, _Walk]] = []
        names = [{id(convs[side]): name for name, convs in layers.items()} for side in (0, 1)]
        if not halts_itself(pair[0], is_plain=is_plain):
            self._handles = [
                conv.register_forward_pre_hook(_halt) for convs in layers.values() for conv in convs
            ]
        for batch in batches:
            sides = [
                _GeneratorWalk(model, batch, known)
                if not self._handles and isinstance(model, OnnxNetwork)
                else _ThreadWalk(model, batch, known, forward)
                for model, known in zip(pair, names, strict=True)
            ]
            self._walks.append((sides[0], sides[1]))

    def inputs(self, name: str) -> Iterator[tuple[list[torch.Tensor], list[torch.Tensor]]]:
        """Inputs of a layer in both networks, batch by batch.

        Raises
        ------
        OtherOrder
            If a forward reaches another layer first, or ends.
        """
        for walks in self._walks:
            seen = [walk.go_to(name) for walk in walks]
            yield [seen[0]], [seen[1]]

    def close(self) -> None:
        """End all forwards."""
        for walks in self._walks:
            for walk in walks:
                walk.stop()
        self._walks = []
        for handle in self._handles:
            handle.remove()
        self._handles = []


def fits(value: torch.Tensor, batches: Iterable[Any], *, in_threads: bool) -> bool:
    """Whether forwards over all batches may halt at a layer whose input is ``value``."""
    count = length_hint(batches, 0)
    held = 2 * _LIVE * value.numel() * value.element_size() * count
    return count > 0 and held <= HELD_BYTES and not (in_threads and 2 * count > MOST_THREADS)


def halts_itself(model: nn.Module, *, is_plain: bool) -> bool:
    """Whether forwards of a model need no threads to halt; see :class:`Walks`."""
    return is_plain and isinstance(model, OnnxNetwork)


class _Walk(ABC):
    """One forward of one network."""

    def __init__(self, names: Mapping[int, str]) -> None:
        self.names = names
        self._at: str | None = None

    def go_to(self, name: str) -> torch.Tensor:
        """Go on through layers that need no halt until the layer; its input."""
        value = self._advance()
        if self._at != name or value is None:
            raise OtherOrder(f"a forward reaches {self._at or 'its end'} before {name}")
        return value

    @abstractmethod
    def _advance(self) -> torch.Tensor | None:
        """Go on to the next layer; its input, or None at the end."""

    @abstractmethod
    def stop(self) -> None:
        """End the forward where it is."""


class _GeneratorWalk(_Walk):
    """A network that can halt by itself."""

    def __init__(self, model: OnnxNetwork, batch: Any, names: Mapping[int, str]) -> None:
        super().__init__(names)
        value = batch_input(batch)
        inputs = value if isinstance(value, tuple) else (value,)
        self._steps = model.walk(*inputs)

    def _advance(self) -> torch.Tensor | None:
        with torch.no_grad():
            for conv, value in self._steps:
                if id(conv) in self.names:
                    self._at = self.names[id(conv)]
                    return value
        self._at = None
        return None

    def stop(self) -> None:
        self._steps.close()


class _ThreadWalk(_Walk):
    """A forward in a thread of its own, which runs only while the caller waits for it."""

    def __init__(
        self, model: nn.Module, batch: Any, names: Mapping[int, str], forward: Forward
    ) -> None:
        super().__init__(names)
        self._go, self._there = threading.Semaphore(0), threading.Semaphore(0)
        self._value: torch.Tensor | None = None
        self._error: BaseException | None = None
        self._is_stopped = False
        self._thread = threading.Thread(target=self._run, args=(model, batch, forward), daemon=True)
        self._thread.start()

    def _run(self, model: nn.Module, batch: Any, forward: Forward) -> None:
        self._go.acquire()
        _THREAD.walk = self
        try:
            if not self._is_stopped:
                with torch.no_grad():
                    forward(model, batch)
        except _Stop:
            pass
        except BaseException as error:  # noqa: BLE001 - raised again where the caller waits
            self._error = error
        self._at = self._value = None
        self._there.release()

    def halt(self, layer: nn.Module, value: torch.Tensor) -> None:
        """In the thread: wait at a layer."""
        self._at, self._value = self.names[id(layer)], value.detach()
        self._there.release()
        self._go.acquire()
        self._value = None
        if self._is_stopped:
            raise _Stop

    def _advance(self) -> torch.Tensor | None:
        if not self._thread.is_alive():
            return None
        self._go.release()
        self._there.acquire()
        if self._error is not None:
            raise self._error
        return self._value

    def stop(self) -> None:
        if self._thread.is_alive():
            self._is_stopped = True
            self._go.release()
        self._thread.join()


def _halt(layer: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
    walk = getattr(_THREAD, "walk", None)
    if walk is not None:
        walk.halt(layer, args[0])
