"""ONNX files as torch modules whose convolutions can be pruned, and written back.

Convolutions run in torch, so that everything that prunes ``nn.Conv2d`` works on them. What lies
between them runs in ONNX Runtime, in as few pieces as the graph allows.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from ..atomic import write_file
from ..onnx_files import read_onnx
from .config import ConfigError
from .modules import convolutions
from .onnx_graph import Graph, Place, as_tensor

if TYPE_CHECKING:
    from onnx import ModelProto

_LIMIT = 2**31


class OnnxNetwork(nn.Module):
    """A float ONNX model as a module in evaluation mode.

    >>> network = OnnxNetwork("model.onnx")
    >>> report = oneshot(network, connectivity=3.6)
    >>> network.save("pruned.onnx")

    2-D convolutions with float32 weights are ``nn.Conv2d`` children, named as their weights are
    (``model.0.conv`` for ``model.0.conv.weight``) or else as their nodes. Others, with the reason
    in ``left_dense``, stay with ONNX Runtime. Gradients end at the pieces that ONNX Runtime runs.

    Parameters
    ----------
    model : str, os.PathLike or onnx.ModelProto
        Not changed.

    Attributes
    ----------
    left_dense : dict of str to str
        Names of convolutions that are no children, and why.

    Raises
    ------
    ConfigError
        If the file is missing or damaged, onnx is not installed, or there is nothing to prune.
    """

    def __init__(self, model: str | os.PathLike[str] | ModelProto) -> None:
        super().__init__()
        self._graph = Graph(_read(model), type(self))
        self.left_dense = self._graph.left
        weights: dict[str, nn.Parameter] = {}
        for name, place in self._graph.convs.items():
            conv = place.module(self._graph.arrays)
            # Nodes that share a weight go on sharing it.
            conv.weight = weights.setdefault(place.weight, conv.weight)
            self._insert(name, conv)
        if not self._graph.convs:
            reasons = "; ".join(f"{name}: {why}" for name, why in self.left_dense.items())
            raise ConfigError(
                "the ONNX model has no convolution that could be pruned"
                + (f" ({reasons})" if reasons else "")
            )
        self.eval()

    @property
    def inputs(self) -> list[str]:
        """Names of the inputs, in order."""
        return list(self._graph.inputs)

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, ...]:
        """Outputs of the model, a tuple if there are several.

        Raises
        ------
        ValueError
            If the number of inputs or a size of one is another.
        ConfigError
            If ONNX Runtime is not installed.
        """
        walk = self.walk(*inputs)
        while True:
            try:
                next(walk)
            except StopIteration as end:
                outputs: tuple[torch.Tensor, ...] = end.value
                return outputs[0] if len(outputs) == 1 else outputs

    def walk(
        self, *inputs: torch.Tensor
    ) -> Generator[tuple[nn.Module, torch.Tensor], None, tuple[torch.Tensor, ...]]:
        """A forward that halts before each convolution: yields it and its input, returns outputs.

        Raises
        ------
        ValueError, ConfigError
            As :meth:`forward`, at the first step.
        """
        graph = self._graph
        if len(inputs) != len(graph.inputs):
            raise ValueError(
                f"got {len(inputs)} inputs, the ONNX model has {len(graph.inputs)}"
                f" ({', '.join(graph.inputs)})"
            )
        for (name, sizes), value in zip(graph.inputs.items(), inputs, strict=True):
            _check_sizes(name, sizes, list(value.shape))
        values: dict[str, Any] = dict(zip(graph.inputs, inputs, strict=True))
        for step in graph.steps:
            if isinstance(step, Place):
                conv = self.get_submodule(step.name)
                image = step.image(values)
                yield conv, image
                values[step.output] = conv(image)
            else:
                values.update(step.run(values))
            for name in step.last_uses:
                del values[name]
        return tuple(as_tensor(values[name]) for name in graph.outputs)

    def to_onnx(self) -> ModelProto:
        """The model with the present weights and biases of its convolutions."""
        from onnx import numpy_helper

        model = copy.deepcopy(self._graph.model)
        arrays: dict[str, np.ndarray] = {}
        layers = convolutions(self)
        for name, place in self._graph.convs.items():
            conv = layers[name]
            arrays[place.weight] = conv.weight.detach().cpu().numpy()
            if conv.bias is not None:
                arrays[place.bias] = conv.bias.detach().cpu().numpy()
        for tensor in model.graph.initializer:
            if tensor.name in arrays:
                array = np.ascontiguousarray(arrays[tensor.name])
                tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
        return model

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write :meth:`to_onnx`; the file appears whole or not at all.

        Raises
        ------
        ConfigError
            If the model does not fit one file (2 GB).
        """
        model = self.to_onnx()
        size = model.ByteSize()
        if size >= _LIMIT:
            raise ConfigError(
                f"the model has {size} bytes and an ONNX file at most {_LIMIT - 1}; save"
                " to_onnx() with onnx.save_model(..., save_as_external_data=True)"
            )
        write_file(Path(path), model.SerializeToString())

    def _insert(self, name: str, conv: nn.Conv2d) -> None:
        parent: nn.Module = self
        *path, last = name.split(".")
        for part in path:
            if part not in parent._modules:
                parent.add_module(part, nn.Module())
            parent = parent.get_submodule(part)
        parent.add_module(last, conv)


def _read(model: str | os.PathLike[str] | ModelProto) -> ModelProto:
    try:
        import onnx
    except ImportError as error:
        raise ConfigError("reading an ONNX model needs onnx: pip install onnx") from error
    if isinstance(model, onnx.ModelProto):
        return copy.deepcopy(model)
    try:
        return read_onnx(Path(model))
    except ValueError as error:
        raise ConfigError(str(error)) from error


def _check_sizes(name: str, sizes: list[int | None] | None, got: list[int]) -> None:
    """Refuse what the graph was not made for: constants in it may hold its sizes."""
    if sizes is None:
        return
    if len(got) != len(sizes) or any(s not in (None, g) for s, g in zip(sizes, got, strict=True)):
        raise ValueError(
            f"input {name!r} has shape {got}, the ONNX model expects"
            f" {['?' if s is None else s for s in sizes]}; give inputs of that shape and batches of"
            " that size, or export the model with open sizes"
        )
