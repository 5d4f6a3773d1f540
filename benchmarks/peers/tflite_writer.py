"""Writes the torch CNNs of the benchmarks as TensorFlow Lite models.

Batch norms are folded, activations fused and everything is laid out channels-last, which is how
such a model ships. It knows the operators of plain classification networks and refuses others by
name.
"""

from __future__ import annotations

import importlib
import operator
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import fx, nn
from torch.fx.experimental.optimization import fuse
from torch.fx.passes.shape_prop import ShapeProp

_ACTIVATIONS = {nn.ReLU: "RELU", nn.ReLU6: "RELU6"}
_ADDITIONS = (operator.add, operator.iadd, torch.add)


def to_tflite(model: nn.Module, example: torch.Tensor) -> bytearray:
    """TFLite flatbuffer of ``model`` for the input shape of ``example`` (batch included).

    The model's input and output are channels-last; a classifier's output is ``[N, classes]``.

    Raises
    ------
    ValueError
        If the model uses an operator this file does not know, or cannot be traced.
    """
    return _Writer(model, example).finish()


def _pair(value: int | Sequence[int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (int(value[0]), int(value[1]))


class _Writer:
    def __init__(self, model: nn.Module, example: torch.Tensor) -> None:
        self._schema: Any = importlib.import_module("ai_edge_litert.schema_py_generated")
        self._flatbuffers: Any = importlib.import_module("flatbuffers")
        self._tensors: list[Any] = []
        self._buffers: list[Any] = [self._schema.BufferT()]
        self._operators: list[Any] = []
        self._codes: list[int] = []
        self._index: dict[fx.Node, int] = {}
        self._taken: set[fx.Node] = set()
        try:
            self._graph = fuse(fx.symbolic_trace(model))
        except fx.proxy.TraceError as error:
            raise ValueError(f"the model cannot be traced: {error}") from error
        with torch.inference_mode():
            ShapeProp(self._graph).propagate(example)
        self._modules = dict(self._graph.named_modules())

    # -- tensors and operators ----------------------------------------------------------------

    def _tensor(self, shape: Sequence[int], data: np.ndarray | None = None) -> int:
        tensor = self._schema.TensorT()
        tensor.shape = [int(n) for n in shape]
        tensor.type = self._schema.TensorType.FLOAT32
        tensor.name = f"t{len(self._tensors)}"
        tensor.buffer = 0
        if data is not None:
            if data.dtype == np.int32:
                tensor.type = self._schema.TensorType.INT32
            buffer = self._schema.BufferT()
            buffer.data = np.frombuffer(np.ascontiguousarray(data).tobytes(), np.uint8)
            tensor.buffer = len(self._buffers)
            self._buffers.append(buffer)
        self._tensors.append(tensor)
        return len(self._tensors) - 1

    def _constant(self, data: np.ndarray) -> int:
        return self._tensor(data.shape, data)

    def _emit(
        self, name: str, inputs: Sequence[int], output: int, options: str, **values: Any
    ) -> None:
        code = getattr(self._schema.BuiltinOperator, name)
        if code not in self._codes:
            self._codes.append(code)
        op = self._schema.OperatorT()
        op.opcodeIndex = self._codes.index(code)
        op.inputs, op.outputs = list(inputs), [output]
        op.builtinOptionsType = getattr(self._schema.BuiltinOptions, options)
        op.builtinOptions = getattr(self._schema, options + "T")()
        for key, value in values.items():
            setattr(op.builtinOptions, key, value)
        self._operators.append(op)

    @staticmethod
    def _shape(node: fx.Node) -> tuple[int, ...]:
        """Shape of a node's value, channels-last."""
        shape = tuple(node.meta["tensor_meta"].shape)
        return (shape[0], *shape[2:], shape[1]) if len(shape) == 4 else shape

    def _activation(self, node: fx.Node) -> tuple[int, fx.Node]:
        """Activation to fuse into ``node``, and the node whose value that makes."""
        users = list(node.users)
        if len(users) == 1 and users[0].op == "call_module":
            name = _ACTIVATIONS.get(type(self._modules[users[0].target]))
            if name:
                self._taken.add(users[0])
                return getattr(self._schema.ActivationFunctionType, name), users[0]
        return self._schema.ActivationFunctionType.NONE, node

    def _result(self, node: fx.Node) -> int:
        self._index[node] = self._tensor(self._shape(node))
        return self._index[node]

    # -- one method per operator --------------------------------------------------------------

    def _padded(self, node: fx.Node, padding: tuple[int, int]) -> int:
        """Zero padding as an operator of its own; XNNPACK merges it into the convolution."""
        source = self._index[node]
        if padding == (0, 0):
            return source
        n, h, w, c = self._shape(node)
        (ph, pw) = padding
        output = self._tensor((n, h + 2 * ph, w + 2 * pw, c))
        amounts = np.array([[0, 0], [ph, ph], [pw, pw], [0, 0]], np.int32)
        self._emit("PAD", [source, self._constant(amounts)], output, "PadOptions")
        return output

    def _window(self, node: fx.Node, conv: Any) -> tuple[int, int]:
        """Input tensor and padding mode: SAME where it means the same as torch's padding."""
        source = node.args[0]
        kernel, stride, padding = _pair(conv.kernel_size), _pair(conv.stride), _pair(conv.padding)
        if stride == (1, 1) and all(2 * p == k - 1 for p, k in zip(padding, kernel, strict=True)):
            return self._index[source], self._schema.Padding.SAME
        return self._padded(source, padding), self._schema.Padding.VALID

    def _conv(self, node: fx.Node, conv: nn.Conv2d) -> None:
        if isinstance(conv.padding, str) or conv.dilation != (1, 1):
            raise ValueError(f"{node.name}: string padding and dilation are not written")
        depthwise = conv.groups > 1
        if depthwise and conv.groups != conv.in_channels:
            raise ValueError(f"{node.name}: grouped convolutions other than depthwise not written")
        source, padding = self._window(node, conv)
        weight = conv.weight.detach().numpy()
        weight = weight.transpose(1, 2, 3, 0) if depthwise else weight.transpose(0, 2, 3, 1)
        bias = np.zeros(conv.out_channels, np.float32)
        if conv.bias is not None:
            bias = conv.bias.detach().numpy()
        activation, result = self._activation(node)
        options: dict[str, Any] = {
            "padding": padding,
            "strideH": conv.stride[0],
            "strideW": conv.stride[1],
            "dilationHFactor": 1,
            "dilationWFactor": 1,
            "fusedActivationFunction": activation,
        }
        if depthwise:
            options["depthMultiplier"] = conv.out_channels // conv.in_channels
        self._emit(
            "DEPTHWISE_CONV_2D" if depthwise else "CONV_2D",
            [source, self._constant(weight), self._constant(bias)],
            self._result(result),
            "DepthwiseConv2DOptions" if depthwise else "Conv2DOptions",
            **options,
        )

    def _linear(self, node: fx.Node, linear: nn.Linear) -> None:
        source = node.args[0]
        weight = linear.weight.detach().numpy()
        flattened = self._flattened_from(source)
        if flattened is not None:
            # torch flattened [C, H, W]; here the same values lie as [H, W, C].
            _, h, w, c = self._shape(flattened)
            weight = weight.reshape(-1, c, h, w).transpose(0, 2, 3, 1).reshape(len(weight), -1)
        activation, result = self._activation(node)
        self._emit(
            "FULLY_CONNECTED",
            [
                self._index[source],
                self._constant(weight),
                self._constant(linear.bias.detach().numpy()),
            ],
            self._result(result),
            "FullyConnectedOptions",
            fusedActivationFunction=activation,
        )

    def _flattened_from(self, node: fx.Node) -> fx.Node | None:
        """The 4-D value that ``node`` is the flattening of, if it is one."""
        while node.op == "call_module" and isinstance(self._modules[node.target], nn.Dropout):
            node = node.args[0]
        if node.target is torch.flatten and len(self._shape(node.args[0])) == 4:
            return node.args[0]
        return None

    def _max_pool(self, node: fx.Node, pool: nn.MaxPool2d) -> None:
        source, padding = node.args[0], _pair(pool.padding)
        after_relu = source.op == "call_module" and type(self._modules[source.target]) is nn.ReLU
        if padding != (0, 0) and not after_relu:
            raise ValueError(f"{node.name}: padded max pooling is written only after a ReLU")
        (kh, kw), (sh, sw) = _pair(pool.kernel_size), _pair(pool.stride)
        self._emit(
            "MAX_POOL_2D",
            [self._padded(source, padding)],
            self._result(node),
            "Pool2DOptions",
            padding=self._schema.Padding.VALID,
            filterHeight=kh,
            filterWidth=kw,
            strideH=sh,
            strideW=sw,
        )

    def _average(self, node: fx.Node) -> None:
        source = node.args[0]
        if self._shape(node) == self._shape(source):
            self._index[node] = self._index[source]
        elif self._shape(node)[1:3] == (1, 1):
            axes = self._constant(np.array([1, 2], np.int32))
            inputs = [self._index[source], axes]
            self._emit("MEAN", inputs, self._result(node), "ReducerOptions", keepDims=True)
        else:
            raise ValueError(f"{node.name}: adaptive pooling is written only to 1x1")

    def _flatten(self, node: fx.Node) -> None:
        shape = np.array(self._shape(node), np.int32)
        self._emit(
            "RESHAPE",
            [self._index[node.args[0]], self._constant(shape)],
            self._result(node),
            "ReshapeOptions",
            newShape=shape,
        )

    def _add(self, node: fx.Node) -> None:
        activation, result = self._activation(node)
        self._emit(
            "ADD",
            [self._index[node.args[0]], self._index[node.args[1]]],
            self._result(result),
            "AddOptions",
            fusedActivationFunction=activation,
        )

    def _call(self, node: fx.Node) -> None:
        module = self._modules[node.target] if node.op == "call_module" else None
        if isinstance(module, nn.Conv2d):
            self._conv(node, module)
        elif isinstance(module, nn.Linear):
            self._linear(node, module)
        elif isinstance(module, nn.MaxPool2d):
            self._max_pool(node, module)
        elif isinstance(module, nn.Dropout):
            self._index[node] = self._index[node.args[0]]
        elif isinstance(module, nn.AdaptiveAvgPool2d) or (
            node.target is nn.functional.adaptive_avg_pool2d
        ):
            self._average(node)
        elif node.target is torch.flatten:
            self._flatten(node)
        elif node.target in _ADDITIONS:
            self._add(node)
        else:
            what = type(module).__name__ if module is not None else node.target
            raise ValueError(f"{node.name}: {what} is not among the operators written here")

    def _signature(self, inputs: Sequence[int], outputs: Sequence[int]) -> Any:
        """The names by which tools know inputs (x0, ...) and outputs (y0, ...)."""

        def named(letter: str, tensors: Sequence[int]) -> list[Any]:
            maps = []
            for number, tensor in enumerate(tensors):
                entry = self._schema.TensorMapT()
                entry.name, entry.tensorIndex = f"{letter}{number}", tensor
                maps.append(entry)
            return maps

        signature = self._schema.SignatureDefT()
        signature.signatureKey, signature.subgraphIndex = "serving_default", 0
        signature.inputs, signature.outputs = named("x", inputs), named("y", outputs)
        return signature

    def finish(self) -> bytearray:
        inputs, outputs = [], []
        for node in self._graph.graph.nodes:
            if node.op == "placeholder":
                inputs.append(self._result(node))
            elif node.op == "output":
                outputs.append(self._index[node.args[0]])
            elif node not in self._taken:
                self._call(node)
        graph = self._schema.SubGraphT()
        graph.tensors, graph.operators = self._tensors, self._operators
        graph.inputs, graph.outputs, graph.name = inputs, outputs, "main"
        model = self._schema.ModelT()
        model.version, model.description = 3, "benchmark"
        model.subgraphs, model.buffers = [graph], self._buffers
        model.signatureDefs = [self._signature(inputs, outputs)]
        model.operatorCodes = []
        for builtin in self._codes:
            code = self._schema.OperatorCodeT()
            code.builtinCode = code.deprecatedBuiltinCode = builtin
            code.version = 1
            model.operatorCodes.append(code)
        builder = self._flatbuffers.Builder(1 << 20)
        builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
        return builder.Output()
