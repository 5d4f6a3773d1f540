"""A converted graph's layers: their integers under the layers' names, biases, figures."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule, Node

from .bias import BiasShift
from .capture import Inputs
from .model import LayerQuantization
from .quantizer import DENSE, WEIGHTED

# A bias is added as an integer of the products' step; sums of products need the rest of int32.
_LARGEST_BIAS = 2**30
_HIGHEST_SQNR = 200.0


@dataclass
class QuantizedLayer:
    """A layer with integer weights in a converted graph.

    Parameters
    ----------
    name : str
    node : Node
        The convolution or dense layer.
    weight : Tensor
        float32, as it was.
    """

    name: str
    node: Node
    weight: torch.Tensor
    graph: GraphModule

    @property
    def _dequantize(self) -> Node:
        return self.node.args[1]  # type: ignore[return-value]

    def _value(self, node: Any) -> torch.Tensor:
        owner, _, name = str(node.target).rpartition(".")
        return getattr(self.graph.get_submodule(owner), name)

    @property
    def integers(self) -> torch.Tensor:
        """int8, in the shape of the weight."""
        return self._value(self._dequantize.args[0])

    @property
    def scale(self) -> torch.Tensor:
        """float32 ``[out_channels]``."""
        return self._value(self._dequantize.args[1])

    @property
    def bias(self) -> torch.Tensor | None:
        """float32 ``[out_channels]``."""
        node = self.node.args[2] if len(self.node.args) > 2 else self.node.kwargs.get("bias")
        return None if node is None else self._value(node)

    @property
    def input_scale(self) -> tuple[float, int]:
        """Scale and zero point of the input."""
        _, scale, zero_point, *_ = self.node.args[0].args  # type: ignore[union-attr]
        return float(scale), int(zero_point)  # type: ignore[arg-type]

    def rounded(self) -> torch.Tensor:
        """The weight that the integers stand for."""
        shape = [-1] + [1] * (self.weight.ndim - 1)
        return self.integers.float() * self.scale.view(shape)

    def store(self, name: str) -> None:
        """Put integers and scales under the layer's name; the float weight goes."""
        owner = _module(self.graph, name)
        for key, node, value in (
            ("weight", self._dequantize.args[0], self.integers),
            ("weight_scale", self._dequantize.args[1], self.scale),
            ("weight_zero_point", self._dequantize.args[2], torch.zeros_like(self.scale).long()),
        ):
            _put(owner, key, value)
            node.target = f"{name}.{key}"  # type: ignore[union-attr]

    def set_bias(self, value: torch.Tensor) -> None:
        """Replace or add the bias."""
        name = self._dequantize.args[0].target.rpartition(".")[0]  # type: ignore[union-attr]
        _put(_module(self.graph, name), "bias", value)
        with self.graph.graph.inserting_before(self.node):
            bias = self.graph.graph.get_attr(f"{name}.bias")
        given = list(self.node.args) + [None] * max(0, 3 - len(self.node.args))
        given[2] = bias
        self.node.args = tuple(given)
        self.node.kwargs = {k: v for k, v in self.node.kwargs.items() if k != "bias"}

    def bound_bias(self) -> None:
        """Coarser steps for filters whose bias would be too large an integer of finer ones."""
        if self.bias is None:
            return
        needed = self.bias.abs() / (self.input_scale[0] * _LARGEST_BIAS)
        if bool((needed <= self.scale).all()):
            return
        scale = torch.maximum(self.scale, needed)
        shape = [-1] + [1] * (self.weight.ndim - 1)
        self.integers.copy_((self.weight / scale.view(shape)).round().clamp(-127, 127))
        self.scale.copy_(scale)

    def figures(self, shift: torch.Tensor | None, kept: torch.Tensor) -> LayerQuantization:
        """What became of the layer."""
        scale, zero_point = self.input_scale
        error = float((self.rounded() - self.weight).detach().double().square().sum())
        power = float(self.weight.double().square().sum())
        sqnr = 10 * math.log10(power / error) if error and power else _HIGHEST_SQNR
        steps = 0.0 if shift is None else float((shift.abs() / (self.scale * scale)).max())
        return LayerQuantization(
            layer=self.name,
            kind="dense" if self.node.target in DENSE else "conv",
            input_range=((0 - zero_point) * scale, (255 - zero_point) * scale),
            weight_sqnr=min(sqnr, _HIGHEST_SQNR),
            rounded_to_zero=int(torch.count_nonzero(kept & (self.integers == 0))),
            bias_shift=steps,
        )


def quantized_layers(
    graph: GraphModule, layers: dict[str, str], weights: dict[str, torch.Tensor]
) -> Iterator[QuantizedLayer]:
    """Layers of a converted graph whose weights are integers, in order.

    Parameters
    ----------
    graph : GraphModule
    layers : dict
        Node -> layer.
    weights : dict
        Node -> float weight.
    """
    for node in graph.graph.nodes:
        if node.op != "call_function" or node.target not in WEIGHTED:
            continue
        if "dequantize" in str(getattr(node.args[1], "target", "")):
            yield QuantizedLayer(layers[node.name], node, weights[node.name], graph)


def correct_biases(
    found: Iterable[QuantizedLayer], graph: GraphModule, batches: Iterable[Inputs]
) -> dict[str, torch.Tensor]:
    """Take the mean shift of rounded weights from the biases.

    Returns
    -------
    dict
        Node -> shift, float32 ``[out_channels]``. Layers that are called several times have none.
    """
    listed = list(found)
    names = [layer.name for layer in listed]
    once = [layer for layer in listed if names.count(layer.name) == 1]
    run = BiasShift(graph, {q.node.name: q.rounded() - q.weight for q in once})
    with torch.no_grad():
        for inputs in batches:
            run.run(*inputs)
    shifts = run.shifts()
    for layer in once:
        shift = shifts.get(layer.node.name)
        if shift is not None:
            before = layer.bias
            layer.set_bias(-shift if before is None else before - shift)
    return shifts


def store_by_layer(found: Iterable[QuantizedLayer]) -> None:
    """Give integers and scales their layers' names."""
    taken: set[str] = set()
    for layer in found:
        name = layer.name
        while name in taken:
            name += "_again"
        taken.add(name)
        layer.store(name)


def without_unused(graph: GraphModule) -> None:
    """Drop parameters and buffers that no node reads, which would be saved with the rest."""
    read = {str(node.target) for node in graph.graph.nodes if node.op == "get_attr"}
    for name in [*dict(graph.named_parameters()), *dict(graph.named_buffers())]:
        if name not in read:
            owner, _, key = name.rpartition(".")
            delattr(graph.get_submodule(owner), key)
    graph.recompile()


def _module(graph: nn.Module, path: str) -> nn.Module:
    """The submodule, made where there is none."""
    module = graph
    for part in path.split("."):
        if not hasattr(module, part):
            module.add_module(part, nn.Module())
        module = getattr(module, part)
    return module


def _put(owner: nn.Module, name: str, value: torch.Tensor) -> None:
    """A buffer, in place of a parameter of that name."""
    owner._parameters.pop(name, None)
    owner._buffers.pop(name, None)
    value = value.detach().clone(memory_format=torch.contiguous_format)
    owner.register_buffer(name, value)
