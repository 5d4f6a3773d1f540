"""LiftTo2D: 1-D convolutions and what stands between them -> images of height 1.

Preconditions: constants are folded. Run before FoldBatchNorm. A sequence ``[n, c, w]`` becomes an
image ``[n, c, 1, w]`` at the first convolution and stays one through element-wise operators, batch
norms and pools; where something else reads it, the height is taken out again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import tvm
from tvm import relax
from tvm.ir import Call, Expr, Var

from .dataflow import (
    Emitter,
    bindings_of,
    constant,
    map_functions,
    op_name,
    rebuild,
    static_shape,
)

_HEIGHT = 2  # the axis that is added

_ELEMENTWISE = frozenset(
    f"relax.{name}"
    for name in (
        "abs",
        "add",
        "clip",
        "divide",
        "erf",
        "exp",
        "log",
        "maximum",
        "minimum",
        "multiply",
        "negative",
        "nn.gelu",
        "nn.gelu_tanh",
        "nn.leakyrelu",
        "nn.relu",
        "nn.relu6",
        "nn.silu",
        "power",
        "sigmoid",
        "subtract",
        "tanh",
    )
)


class _Lifter(Emitter):
    """The bindings of one function; ``images`` maps a sequence to the image that it is."""

    def __init__(self) -> None:
        super().__init__()
        self.images: dict[Var, Expr] = {}

    def block(self, bindings: Sequence[relax.Binding]) -> list[relax.Binding]:
        self.bindings = []
        for binding in bindings:
            image = None
            if isinstance(binding, relax.VarBinding):
                image = self.lifted(binding.var, binding.value)
            if image is None:
                self.bindings.append(binding)
                continue
            self.images[binding.var] = image
            if not isinstance(image.ty, relax.TupleType):
                flat = relax.BlockBuilder().normalize(relax.op.squeeze(image, [_HEIGHT]))
                self.bindings.append(relax.VarBinding(binding.var, flat))
        return self.bindings

    def lifted(self, var: Var, value: Expr) -> Expr | None:
        """The image of a sequence, or None for what stays as it is."""
        name = op_name(value)
        if name in ("relax.nn.conv1d", "relax.nn.conv1d_transpose"):
            return self.convolution(var, value)
        if isinstance(value, relax.TupleGetItem):
            whole = self.images.get(value.tuple_value)
            if whole is None or value.index != 0:
                return None
            return self.emit(relax.TupleGetItem(whole, 0), var.name)
        if not isinstance(value, Call) or not any(a in self.images for a in _variables(value)):
            return None
        if name in _ELEMENTWISE:
            arguments = [self.argument(a) for a in value.args]
            if any(a is None for a in arguments):
                return None
            return self.emit(Call(value.op, arguments, value.attrs), var.name)
        if name == "relax.nn.batch_norm" and int(value.attrs.axis) == 1:
            arguments = [self.images[value.args[0]], *value.args[1:]]
            return self.emit(Call(value.op, arguments, value.attrs), var.name)
        if name in ("relax.nn.max_pool1d", "relax.nn.avg_pool1d"):
            return self.pool(var, value)
        return None

    def argument(self, value: Expr) -> Expr | None:
        """An operand of an element-wise operator as it broadcasts against an image."""
        if isinstance(value, Var):
            return self.images.get(value)
        array = constant(value)
        if array is None:
            return value if not isinstance(value.ty, relax.TensorType) else None
        if array.ndim < 2:
            return value
        return relax.const(np.expand_dims(array, array.ndim - 1))

    def convolution(self, var: Var, call: Call) -> Expr | None:
        attrs, weight = call.attrs, constant(call.args[1])
        transposed = op_name(call).endswith("_transpose")
        layouts = (str(attrs.data_layout), str(attrs.kernel_layout), str(attrs.out_layout))
        if layouts != ("NCW", "IOW" if transposed else "OIW", "NCW"):
            return None
        if weight is None or static_shape(call.args[0], 3) is None:
            return None
        image = self.images.get(call.args[0])
        if image is None:
            image = self.emit(relax.op.expand_dims(call.args[0], _HEIGHT), f"{var.name}_image")
        kernel = relax.const(weight[:, :, None])
        left, right = map(int, attrs.padding)
        common: dict[str, Any] = {
            "groups": int(attrs.groups),
            "strides": (1, int(attrs.strides[0])),
            "dilation": (1, int(attrs.dilation[0])),
            "padding": (0, left, 0, right),
        }
        if transposed:
            more = (0, int(attrs.output_padding[0]))
            value = relax.op.nn.conv2d_transpose(image, kernel, output_padding=more, **common)
        else:
            value = relax.op.nn.conv2d(image, kernel, **common)
        return self.emit(value, var.name)

    def pool(self, var: Var, call: Call) -> Expr | None:
        attrs = call.attrs
        if str(attrs.layout) != "NCW":
            return None
        operator = {
            "relax.nn.max_pool1d": relax.op.nn.max_pool2d,
            "relax.nn.avg_pool1d": relax.op.nn.avg_pool2d,
        }[op_name(call)]
        left, right = map(int, attrs.padding)
        value = operator(
            self.images[call.args[0]],
            pool_size=(1, int(attrs.pool_size[0])),
            strides=(1, int(attrs.strides[0])),
            padding=(0, left, 0, right),
            dilation=(1, int(attrs.dilation[0])),
            ceil_mode=bool(attrs.ceil_mode),
            count_include_pad=bool(attrs.count_include_pad),
        )
        return self.emit(value, var.name)


def _variables(call: Call) -> list[Var]:
    return [a for a in call.args if isinstance(a, Var)]


def _transform(func: relax.Function) -> relax.Function:
    if not any("conv1d" in op_name(b.value) for block in bindings_of(func) for b in block):
        return func
    lifter = _Lifter()
    return rebuild(func, [lifter.block(block) for block in bindings_of(func)])


@tvm.transform.module_pass(opt_level=0, name="LiftTo2D")
class LiftTo2D:
    """``conv1d`` and its neighbours -> ``conv2d`` on images of height 1."""

    def transform_module(self, mod: tvm.IRModule, _ctx: tvm.transform.PassContext) -> tvm.IRModule:
        return relax.transform.DeadCodeElimination()(map_functions(mod, _transform))
