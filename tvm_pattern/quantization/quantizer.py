"""Where values are quantised: what torchao's PT2E asks a ``Quantizer``.

Convolutions, dense layers, adds, pools and concatenations take quantised inputs. What follows a
convolution in the same call of a compiled library (bias, the add of a residual, the activation) is
computed on its sums, before they are rounded: no step lies in between.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.fx import GraphModule, Node
from torchao.quantization.pt2e.fake_quantize import FakeQuantize
from torchao.quantization.pt2e.quantizer import (
    QuantizationAnnotation,
    QuantizationSpec,
    Quantizer,
    SharedQuantizationSpec,
)

from .observers import Calibration, SettledRange, Weights, activation_observer

aten = torch.ops.aten
KEY = "quantization_annotation"
CONVOLUTIONS = frozenset(
    (
        aten.conv1d.default,
        aten.conv1d.padding,
        aten.conv2d.default,
        aten.conv2d.padding,
    )
)
DENSE = frozenset((aten.linear.default,))
WEIGHTED = CONVOLUTIONS | DENSE
_ADDS = frozenset((aten.add.Tensor, aten.add_.Tensor))
_SAME_RANGE = frozenset((aten.max_pool2d.default,))
_AVERAGES = frozenset((aten.avg_pool2d.default, aten.adaptive_avg_pool2d.default, aten.mean.dim))
_CONCATENATIONS = frozenset((aten.cat.default,))
_WIDE = (aten.conv3d.default, aten.conv_transpose1d.default, aten.conv_transpose2d.input)


class PatternQuantizer(Quantizer):
    """uint8 activations per tensor, symmetric int8 weights per out_channel.

    Parameters
    ----------
    calibration : {"minmax", "percentile", "mse"}
    percentile : float
    weight_bits : int
        7 or 8.
    why_not : callable
        Node -> reason why a weighted layer stays in float32, empty if it does not.
    trainable : bool
        Fake quantisation, which gradients pass, instead of observers.
    """

    def __init__(
        self,
        calibration: Calibration,
        percentile: float,
        weight_bits: int,
        why_not: Callable[[Node], str],
        *,
        trainable: bool = False,
    ) -> None:
        super().__init__()
        self._why_not = why_not
        observer: Any = activation_observer(calibration, percentile)
        weights: Any = Weights.with_args(search=calibration == "mse" and not trainable)
        if trainable:
            observer = SettledRange.with_args(observer=observer)
            weights = FakeQuantize.with_args(observer=weights)
        self._activation = QuantizationSpec(
            dtype=torch.uint8,
            observer_or_fake_quant_ctr=observer,
            quant_min=0,
            quant_max=255,
            qscheme=torch.per_tensor_affine,
        )
        limit = 2 ** (weight_bits - 1) - 1
        self._weight = QuantizationSpec(
            dtype=torch.int8,
            observer_or_fake_quant_ctr=weights,
            quant_min=-limit,
            quant_max=limit,
            qscheme=torch.per_channel_symmetric,
            ch_axis=0,
        )

    def annotate(self, model: GraphModule) -> GraphModule:
        """Leave an annotation at every node that takes quantised inputs."""
        order = {node: i for i, node in enumerate(model.graph.nodes)}
        for node in model.graph.nodes:
            if node.op != "call_function":
                continue
            if node.target in WEIGHTED:
                if not self._why_not(node):
                    specs = {node.args[0]: self._activation, node.args[1]: self._weight}
                    node.meta[KEY] = _annotation(specs)
            elif node.target in _ADDS:
                self._annotate_add(node, order)
            elif node.target in _AVERAGES:
                node.meta[KEY] = _annotation({node.args[0]: self._activation})
            elif node.target in _SAME_RANGE:
                shared = SharedQuantizationSpec((node.args[0], node))
                node.meta[KEY] = _annotation({node.args[0]: self._activation}, shared)
            elif node.target in _CONCATENATIONS:
                self._annotate_concatenation(node)
        return model

    def validate(self, model: GraphModule) -> None:
        """Every annotation is one that the operators take."""

    def _annotate_add(self, node: Node, order: dict[Node, int]) -> None:
        operands = [a for a in node.args[:2] if isinstance(a, Node) and is_activation(a)]
        if len(operands) != 2:
            return
        summed = [a for a in operands if self._is_sum(a)]
        before = max(summed, key=order.__getitem__, default=None)
        node.meta[KEY] = _annotation({a: self._activation for a in operands if a is not before})

    def _is_sum(self, node: Node) -> bool:
        """Whether a value is a quantised convolution's own, which nothing else reads."""
        return node.target in CONVOLUTIONS and len(node.users) == 1 and not self._why_not(node)

    def _annotate_concatenation(self, node: Node) -> None:
        parts = [a for a in node.args[0] if is_activation(a)]
        if len(parts) != len(node.args[0]):
            return
        shared = SharedQuantizationSpec((parts[0], node))
        specs: dict[Node, Any] = dict.fromkeys((p for p in parts if p is not parts[0]), shared)
        node.meta[KEY] = _annotation({parts[0]: self._activation, **specs}, shared)


def _annotation(inputs: dict[Node, Any], output: Any = None) -> QuantizationAnnotation:
    return QuantizationAnnotation(input_qspec_map=inputs, output_qspec=output, _annotated=True)


def is_activation(node: Node) -> bool:
    """Whether a value depends on the inputs and is made of floats."""
    value = node.meta.get("val")
    return node.op != "get_attr" and isinstance(value, torch.Tensor) and value.is_floating_point()


def weighted_nodes(model: GraphModule) -> Iterator[Node]:
    """Layers with weights, those that cannot be quantised too, in order."""
    for node in model.graph.nodes:
        if node.op == "call_function" and (node.target in WEIGHTED or node.target in _WIDE):
            yield node
