"""Exponential moving average of a model under pruning."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from .pruner import Pruner


class MaskedEma:
    """Average of the weights that never shows pruned ones.

    A plain average keeps pruned weights alive for thousands of steps. This one is masked whenever
    it is read, and starts anew at the freeze, where the weights jump.

    Parameters
    ----------
    pruner : Pruner
        Its model is averaged.
    decay : float
        Per :meth:`update`, in (0, 1).
    """

    def __init__(self, pruner: Pruner, decay: float = 0.999) -> None:
        if not 0.0 < decay < 1.0:
            raise ValueError(f"decay must lie between 0 and 1, got {decay}")
        self.pruner = pruner
        self.decay = decay
        self._restart()

    def _restart(self) -> None:
        average = get_ema_multi_avg_fn(self.decay)
        self._average = AveragedModel(self.pruner.model, multi_avg_fn=average, use_buffers=True)
        self._generation = self.pruner.generation

    def update(self) -> None:
        """Average in the current weights; call after each optimizer step."""
        if self._generation != self.pruner.generation:
            self._restart()
        self._average.update_parameters(self.pruner.model)

    @property
    def model(self) -> nn.Module:
        """The averaged model with the pruner's masks applied."""
        if self._generation != self.pruner.generation:
            self._restart()
        self.pruner.mask(self._average.module)
        return self._average.module

    def state_dict(self) -> dict[str, Any]:
        """State to resume from."""
        return {"average": self._average.state_dict(), "generation": self._generation}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume; load the pruner's state first."""
        if set(state) != {"average", "generation"}:
            raise ValueError(f"not the state of a MaskedEma: keys {sorted(state)}")
        self._average.load_state_dict(state["average"])
        self._generation = int(torch.as_tensor(state["generation"]))
