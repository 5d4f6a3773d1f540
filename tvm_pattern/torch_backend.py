"""``torch.compile(model, backend="tvm_pattern")``.

Dynamo hands over a graph whose first inputs are the model's parameters. They are bound, so that
pruned weights are recognised, and the graph is compiled when it first runs on inputs of a shape;
other shapes are compiled beside it. What cannot be compiled runs in torch, with a warning.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx, nn

from .compiler import compile as compile_library
from .library import Library
from .torch_module import refuse_gradients

_MODULES = re.compile(r"_modules\['([^']+)'\]")
_PARAMETER = re.compile(r"(?:_parameters|_buffers)\['([^']+)'\]")


class EagerFallbackWarning(UserWarning):
    """A part of a model runs in torch, since it could not be compiled."""


def tvm_pattern(
    graph: fx.GraphModule, example_inputs: Sequence[Any], **options: Any
) -> Callable[..., Any]:
    """The backend of ``torch.compile``, found by the name ``tvm_pattern``.

    Parameters
    ----------
    graph : torch.fx.GraphModule
    example_inputs : sequence
        One per input of the graph; parameters and buffers of the model are among them.
    **options
        Of :func:`tvm_pattern.compile`, by ``torch.compile(..., options={...})``: ``target``,
        ``tuning_log``, ``num_threads``, ``verify``.

    Returns
    -------
    callable
        With the graph's inputs and outputs. Its ``libraries`` are those compiled so far.
    """
    return CompiledGraph(graph, example_inputs, options)


class CompiledGraph:
    """One graph of dynamo, compiled for each shape that it is called with."""

    def __init__(
        self, graph: fx.GraphModule, example_inputs: Sequence[Any], options: dict[str, Any]
    ) -> None:
        self._graph = graph
        self._options = options
        places = [node for node in graph.graph.nodes if node.op == "placeholder"]
        self._names = {
            number: _name_of(node)
            for number, (node, value) in enumerate(zip(places, example_inputs, strict=True))
            if _is_state(node, value)
        }
        self._compiled: dict[Any, Library | None] = {}

    @property
    def libraries(self) -> list[Library]:
        """Libraries of the shapes seen so far, each with its report."""
        return [library for library in self._compiled.values() if library is not None]

    @torch.compiler.disable
    def __call__(self, *arguments: Any) -> Any:
        refuse_gradients(arguments)
        key = tuple(self._key(number, value) for number, value in enumerate(arguments))
        if key not in self._compiled:
            self._compiled[key] = self._compile(arguments)
        library = self._compiled[key]
        if library is None:
            return self._graph(*arguments)
        result = library(*self._inputs(arguments))
        outputs = result if isinstance(result, tuple) else (result,)
        if not isinstance(outputs[0], torch.Tensor):  # of a part that reads weights alone
            return tuple(map(torch.from_numpy, outputs))
        return outputs

    def _key(self, number: int, value: Any) -> Any:
        """What a compiled library depends on: shapes, constants, and the state of the weights."""
        if not isinstance(value, torch.Tensor):
            return value
        if number in self._names:
            return (id(value), value._version)
        return (tuple(value.shape), value.dtype)

    def _inputs(self, arguments: Sequence[Any]) -> list[torch.Tensor]:
        return [
            value
            for number, value in enumerate(arguments)
            if number not in self._names and isinstance(value, torch.Tensor)
        ]

    def _compile(self, arguments: Sequence[Any]) -> Library | None:
        inputs = self._inputs(arguments)
        bound = _Bound(self._graph, arguments, self._names).eval()
        try:
            with torch.no_grad():
                return compile_library(bound, tuple(inputs), **self._options)
        except (ValueError, TypeError, RuntimeError) as error:
            reason = str(error).strip().splitlines()[0]
            warnings.warn(
                f"a part of the model with {len(list(self._graph.graph.nodes))} operations runs in"
                f" torch: {reason}",
                EagerFallbackWarning,
                stacklevel=2,
            )
            return None


class _Bound(nn.Module):
    """The graph with everything bound that is no activation."""

    def __init__(
        self, graph: fx.GraphModule, arguments: Sequence[Any], names: dict[int, str]
    ) -> None:
        super().__init__()
        self._graph = [graph]  # not a child: its parameters are those below
        self._fixed: dict[int, Any] = {}
        self._places: dict[int, tuple[str, str]] = {}
        for number, value in enumerate(arguments):
            if number in names:
                self._places[number] = self._keep(names[number], value)
            elif not isinstance(value, torch.Tensor):
                self._fixed[number] = value
        self._count = len(arguments)

    def _keep(self, name: str, value: torch.Tensor) -> tuple[str, str]:
        """Register a tensor under the model's own name, which the report then has."""
        *path, last = name.split(".")
        parent: nn.Module = self
        for part in path:
            if part not in parent._modules:
                parent.add_module(part, nn.Module())
            parent = parent.get_submodule(part)
        if isinstance(value, nn.Parameter):
            parent.register_parameter(last, value)
        else:
            parent.register_buffer(last, value)
        return ".".join(path), last

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        rest = iter(inputs)
        arguments = []
        for number in range(self._count):
            if number in self._places:
                path, last = self._places[number]
                arguments.append(getattr(self.get_submodule(path), last))
            else:
                arguments.append(self._fixed[number] if number in self._fixed else next(rest))
        return tuple(self._graph[0](*arguments))


def _is_state(node: fx.Node, value: Any) -> bool:
    """Whether an input of a graph is a parameter or buffer of the model."""
    if isinstance(value, nn.Parameter):
        return True
    return isinstance(value, torch.Tensor) and _PARAMETER.search(_source(node)) is not None


def _source(node: fx.Node) -> str:
    argument = node.meta.get("grapharg")
    name = getattr(getattr(argument, "source", None), "name", "")
    return str(name() if callable(name) else name)


def _name_of(node: fx.Node) -> str:
    """``layer1.0.weight`` from how dynamo reaches the tensor; else the input's own name."""
    source = _source(node)
    last = _PARAMETER.search(source)
    if last is None:
        return node.name
    return ".".join([*_MODULES.findall(source), last[1]])
