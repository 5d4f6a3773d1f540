"""An ONNX graph cut at its convolutions: what lies between them runs in ONNX Runtime, in pieces."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from .config import ConfigError

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto, TensorProto

_WEIGHT = ".weight"


class Graph:
    """What is the same for every copy of a network: the file and the order of the work.

    Parameters
    ----------
    model : onnx.ModelProto
        Changed in place: constants become initializers, shared biases copies.
    taken : type
        Class of the network; its attributes are no names for children.

    Attributes
    ----------
    inputs : dict of str to list of int, or None
        Sizes of each input, in order; None for one that is open, or for all of them.
    convs : dict of str to Place
        Convolutions that run in torch, by name.
    left : dict of str to str
        Others, and why they stay.
    steps : list of Place or Piece
        In order of execution.
    """

    def __init__(self, model: ModelProto, taken: type[nn.Module]) -> None:
        from onnx import numpy_helper

        self._taken = taken

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
        given = [v for v in graph.input if v.name not in self.arrays]
        self.inputs = {v.name: _sizes(v) for v in given}
        self.outputs = [v.name for v in graph.output]
        self.convs: dict[str, Place] = {}
        self.left: dict[str, str] = {}
        self.steps: list[Place | Piece] = self._steps(list(graph.node))
        self._forget_early()

    def __deepcopy__(self, memo: dict[int, Any]) -> Graph:
        return self  # nothing of it changes; the weights are the module's

    def _steps(self, nodes: list[NodeProto]) -> list[Place | Piece]:
        """Convolutions, and between them all that can be computed until the next one."""
        steps: list[Place | Piece] = []
        waiting: list[NodeProto] = []
        for node in nodes:
            place = self._place(node) if node.op_type == "Conv" else None
            if place is None:
                waiting.append(node)
                continue
            needed, waiting = _split(waiting, place.input)
            if needed:
                steps.append(Piece(needed, self.model, self.arrays))
            steps.append(place)
        if waiting:
            steps.append(Piece(waiting, self.model, self.arrays))
        return steps

    def _place(self, node: NodeProto) -> Place | None:
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
        self.convs[name] = Place(name, node)
        return self.convs[name]

    def _is_taken(self, name: str) -> bool:
        """Whether no child can have the name."""
        first, *others = name.split(".")
        if hasattr(self._taken, first) or any(hasattr(nn.Module, part) for part in others):
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
            if isinstance(step, Piece):
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


class Place:
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
        value: torch.Tensor = as_tensor(values[self.input])
        return F.pad(value, self.before) if self.before else value


class Piece:
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


def _sizes(value: Any) -> list[int | None] | None:
    """Sizes of a graph's input."""
    tensor = value.type.tensor_type
    if not tensor.HasField("shape"):
        return None
    return [
        d.dim_value if d.HasField("dim_value") and d.dim_value > 0 else None
        for d in tensor.shape.dim
    ]


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


def as_tensor(value: Any) -> Any:
    return torch.from_numpy(value) if isinstance(value, np.ndarray) else value


def _as_array(value: Any) -> Any:
    return value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else value
