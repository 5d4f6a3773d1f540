"""ONNX files as torch modules whose convolutions can be pruned, and written back.

Convolutions run in torch, so that everything that prunes ``nn.Conv2d`` works on them. What lies
between them runs in ONNX Runtime, in as few pieces as the graph allows.
"""

from __future__ import annotations

import copy
import os
from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from ..atomic import write_file
from .config import ConfigError

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto, TensorProto

_LIMIT = 2**31
_WEIGHT = ".weight"


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
        self._graph = _Graph(_read(model))
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
        return self._graph.inputs

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, ...]:
        """Outputs of the model, a tuple if there are several.

        Raises
        ------
        ValueError
            If the number of inputs is another.
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
        values: dict[str, Any] = dict(zip(graph.inputs, inputs, strict=True))
        for step in graph.steps:
            if isinstance(step, _Place):
                conv = self.get_submodule(step.name)
                image = step.image(values)
                yield conv, image
                values[step.output] = conv(image)
            else:
                values.update(step.run(values))
            for name in step.last_uses:
                del values[name]
        return tuple(_as_tensor(values[name]) for name in graph.outputs)

    def to_onnx(self) -> ModelProto:
        """The model with the present weights and biases of its convolutions."""
        from onnx import numpy_helper

        model = copy.deepcopy(self._graph.model)
        arrays: dict[str, np.ndarray] = {}
        for name, place in self._graph.convs.items():
            conv = self.get_submodule(name)
            assert isinstance(conv, nn.Conv2d)
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


# The graph --------------------------------------------------------------------------------------


class _Graph:
    """What is the same for every copy of a network: the file and the order of the work."""

    def __init__(self, model: ModelProto) -> None:
        from onnx import numpy_helper

        self.model = model
        graph = model.graph
        _constants_to_initializers(graph)
        _give_own_biases(graph)
        readers = Counter(name for node in graph.node for name in _used_by(node))
        as_weights = Counter(node.input[1] for node in graph.node if node.op_type == "Conv")
        outputs = {v.name for v in graph.output}
        self._read_elsewhere = {
            name for name, count in as_weights.items() if readers[name] > count or name in outputs
        }
        self.arrays = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
        self.inputs = [v.name for v in graph.input if v.name not in self.arrays]
        self.outputs = [v.name for v in graph.output]
        self.convs: dict[str, _Place] = {}
        self.left: dict[str, str] = {}
        self.steps: list[_Place | _Piece] = self._steps(list(graph.node))
        self._forget_early()

    def __deepcopy__(self, memo: dict[int, Any]) -> _Graph:
        return self  # nothing of it changes; the weights are the module's

    def _steps(self, nodes: list[NodeProto]) -> list[_Place | _Piece]:
        """Convolutions, and between them all that can be computed until the next one."""
        steps: list[_Place | _Piece] = []
        waiting: list[NodeProto] = []
        for node in nodes:
            place = self._place(node) if node.op_type == "Conv" else None
            if place is None:
                waiting.append(node)
                continue
            needed, waiting = _split(waiting, place.input)
            if needed:
                steps.append(_Piece(needed, self.model, self.arrays))
            steps.append(place)
        if waiting:
            steps.append(_Piece(waiting, self.model, self.arrays))
        return steps

    def _place(self, node: NodeProto) -> _Place | None:
        name = _name_of(node)
        weight = self.arrays.get(node.input[1])
        bias = node.input[2] if len(node.input) > 2 else ""
        reason = _why_left(node, weight, self.arrays.get(bias) if bias else None, bias)
        if node.input[1] in self._read_elsewhere:
            reason = "its weight is read by other operators too"
        if reason is not None:
            self.left[name] = reason
            return None
        while self._is_taken(name):
            name = name.replace(".", "_") + "_"
        self.convs[name] = _Place(name, node)
        return self.convs[name]

    def _is_taken(self, name: str) -> bool:
        """Whether no child can have the name."""
        first, *others = name.split(".")
        if hasattr(OnnxNetwork, first) or any(hasattr(nn.Module, part) for part in others):
            return True
        return any(f"{n}.".startswith(f"{name}.") or name.startswith(f"{n}.") for n in self.convs)

    def _forget_early(self) -> None:
        """Tell each step after which values nobody needs any more."""
        known: set[str] = {*self.inputs}
        for step in self.steps:
            known.update(step.made)
        needed = set(self.outputs)
        for step in reversed(self.steps):
            step.last_uses = sorted((set(step.used) | set(step.made)) & known - needed)
            needed.update(step.used)
        for step in self.steps:
            if isinstance(step, _Piece):
                step.keep(needed | set(self.outputs))


def _split(nodes: list[NodeProto], wanted: str) -> tuple[list[NodeProto], list[NodeProto]]:
    """The nodes that ``wanted`` needs, in order, and the others."""
    names, needed, others = {wanted}, [], []
    for node in reversed(nodes):
        if names.isdisjoint(node.output):
            others.append(node)
        else:
            needed.append(node)
            names.update(_used_by(node))
    return needed[::-1], others[::-1]


def _used_by(node: NodeProto) -> Iterator[str]:
    """Names that a node reads, those of its subgraphs too."""
    yield from (name for name in node.input if name)
    for attribute in node.attribute:
        for graph in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else ())):
            inside = {v.name for v in graph.input} | {t.name for t in graph.initializer}
            for child in graph.node:
                yield from (name for name in _used_by(child) if name not in inside)
                inside.update(child.output)
            yield from (v.name for v in graph.output if v.name not in inside)


class _Place:
    """A convolution between values of the graph."""

    def __init__(self, name: str, node: NodeProto) -> None:
        from onnx import helper

        self.name = name
        self.input, self.weight = node.input[0], node.input[1]
        self.bias = node.input[2] if len(node.input) > 2 else ""
        self.output = node.output[0]
        self.used, self.made = [self.input], [self.output]
        self.last_uses: list[str] = []
        given = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        self.stride = tuple(given.get("strides", (1, 1)))
        self.dilation = tuple(given.get("dilations", (1, 1)))
        self.groups = int(given.get("group", 1))
        pads = given.get("pads", (0, 0, 0, 0))
        if given.get("auto_pad", b"NOTSET") == b"VALID":
            pads = (0, 0, 0, 0)
        top, left, bottom, right = pads
        even = top == bottom and left == right
        self.padding = (top, left) if even else (0, 0)
        self.before = [] if even else [left, right, top, bottom]

    def module(self, arrays: Mapping[str, np.ndarray]) -> nn.Conv2d:
        weight = arrays[self.weight]
        conv = nn.Conv2d(
            weight.shape[1] * self.groups,
            weight.shape[0],
            weight.shape[2:],
            self.stride,
            self.padding,
            self.dilation,
            self.groups,
            bias=bool(self.bias),
        )
        with torch.no_grad():
            conv.weight.copy_(torch.tensor(weight))
            if conv.bias is not None:
                conv.bias.copy_(torch.tensor(arrays[self.bias]))
        return conv

    def image(self, values: Mapping[str, Any]) -> torch.Tensor:
        """The input, padded where the convolution cannot pad it by itself."""
        value: torch.Tensor = _as_tensor(values[self.input])
        return F.pad(value, self.before) if self.before else value


class _Piece:
    """Nodes that ONNX Runtime runs at once."""

    def __init__(
        self, nodes: list[NodeProto], model: ModelProto, arrays: Mapping[str, np.ndarray]
    ) -> None:
        self.nodes, self.model = nodes, model
        self.made = [name for node in nodes for name in node.output if name]
        read = dict.fromkeys(name for node in nodes for name in _used_by(node))
        self.used = [name for name in read if name not in self.made and name not in arrays]
        self.stored = {name for name in read if name in arrays}
        self.last_uses: list[str] = []
        self._session: Any = None

    def keep(self, needed: Iterable[str]) -> None:
        """Hand out only what another step or the caller needs."""
        wanted = set(needed)
        dropped = {name for name in self.made if name not in wanted}
        self.made = [name for name in self.made if name in wanted]
        self.last_uses = [name for name in self.last_uses if name not in dropped]

    def run(self, values: Mapping[str, Any]) -> dict[str, Any]:
        feeds = {name: _as_array(values[name]) for name in self.used}
        if self._session is None:
            self._session = self._start(feeds)
        return dict(zip(self.made, self._session.run(self.made, feeds), strict=True))

    def _start(self, feeds: Mapping[str, np.ndarray]) -> Any:
        from onnx import helper

        lists = [name for name, value in feeds.items() if not isinstance(value, np.ndarray)]
        if lists:
            raise ConfigError(
                f"{', '.join(lists)} between convolutions is a sequence, which cannot be handed"
                " on; prune the model where it was trained"
            )
        inputs = [
            helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(a.dtype), None)
            for n, a in feeds.items()
        ]
        outputs = [helper.make_empty_tensor_value_info(name) for name in self.made]
        stored = [t for t in self.model.graph.initializer if t.name in self.stored]
        graph = helper.make_graph(self.nodes, "piece", inputs, outputs, stored)
        piece = helper.make_model(
            graph,
            opset_imports=self.model.opset_import,
            ir_version=self.model.ir_version,
            functions=self.model.functions,
        )
        return _session_of(piece)


def _session_of(piece: ModelProto) -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise ConfigError(
            "running an ONNX model needs ONNX Runtime: pip install onnxruntime"
        ) from error
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = torch.get_num_threads()
    return onnxruntime.InferenceSession(
        piece.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


# Parts ------------------------------------------------------------------------------------------


def _read(model: str | os.PathLike[str] | ModelProto) -> ModelProto:
    try:
        import onnx
        from google.protobuf.message import DecodeError
    except ImportError as error:
        raise ConfigError("reading an ONNX model needs onnx: pip install onnx") from error
    if isinstance(model, onnx.ModelProto):
        return copy.deepcopy(model)
    path = Path(model)
    if not path.is_file():
        raise ConfigError(f"no such file: {path}; expected the path of an ONNX model")
    try:
        read = onnx.load(path)
        onnx.checker.check_model(str(path))
    except (DecodeError, OSError, ValueError, onnx.checker.ValidationError) as error:
        raise ConfigError(f"{path} is no readable ONNX model: {error}; export it again") from error
    return read


def _constants_to_initializers(graph: Any) -> None:
    """Weights of ``Constant`` nodes where other weights are."""
    rest = []
    for node in graph.node:
        value = node.attribute[0] if node.op_type == "Constant" and node.attribute else None
        if value is not None and value.name == "value":
            tensor: TensorProto = graph.initializer.add()
            tensor.CopyFrom(value.t)
            tensor.name = node.output[0]
        else:
            rest.append(node)
    del graph.node[:]
    graph.node.extend(rest)


def _give_own_biases(graph: Any) -> None:
    """A copy of its own for each convolution whose bias others read: it may change."""
    readers = Counter(name for node in graph.node for name in _used_by(node))
    stored = {t.name: t for t in graph.initializer}
    for number, node in enumerate(graph.node):
        bias = node.input[2] if node.op_type == "Conv" and len(node.input) > 2 else ""
        if bias in stored and readers[bias] > 1:
            tensor = graph.initializer.add()
            tensor.CopyFrom(stored[bias])
            tensor.name = node.input[2] = f"{bias}_of_conv_{number}"


def _name_of(node: NodeProto) -> str:
    weight = node.input[1]
    if weight.endswith(_WEIGHT) and all(weight.removesuffix(_WEIGHT).split(".")):
        return weight.removesuffix(_WEIGHT)
    name = (node.name or node.output[0]).strip("/").replace(".", "_")
    return name or "conv"


def _why_left(
    node: NodeProto, weight: np.ndarray | None, bias: np.ndarray | None, bias_name: str
) -> str | None:
    """Why a convolution cannot be a child, or None."""
    if weight is None:
        return "its weight is computed by the graph"
    if weight.ndim != 4:
        return f"it is {weight.ndim - 2}-D"
    if weight.dtype != np.float32:
        return f"its weight is {weight.dtype}, expected float32"
    if bias_name and bias is None:
        return "its bias is computed by the graph"
    padded = next((a.s for a in node.attribute if a.name == "auto_pad"), b"NOTSET")
    if padded not in (b"NOTSET", b"VALID"):
        return f"its padding is {padded.decode()}, which depends on the size of the image"
    return None


def _as_tensor(value: Any) -> Any:
    return torch.from_numpy(value) if isinstance(value, np.ndarray) else value


def _as_array(value: Any) -> Any:
    return value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else value
