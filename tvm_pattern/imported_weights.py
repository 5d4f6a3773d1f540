"""Prune the weights of a model that is a file: an ONNX model, or an exported program.

The pruner works on convolutions of torch. An ONNX model becomes a module; a program's convolutions
are mirrored by modules with the same weights, pruned there in one shot, and the weights written
back.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from .pruning import OnnxNetwork, PruneReport, oneshot
from .quantization.model import QuantizedModel

# Overloads of a 2-D convolution in an exported program; the weight is the second argument.
_CONVOLUTIONS = ("conv2d.default", "conv2d.padding", "convolution.default")


@dataclass
class _Stored:
    """The weight of a convolution, how it groups, and how to replace it."""

    weight: torch.Tensor
    groups: int
    replace: Callable[[torch.Tensor], Any]


def prune_at_once(
    model: Any, connectivity: float, connectivity_1x1: float = 1.0, group: int = 1
) -> tuple[Any, PruneReport]:
    """Prune a model of any kind in one shot.

    Parameters
    ----------
    model : torch.nn.Module, torch.export.ExportedProgram, pathlib.Path or onnx.ModelProto
        A module and a program are changed in place; a path is read, and its file left alone.
    connectivity, connectivity_1x1 : float
        Kernels before / after, of convolutions with several taps and of 1x1 ones; at least 1.
    group : int
        Filters that share kernels.

    Returns
    -------
    model : torch.nn.Module, torch.export.ExportedProgram or onnx.ModelProto
    report : tvm_pattern.pruning.PruneReport

    Raises
    ------
    ValueError
        If there is nothing to prune, the model is quantised, or as
        :func:`tvm_pattern.pruning.oneshot`.
    """
    if isinstance(model, QuantizedModel):
        raise ValueError(
            "the network is quantised, and its weights are integers; prune it before it is"
            " quantised"
        )
    settings = {
        "connectivity": connectivity,
        "connectivity_1x1": connectivity_1x1,
        "group": group,
    }
    if isinstance(model, nn.Module):
        return model, oneshot(model, **settings)  # type: ignore[arg-type]
    if not isinstance(model, torch.export.ExportedProgram):
        network = OnnxNetwork(model)
        report = oneshot(network, **settings)  # type: ignore[arg-type]
        return network.to_onnx(), report
    stored = _of_program(model)
    if not stored:
        raise ValueError(
            "the program has no 2-D convolution whose weight is stored in it, so there is nothing"
            " to prune; leave out the rate, or prune the model before it is exported"
        )
    mirror = nn.ModuleDict({name: _convolution(item) for name, item in stored.items()})
    report = oneshot(mirror, **settings)  # type: ignore[arg-type]
    for name, item in stored.items():
        item.replace(mirror[name].weight.detach())
    return model, report


def _convolution(stored: _Stored) -> nn.Conv2d:
    out_channels, in_channels, *kernel_size = stored.weight.shape
    conv = nn.Conv2d(
        in_channels * stored.groups,
        out_channels,
        (kernel_size[0], kernel_size[1]),
        groups=stored.groups,
        bias=False,
        device="meta",
    )
    conv.weight = nn.Parameter(stored.weight.clone(), requires_grad=True)
    return conv


def _module_name(name: str, taken: dict[str, _Stored]) -> str:
    """A name without dots, which separate modules, and that no other layer has."""
    plain = name.replace(".", "/") or "conv"
    return plain if plain not in taken else f"{plain}#{len(taken)}"


def _of_program(program: torch.export.ExportedProgram) -> dict[str, _Stored]:
    parameters = program.graph_signature.inputs_to_parameters
    found: dict[str, _Stored] = {}
    seen: set[str] = set()
    for node in program.graph.nodes:
        if node.op != "call_function" or not str(node.target).endswith(_CONVOLUTIONS):
            continue
        name = parameters.get(getattr(node.args[1], "name", ""))
        if name is None or name in seen or program.state_dict[name].dim() != 4:
            continue
        seen.add(name)
        weight = program.state_dict[name].detach()
        layer = _module_name(name.removesuffix(".weight"), found)
        groups = _groups(node, weight)
        found[layer] = _Stored(weight, groups, weight.copy_)
    return found


def _groups(node: Any, weight: torch.Tensor) -> int:
    """Groups of a convolution: its input has ``groups`` times the weight's in_channels."""
    return int(node.args[0].meta["val"].shape[1]) // int(weight.shape[1])
