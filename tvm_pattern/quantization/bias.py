"""Biases that make up for what rounding the weights does to each filter's mean.

Rounded weights shift the mean of a filter's results by the mean of its inputs times the rounding
errors. That shift is measured on the calibration data, with the inputs as they are quantised, and
taken from the bias.

References
----------
Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction", ICCV 2019.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import GraphModule, Interpreter, Node

from .quantizer import DENSE


class BiasShift(Interpreter):
    """Runs a quantised graph and sums up what its rounded weights shift.

    Parameters
    ----------
    graph : GraphModule
    errors : dict
        Weighted node -> rounded minus float weight.
    """

    def __init__(self, graph: GraphModule, errors: dict[str, torch.Tensor]) -> None:
        super().__init__(graph)
        self._errors = errors
        self._sums: dict[str, torch.Tensor] = {}
        self._counts: dict[str, int] = {}

    def run_node(self, n: Node) -> Any:
        error = self._errors.get(n.name)
        if error is not None:
            args, kwargs = self.fetch_args_kwargs_from_env(n)
            names = [a.name for a in n.target._schema.arguments]  # type: ignore[union-attr]
            given = dict(zip(names, args, strict=False)) | dict(kwargs)
            given.update(weight=error, bias=None)
            shift = n.target(**given)  # type: ignore[operator]
            channels = shift.ndim - 1 if n.target in DENSE else 1
            axes = [a for a in range(shift.ndim) if a != channels]
            total = shift.double().sum(axes)
            self._sums[n.name] = self._sums.get(n.name, torch.zeros_like(total)) + total
            self._counts[n.name] = self._counts.get(n.name, 0) + shift.numel() // len(total)
        return super().run_node(n)

    def shifts(self) -> dict[str, torch.Tensor]:
        """Weighted node -> mean shift of each filter, float32 ``[out_channels]``."""
        return {n: (s / self._counts[n]).float() for n, s in self._sums.items()}
