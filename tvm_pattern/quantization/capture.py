"""The network as a graph of ATen operators that takes batches, and names for its layers."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch.export import Dim
from torch.fx import GraphModule, Node

from .errors import QuantizationError
from .quantizer import WEIGHTED, weighted_nodes

Inputs = tuple[torch.Tensor, ...]


def inputs_of(batch: Any) -> Inputs:
    """What a batch gives the network: a tensor, or the first of a tuple (labels follow).

    Raises
    ------
    QuantizationError
        If there is no tensor.
    """
    value = batch[0] if isinstance(batch, tuple | list) and len(batch) else batch
    if not isinstance(value, torch.Tensor):
        raise QuantizationError(
            f"got a calibration batch of {type(value).__name__}, expected a tensor or a tuple that"
            " begins with one; give inputs=... for networks with other inputs"
        )
    return (value,)


def checked_batches(
    calibration: Iterable[Any], inputs: Callable[[Any], Inputs]
) -> Iterator[Inputs]:
    """Inputs batch by batch.

    Raises
    ------
    QuantizationError
        If a batch is empty or holds NaN or Inf, or if there is none.
    """
    batches = [calibration] if isinstance(calibration, torch.Tensor) else calibration
    number = -1
    for number, batch in enumerate(batches):
        given = tuple(inputs(batch))
        for tensor in given:
            bad = tensor.numel() - int(torch.isfinite(tensor).sum())
            if bad or not tensor.numel():
                problem = f"{bad} of {tensor.numel()} values are NaN or Inf" if bad else "is empty"
                raise QuantizationError(
                    f"calibration batch {number}: {problem}; expected finite numbers, prepared as"
                    " for evaluation"
                )
        yield given
    if number < 0:
        raise QuantizationError(
            "the calibration data is empty; expected some hundred inputs, in batches (a list or"
            " loader, not an iterator that was read before)"
        )


def captured(model: torch.nn.Module, example: Inputs) -> tuple[GraphModule, bool]:
    """A copy of the model as a graph, and whether it takes batches of any size.

    Raises
    ------
    QuantizationError
        If torch cannot trace it, or it is in training mode.
    """
    training = next((n for n, m in model.named_modules() if m.training), None)
    if training is not None:
        raise QuantizationError(
            f"module {training or type(model).__name__!r} is in training mode; call model.eval()"
            " before quantising"
        )
    model = copy.deepcopy(model)
    wide = tuple(torch.cat([t, t]) if len(t) == 1 else t for t in example)
    sizes = {len(t) for t in wide}
    attempts: list[tuple[Inputs, Any]] = [(example, None)]
    if len(sizes) == 1:
        attempts.insert(0, (wide, tuple({0: Dim.AUTO} for _ in wide)))
    problem: Exception | None = None
    for arguments, dynamic in attempts:
        try:
            with torch.no_grad():
                program = torch.export.export(model, arguments, dynamic_shapes=dynamic)
        except (RuntimeError, TypeError, ValueError, torch._dynamo.exc.TorchDynamoException) as e:
            problem = e
            continue
        graph = program.module(check_guards=False)
        # Without a constraint, a symbol turned out to be a number.
        return graph, dynamic is not None and bool(program.range_constraints)
    raise QuantizationError(
        f"torch.export cannot trace {type(model).__name__}: {problem}; the forward pass has to be"
        " free of data-dependent control flow"
    ) from problem


def pieces(inputs: Inputs, size: int | None) -> Iterator[Inputs]:
    """A batch in parts of ``size``; what is left over is dropped. None: as it is."""
    if size is None:
        yield inputs
        return
    for start in range(0, len(inputs[0]) - size + 1, size):
        yield tuple(t[start : start + size] for t in inputs)


def layer_of(node: Node) -> str:
    """Name of the layer that owns a node's weight, empty if the weight is computed."""
    weight = node.args[1]
    if not isinstance(weight, Node) or weight.op != "get_attr":
        return ""
    return str(weight.target).rpartition(".")[0] or str(weight.target)


def layers_of(graph: GraphModule) -> dict[str, str]:
    """Name of a weighted node -> its layer; a layer that is called twice has several nodes."""
    return {node.name: layer_of(node) for node in weighted_nodes(graph)}


def why_float(node: Node, skip: Callable[[str], bool]) -> str:
    """Why a weighted layer stays in float32, empty if it is quantised."""
    if node.target not in WEIGHTED:
        return "only convolutions in one and two dimensions and dense layers are quantised"
    layer = layer_of(node)
    if not layer:
        return "its weight is computed in the forward pass"
    if skip(layer):
        return "skip names it"
    value = node.meta.get("val")
    if isinstance(value, torch.Tensor) and value.dtype != torch.float32:
        return f"it computes in {str(value.dtype).removeprefix('torch.')}"
    return ""
