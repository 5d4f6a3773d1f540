"""Batch norms that follow no convolution, as a product and a sum."""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import GraphModule, Node

aten = torch.ops.aten
_NO_TRAINING = aten._native_batch_norm_legit_no_training.default
_BATCH_NORMS = frozenset((aten.batch_norm.default, _NO_TRAINING))


def as_affine(graph: GraphModule) -> None:
    """Replace every batch norm of a graph in evaluation mode by ``x * scale + shift``, in place.

    Those behind convolutions were folded before. With any left, torchao's conversion traces its 96
    patterns of trained batch norms, which takes a minute.
    """
    found = [n for n in graph.graph.nodes if n.target in _BATCH_NORMS]
    for number, node in enumerate(found):
        _replace(graph, node, f"_batch_norm_{number}")
    if found:
        graph.graph.eliminate_dead_code()
        graph.recompile()


def _replace(graph: GraphModule, node: Node, name: str) -> None:
    arguments: dict[str, Any] = dict(
        zip(("input", "weight", "bias", "running_mean", "running_var"), node.args, strict=False)
    )
    source, mean, variance = (arguments[n] for n in ("input", "running_mean", "running_var"))
    epsilon = float(node.args[6 if node.target is _NO_TRAINING else 7])
    scale = (_value(graph, variance) + epsilon).rsqrt()
    if arguments["weight"] is not None:
        scale = scale * _value(graph, arguments["weight"])
    shift = -_value(graph, mean) * scale
    if arguments["bias"] is not None:
        shift = shift + _value(graph, arguments["bias"])
    shape = (-1, *(1,) * (node.meta["val"].ndim - 2))
    with graph.graph.inserting_before(node):
        value: Any = source
        for operator, part, constant in (
            (aten.mul.Tensor, "scale", scale),
            (aten.add.Tensor, "shift", shift),
        ):
            graph.register_buffer(f"{name}_{part}", constant.reshape(shape).float())
            held = graph.graph.get_attr(f"{name}_{part}")
            value = graph.graph.call_function(operator, (value, held))
            value.meta = dict(node.meta)
    node.replace_all_uses_with(value)


def _value(graph: GraphModule, node: Node) -> torch.Tensor:
    """A tensor that the graph holds, in float64."""
    owner, _, name = str(node.target).rpartition(".")
    value: torch.Tensor = getattr(graph.get_submodule(owner), name)
    return value.detach().double()
