"""Which operators of a quantised network have a form on bytes.

A *node* is what lies between bytes and bytes: ``dequantize`` of its inputs, an operator, additions,
at most some activations that limit a value, and the ``quantize`` of its result.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from tvm.ir import Call, Expr, Var

from topi_kernels.eligibility import is_depthwise
from topi_kernels.geometry import ConvGeometry
from topi_kernels.schedules.cpu_int8.isa import DotIsa
from topi_kernels.schedules.cpu_int8.packing import OverflowsInt32Error, check_sums
from topi_kernels.schedules.cpu_int8.plan import Int8Layer
from topi_kernels.schedules.cpu_int8.quantisation import Quantisation, byte_limits
from topi_kernels.schedules.cpu_int8.workload import has_lines, has_windows
from topi_kernels.structure import Structure, determine, over_all_channels

from ..dataflow import (
    constant,
    op_name,
    shape_of,
    static_shape,
)
from .qdq import (
    Limits,
    QuantisedWeight,
    Unsupported,
    activation_limits,
    is_dequantize,
    is_quantize,
    per_tensor,
    weight_of,
)

CONV = "relax.nn.conv2d"
MATMUL = "relax.matmul"


@dataclass
class Node:
    """One operator on bytes.

    Parameters
    ----------
    kind : str
        ``conv``, ``depthwise``, ``add``, ``max_pool``, ``global_pool`` or ``matmul``.
    images : tuple of Var
        Quantised images that it reads.
    sources : tuple of Quantisation
        Theirs.
    result : Quantisation or None
        None where the result is real.
    limits : Limits
    pad : int
        Rows and columns around the first image that it reads.
    """

    kind: str
    images: tuple[Var, ...]
    sources: tuple[Quantisation, ...]
    result: Quantisation | None
    limits: Limits = field(default_factory=Limits)
    pad: int = 0
    window: ConvGeometry | None = None
    keep_dims: bool = True
    conv: Call | None = None
    conv_var: Var | None = None
    layer: Int8Layer | None = None
    weight: QuantisedWeight | None = None

    @property
    def byte_limits(self) -> tuple[int, int]:
        """Least and largest byte of the result."""
        if self.result is None:
            raise ValueError("the node has a real result")
        return byte_limits(self.result, self.limits.low, self.limits.high)


def _pair(values: Any) -> tuple[int, int]:
    first, second = (int(v) for v in values)
    return first, second


class Matcher:
    """Finds the nodes of one block.

    Parameters
    ----------
    values : mapping
        What each variable is bound to.
    structures : mapping
        What the pruner assigned, by the name of the variable of a convolution.
    isa : DotIsa
    """

    def __init__(
        self,
        values: Mapping[Var, Expr],
        structures: Mapping[str, Structure],
        isa: DotIsa,
    ) -> None:
        self.values = values
        self.structures = structures
        self.isa = isa
        #: Why a convolution stays in float32, by its variable.
        self.reasons: dict[Var, str] = {}

    def value(self, expr: Any) -> Any:
        """What a variable is bound to; the expression itself if it is none."""
        return self.values.get(expr, expr) if isinstance(expr, Var) else expr

    def image_of(self, expr: Any) -> tuple[Var, Quantisation] | None:
        """The quantised image, and how it is read, that ``expr`` is the real form of."""
        call = self.value(expr)
        if not is_dequantize(call) or not isinstance(call.args[0], Var):
            return None
        if static_shape(call, 4) is None or not is_quantize(self.value(call.args[0])):
            return None
        quantisation = per_tensor(call)
        if quantisation != per_tensor(self.value(call.args[0])):
            raise Unsupported("an image is read with another scale than it was quantised with")
        return call.args[0], quantisation

    def node_of(self, var: Var) -> Node | None:
        """The node whose result is bound to ``var``, or None.

        Why a convolution is none is kept in :attr:`reasons`.
        """
        call = self.values[var]
        try:
            if is_quantize(call):
                return self._quantised(call)
            if op_name(call) == MATMUL:
                return self._matmul(call)
            return self._global_pool(call, var)
        except Unsupported as reason:
            left = var if op_name(call) == MATMUL else self._conv_behind(call)
            if left is not None:
                self.reasons[left] = str(reason)
            return None

    def _conv_behind(self, call: Any) -> Var | None:
        """The convolution that a value comes from, past additions and activations."""
        expr: Any = call.args[0] if len(call.args) else None
        for _ in range(8):
            value = self.value(expr)
            if op_name(value) == CONV:
                return expr if isinstance(expr, Var) else None
            if op_name(value) == "relax.add":
                sides = [a for a in value.args if not is_dequantize(self.value(a))]
                expr = next((a for a in sides if self.constant_of(a) is None), None)
            elif activation_limits(value) is not None:
                expr = value.args[0]
            else:
                return None
        return None

    def constant_of(self, expr: Any) -> np.ndarray | None:
        """Value of a constant, dequantised and reshaped where the graph says so."""
        call = self.value(expr)
        value = constant(call)
        if value is not None:
            return value
        if op_name(call) in ("relax.reshape", "relax.expand_dims"):
            inner = self.constant_of(call.args[0])
            shape = static_shape(call)
            return None if inner is None or shape is None else inner.reshape(shape)
        if is_dequantize(call):
            values, scale, zero_point = (constant(a) for a in call.args[:3])
            if values is None or scale is None or zero_point is None:
                return None
            axis = int(call.attrs.axis) % max(1, values.ndim)
            shifted = values.astype(np.int64) - _along(zero_point, axis, values.ndim)
            return (shifted * _along(scale, axis, values.ndim)).astype(np.float32)
        return None

    # Nodes --------------------------------------------------------------------------------------

    def _quantised(self, call: Call) -> Node | None:
        """A node that ends in ``quantize``."""
        if static_shape(call, 4) is None:
            return None
        limits, expr = Limits(), call.args[0]
        while (bounds := activation_limits(self.value(expr))) is not None:
            limits = limits.of_limited(*bounds)
            expr = self.value(expr).args[0]
        value = self.value(expr)
        if op_name(value) == "relax.nn.max_pool2d":
            return self._max_pool(value, per_tensor(call), limits)
        node = self._sum(expr, per_tensor(call), limits)
        if node is not None:
            return node
        return self._convolution(expr, per_tensor(call), limits)

    def _sum(self, expr: Any, result: Quantisation, limits: Limits) -> Node | None:
        """An image or the sum of two, brought to the scale of the result."""
        value = self.value(expr)
        parts = list(value.args) if op_name(value) == "relax.add" else [expr]
        images = [self.image_of(part) for part in parts]
        found = [image for image in images if image is not None]
        if len(found) < len(parts) or len({shape_of(var) for var, _ in found}) > 1:
            return None
        return Node("add", tuple(v for v, _ in found), tuple(q for _, q in found), result, limits)

    def _max_pool(self, call: Call, result: Quantisation, limits: Limits) -> Node | None:
        attrs, image = call.attrs, self.image_of(call.args[0])
        if image is None:
            return None
        padding = [int(p) for p in attrs.padding]
        layouts = (str(attrs.layout), str(attrs.out_layout))
        if layouts != ("NCHW", "NCHW") or any(int(d) != 1 for d in attrs.dilation):
            return None
        window = ConvGeometry(_pair(attrs.pool_size), _pair(attrs.strides), _pair(padding[:2]))
        size, out = shape_of(call.args[0])[2:], shape_of(call)[2:]
        seen = all(
            window.padding[i] < window.kernel_size[i]
            and (out[i] - 1) * window.stride[i] - window.padding[i] < size[i]
            for i in (0, 1)
        )
        var, source = image
        if not seen or result != source or limits != Limits():
            return None
        return Node("max_pool", (var,), (source,), result, window=window)

    def _matmul(self, call: Call) -> Node | None:
        """A product of bytes in disguise with a constant matrix."""
        source = self._disguised(call.args[0])
        if source is None or static_shape(call.args[0], 2) is None:
            return None
        matrix, transposed = self.value(call.args[1]), False
        if op_name(matrix) == "relax.permute_dims":
            axes = matrix.attrs.axes
            if axes is not None and [int(a) % 2 for a in axes] != [1, 0]:
                return None
            matrix, transposed = self.value(matrix.args[0]), True
        if not is_dequantize(matrix) or static_shape(matrix, 2) is None:
            return None
        weight = weight_of(matrix, axis=0 if transposed else 1)
        sums = weight.values.astype(np.int64).sum(axis=1)
        _check_sums(weight.values, (source.zero_point - self.isa.flip) * sums)
        return Node("matmul", (), (source,), None, weight=weight)

    def _disguised(self, expr: Any) -> Quantisation | None:
        """How a real tensor came from bytes, if it was at most reshaped since."""
        value = self.value(expr)
        while op_name(value) in ("relax.reshape", "relax.flatten", "relax.squeeze"):
            value = self.value(value.args[0])
        return per_tensor(value) if is_dequantize(value) else None

    def _global_pool(self, call: Any, out: Var) -> Node | None:
        name = op_name(call)
        if name == "relax.mean":
            if call.attrs.axis is None or static_shape(call.args[0], 4) is None:
                return None
            if {int(axis) % 4 for axis in call.attrs.axis} != {2, 3}:
                return None
            keep_dims = bool(call.attrs.keepdims)
        elif name == "relax.nn.adaptive_avg_pool2d":
            keep_dims = True
            if str(call.attrs.layout) != "NCHW" or static_shape(out, 4) is None:
                return None
            if shape_of(out)[2:] != (1, 1):
                return None
        else:
            return None
        image = self.image_of(call.args[0])
        if image is None:
            return None
        return Node("global_pool", (image[0],), (image[1],), None, keep_dims=keep_dims)

    def _convolution(self, expr: Any, result: Quantisation, limits: Limits) -> Node | None:
        """A convolution, its bias, and at most one image that is added."""
        residual: tuple[Var, Quantisation] | None = None
        terms: list[np.ndarray] = []
        while op_name(value := self.value(expr)) == "relax.add":
            rest = None
            for side, other in (value.args, reversed(value.args)):
                added = self._channel_values(other, shape_of(value))
                image = self.image_of(other) if residual is None else None
                if added is not None:
                    terms.append(added)
                elif image is not None and shape_of(image[0]) == shape_of(value):
                    residual = image
                else:
                    continue
                rest = side
                break
            if rest is None:
                return None
            expr = rest
        if op_name(value) != CONV or not isinstance(expr, Var):
            return None
        bias = np.zeros(shape_of(value)[1], np.float32)
        for term in terms:
            bias = bias + term
        return self._conv_node(expr, value, bias, residual, result, limits)

    def _channel_values(self, expr: Any, shape: tuple[int, ...]) -> np.ndarray | None:
        """A constant that adds one value per channel, as float32 ``[channels]``."""
        value = self.constant_of(expr)
        if value is None or value.ndim > 4:
            return None
        batch, channels, *image = (1,) * (4 - value.ndim) + value.shape
        if batch != 1 or image != [1, 1] or channels not in (1, shape[1]):
            return None
        return np.broadcast_to(value.reshape(-1).astype(np.float32), (shape[1],)).copy()

    def _conv_node(
        self,
        var: Var,
        call: Call,
        bias: np.ndarray,
        residual: tuple[Var, Quantisation] | None,
        result: Quantisation,
        limits: Limits,
    ) -> Node | None:
        image = self.image_of(call.args[0])
        if image is None:
            raise Unsupported("its input is not quantised")
        weight = weight_of(self.value(call.args[1]))
        layer, pad = self._layer(var, call, weight, bias, (image[1], result), limits, residual)
        images = (image[0],) if residual is None else (image[0], residual[0])
        sources = (image[1],) if residual is None else (image[1], residual[1])
        depthwise = is_depthwise(int(call.attrs.groups), shape_of(call.args[0])[1])
        kind = "depthwise" if depthwise else "conv"
        return Node(
            kind, images, sources, result, limits, pad, conv=call, conv_var=var, layer=layer
        )

    def _layer(
        self,
        var: Var,
        call: Call,
        weight: QuantisedWeight,
        bias: np.ndarray,
        scales: tuple[Quantisation, Quantisation],
        limits: Limits,
        residual: tuple[Var, Quantisation] | None,
    ) -> tuple[Int8Layer, int]:
        """What is to be computed, and the padding that it reads."""
        attrs, groups = call.attrs, int(call.attrs.groups)
        layouts = (str(attrs.data_layout), str(attrs.kernel_layout), str(attrs.out_layout))
        if layouts != ("NCHW", "OIHW", "NCHW"):
            raise Unsupported(f"layouts {'/'.join(layouts)}; expected NCHW/OIHW/NCHW")
        padding = [int(p) for p in attrs.padding]
        geometry = ConvGeometry(
            _pair(weight.values.shape[2:]),
            _pair(attrs.strides),
            _pair(padding[:2]),
            _pair(attrs.dilation),
        )
        depthwise = is_depthwise(groups, shape_of(call.args[0])[1])
        if depthwise and residual is not None:
            raise Unsupported("an image is added to the result of a depthwise convolution")
        near = has_lines(geometry, self.isa) and not depthwise
        if not near and not has_windows(geometry, self.isa):
            raise Unsupported(
                f"a kernel of {geometry.kernel_size} with stride {geometry.stride} and dilation"
                f" {geometry.dilation} reaches further than one shuffle of bytes"
            )
        if geometry.kernel_size == (1, 1) and max(padding):
            raise Unsupported("a 1x1 convolution with padding has no schedule for bytes")
        structure = determine(weight.values, self.structures.get(str(var.name)))
        over = 1 if depthwise else groups
        layer = Int8Layer(
            weight=over_all_channels(weight.values, over),
            weight_scale=weight.scale,
            bias=bias,
            geometry=geometry,
            source=scales[0],
            result=scales[1],
            structure=Structure(over_all_channels(structure.kept, over), structure.source),
            low=limits.low,
            high=limits.high,
            residual=None if residual is None else residual[1],
        )
        _check_sums(layer.weight, layer.folded_bias(self.isa.flip))
        return layer, max(padding)


def _check_sums(weight: np.ndarray, start: np.ndarray) -> None:
    try:
        check_sums(weight, start)
    except OverflowsInt32Error as error:
        raise Unsupported(str(error)) from error


def _along(values: np.ndarray, axis: int, ndim: int) -> np.ndarray:
    """One value, or one for each place along an axis, ready to be broadcast."""
    if values.size == 1:
        return values.reshape((1,) * ndim)
    return values.reshape([-1 if i == axis else 1 for i in range(ndim)])
