"""Quantisation-aware fine-tuning: a network that rounds as its library will, and can be trained.

Batch norms are folded before, ranges of activations come from calibration data and stay, ranges of
weights follow the weights. Gradients pass the rounding as if it were none. Pruned weights stay
zero.

    tuning = finetuning(model, calibration)
    optimizer = torch.optim.SGD(tuning.parameters(), lr=1e-3)
    for images, labels in loader:
        loss = cross_entropy(tuning(images), labels)
        ...
    quantized = tuning.finish()

References
----------
Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
Inference", CVPR 2018, section 3.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torchao.quantization.pt2e.fake_quantize import FakeQuantize

from ..pruning.modules import unwrap
from .capture import Inputs, inputs_of
from .errors import QuantizationError
from .model import QuantizedModel
from .observers import Calibration, SettledRange
from .quantizer import weighted_nodes
from .run import Data, Prepared, check_settings, check_weights, prepare


class FineTuning(nn.Module):
    """A fake-quantised network. Made by :func:`finetuning`.

    ``train()`` and ``eval()`` change nothing: batch norms are folded and dropout is off. Its
    parameters are the float weights, which an optimizer may change as it likes.
    """

    def __init__(self, prepared: Prepared, settings: dict[str, Any]) -> None:
        super().__init__()
        self.graph = prepared.graph
        # Not a submodule: it holds no tensors of its own.
        self.__dict__["_prepared"] = prepared
        self._settings = settings
        self._pruned = list(_pruned_weights(prepared))

    def train(self, mode: bool = True) -> FineTuning:  # noqa: FBT001, FBT002 - as torch has it
        """Only the flag: the graph is the same in both modes."""
        self.training = mode
        return self

    def forward(self, *inputs: torch.Tensor) -> Any:
        """The network on inputs of the shapes of the calibration data."""
        self.hold_pruned()
        return self.graph(*inputs)

    @torch.no_grad()
    def hold_pruned(self) -> None:
        """Zero what was pruned; every forward pass begins with it."""
        for weight, removed in self._pruned:
            weight.masked_fill_(removed.to(weight.device), 0)

    def finish(self) -> QuantizedModel:
        """The quantised network, on the CPU; this one is used up.

        Raises
        ------
        QuantizationError
            If a weight became NaN or Inf, or it was finished before.
        """
        if self._prepared is None:
            raise QuantizationError("finish() was called before; fine-tune a new network")
        self.cpu()
        check_weights(self.graph)
        with torch.no_grad():
            size = self._prepared.size or len(self._prepared.example[0])
            example = self._prepared.example
            self(*(t[:size] for t in example))  # ranges of the weights as they are now
        result = self._prepared.finish(None, self._settings)
        self.__dict__["_prepared"] = None
        return result


def _pruned_weights(prepared: Prepared) -> Iterable[tuple[nn.Parameter, torch.Tensor]]:
    """Weights of pruned layers and what is removed of them."""
    for node in weighted_nodes(prepared.graph):
        structure = prepared.structures.get(prepared.layers[node.name])
        source = prepared.source_of(node)
        if structure is None or source is None:
            continue
        kept = torch.from_numpy(structure.kept.copy()).view(source.shape)
        yield source, ~kept


def finetuning(
    model: nn.Module,
    calibration: Iterable[Any],
    example_inputs: Any = None,
    *,
    method: Calibration = "mse",
    percentile: float = 99.99,
    weight_bits: int = 8,
    skip: Iterable[str] = (),
    inputs: Callable[[Any], Inputs] = inputs_of,
    progress: bool | None = None,
) -> FineTuning:
    """A network to fine-tune with quantisation; ``model`` is not changed.

    Parameters and errors are those of :func:`tvm_pattern.quantization.quantize`; there is no bias
    correction, training does more.

    Returns
    -------
    FineTuning
        Train it, then call :meth:`FineTuning.finish`.
    """
    check_settings(method, percentile, weight_bits)
    inner = unwrap(model)
    check_weights(inner)
    data = Data(calibration, inputs, progress=progress)
    prepared = prepare(
        inner, data, example_inputs, method, percentile, weight_bits, skip, trainable=True
    )
    rounding = [m for m in prepared.graph.modules() if isinstance(m, FakeQuantize)]
    for module in rounding:
        module.disable_fake_quant()
    prepared.calibrate(data)
    for module in rounding:
        module.enable_fake_quant()
        if isinstance(module, SettledRange):
            module.settle()
    for name, parameter in prepared.graph.named_parameters():
        if name.endswith("weight_bias"):  # of a batch norm that was folded
            parameter.requires_grad = True
    settings = {
        "method": method,
        "percentile": percentile,
        "weight_bits": weight_bits,
        "fine_tuned": True,
        "inputs": data.seen,
    }
    return FineTuning(prepared, settings)
