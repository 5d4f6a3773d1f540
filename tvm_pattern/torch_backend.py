"""``torch.compile(model, backend="tvm_pattern")``.

Dynamo hands over a graph whose first inputs are the model's parameters. They are bound, so that
pruned weights are recognised, and the graph is compiled when it first runs on inputs of a shape;
other shapes are compiled beside it, and weights that changed take the place of what they were. What
cannot be compiled runs in torch, with a warning.
"""

from __future__ import annotations

import inspect
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import fx, nn

from relay_passes import targets

from .compiler import compile as compile_library
from .frontend.torch_state import version_of
from .library import Library
from .torch_module import refuse_gradients

_MODULES = re.compile(r"_modules\['([^']+)'\]")
_PARAMETER = re.compile(r"(?:_parameters|_buffers)\['([^']+)'\]")

# What torch gives is no option: the model and its inputs, in every size that comes.
_OPTIONS = tuple(
    name
    for name in inspect.signature(compile_library).parameters
    if name not in ("model", "example_inputs", "sizes")
)
# Elements of each weight that are looked at in every call.
_SAMPLES = 16


class EagerFallbackWarning(UserWarning):
    """A part of a model runs in torch, since it could not be compiled."""


def tvm_pattern(
    graph: fx.GraphModule,
    example_inputs: Sequence[Any],
    *,
    options: Mapping[str, Any] | None = None,
    mode: str | None = None,
) -> Callable[..., Any]:
    """The backend of ``torch.compile``, found by the name ``tvm_pattern``.

    Parameters
    ----------
    graph : torch.fx.GraphModule
    example_inputs : sequence
        One per input of the graph; parameters and buffers of the model are among them.
    options : mapping, optional
        Of :func:`tvm_pattern.compile`, by ``torch.compile(..., options={...})``: ``target``,
        ``tuning_log``, ``num_threads``, ``verify`` and the like.
    mode : str, optional
        There are none; ``options`` say what to do.

    Returns
    -------
    callable
        With the graph's inputs and outputs. Its ``libraries`` are those compiled so far.

    Raises
    ------
    ValueError
        For a mode, an option that ``compile`` does not have, or a target that there is not.
    """
    if mode is not None:
        raise ValueError(
            f"got mode={mode!r}; the backend tvm_pattern has no modes: leave it out, and say by"
            f" options={{...}} what to do ({', '.join(_OPTIONS)})"
        )
    options = dict(options or {})
    unknown = sorted(set(options) - set(_OPTIONS))
    if unknown:
        raise ValueError(f"got the options {unknown}; expected some of {', '.join(_OPTIONS)}")
    if "target" in options:
        targets.resolve(options["target"], options.get("host"))
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
        self._watched: dict[int, _Watched] = {}
        # By shapes and constants: the state of the weights that was compiled, and its library.
        self._compiled: dict[Any, tuple[Any, Library | None]] = {}
        # By shapes and constants: what changes its inputs or the model's state is left to torch.
        self._writes: dict[Any, bool] = {}

    @property
    def libraries(self) -> list[Library]:
        """Libraries of the shapes seen so far, each with its report."""
        return [library for _, library in self._compiled.values() if library is not None]

    @torch.compiler.disable
    def __call__(self, *arguments: Any) -> Any:
        refuse_gradients(arguments)
        key = tuple(
            (tuple(value.shape), value.dtype) if isinstance(value, torch.Tensor) else value
            for number, value in enumerate(arguments)
            if number not in self._names
        )
        if key not in self._writes:
            self._writes[key] = self._has_writes(arguments)
        if self._writes[key]:
            return self._graph(*arguments)
        state = [self._state(number, arguments[number]) for number in self._names]
        if key not in self._compiled or self._compiled[key][0] != state:
            self._compiled[key] = (state, self._compile(arguments))
        library = self._compiled[key][1]
        if library is None:
            return self._graph(*arguments)
        result = library(*self._inputs(arguments))
        outputs = result if isinstance(result, tuple) else (result,)
        if not isinstance(outputs[0], torch.Tensor):  # of a part that reads weights alone
            return tuple(map(torch.from_numpy, outputs))
        return outputs

    def _state(self, number: int, tensor: torch.Tensor) -> Any:
        """What tells a weight from what it was when it was compiled."""
        place = tensor.data_ptr()
        known = self._watched.get(number)
        if known is None or known.tensor is not tensor or known.place != place:
            known = self._watched[number] = _Watched(tensor)
        return (id(tensor), version_of(tensor), place, known.sample())

    def _inputs(self, arguments: Sequence[Any]) -> list[torch.Tensor]:
        return [
            value
            for number, value in enumerate(arguments)
            if number not in self._names and isinstance(value, torch.Tensor)
        ]

    def _has_writes(self, arguments: Sequence[Any]) -> bool:
        """Whether a run changes a tensor that it is given, which a library does not; said once."""
        # Leaving inference mode switches gradients on, so these are switched off inside.
        with torch.inference_mode(mode=False), torch.no_grad(), torch.random.fork_rng(devices=[]):
            given = [v.detach().clone() if isinstance(v, torch.Tensor) else v for v in arguments]
            before = [_version(copy) for copy in given]
            try:
                self._graph(*given)
            except (ValueError, TypeError, RuntimeError):
                return True  # torch says so to the caller
        if [_version(copy) for copy in given] == before and all(map(_is_same, arguments, given)):
            return False
        self._warn("it changes its inputs or the model's buffers, and a library changes nothing")
        return True

    def _warn(self, reason: str) -> None:
        warnings.warn(
            f"a part of the model with {len(list(self._graph.graph.nodes))} operations runs in"
            f" torch: {reason}",
            EagerFallbackWarning,
            stacklevel=4,
        )

    def _compile(self, arguments: Sequence[Any]) -> Library | None:
        inputs = self._inputs(arguments)
        bound = _Bound(self._graph, arguments, self._names).eval()
        try:
            with torch.no_grad(), torch.random.fork_rng(devices=[]):
                return compile_library(bound, tuple(inputs), **self._options)
        except (ValueError, TypeError, RuntimeError) as error:
            self._warn(str(error).strip().splitlines()[0])
            return None


def _version(value: Any) -> int | None:
    return version_of(value) if isinstance(value, torch.Tensor) else None


def _is_same(value: Any, copy: Any) -> bool:
    """Whether a copy still holds what the value does; batch norms write without a new version."""
    if not isinstance(value, torch.Tensor) or isinstance(value, nn.Parameter):
        return True
    return bool(((value == copy) | ((value != value) & (copy != copy))).all())


class _Watched:
    """Some elements of a weight, as they lie in memory.

    Changes by ``parameter.data`` leave no trace in torch's version of the parameter.
    """

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor, self.place = tensor, tensor.data_ptr()
        self._values = np.zeros(0)
        self._index: Any = slice(0)
        if tensor.device.type != "cpu" or not tensor.numel():
            return
        values = tensor.detach()
        if values.dtype == torch.bfloat16:  # numpy has none
            values = values.view(torch.int16)
        array = values.numpy()
        # Pruned weights are mostly zeros, which stay zero whatever happens to the others.
        places = np.flatnonzero(array)
        if not len(places):
            places = np.arange(array.size)
        chosen = places[:: -(-len(places) // _SAMPLES)]
        if array.flags.c_contiguous:
            self._values, self._index = array.reshape(-1), chosen
        else:
            self._values, self._index = array, np.unravel_index(chosen, array.shape)

    def sample(self) -> bytes:
        """The elements now."""
        return self._values[self._index].tobytes()


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
