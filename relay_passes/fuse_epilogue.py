"""FuseEpilogue: bias, residual and activation move into the convolution marker before them.

Preconditions: PatternRewrite and RecognizeActivations have run. In this order, each at most once
(a bias may consist of several additions):

    conv -> add(per-channel constant) -> add(image of the same shape) -> activation

Both operand orders of an addition are found. A step is taken only if nothing else uses the value
before it. The first convolution that reaches an addition of two convolutions takes the other one
as its residual. Activations that the operator's epilogue does not know stay outside.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import tvm
from tvm import relax
from tvm.ir import Expr, Var

from topi_kernels.workload import ACTIVATIONS

from .dataflow import (
    Uses,
    bindings_of,
    channel_constant,
    is_float_image,
    map_functions,
    op_name,
    rebuild,
    shape_of,
    static_shape,
    with_values,
)
from .markers import ConvParams, Marker, parse


class _Chain:
    """A convolution marker and what has been fused into it.

    ``end`` is the current last value, ``free`` the bindings that the chain may still take.
    """

    def __init__(self, uses: Uses, start: Var, marker: Marker, free: set[Var]) -> None:
        self.uses = uses
        self.free = free
        self.end = start
        self.fused: list[Var] = []
        self.marker = marker
        self.params = ConvParams.from_dict(marker.params)
        self.epilogue = self.params.epilogue
        self.bias: np.ndarray | None = None
        self.residual: Expr | None = None

    def extend(self) -> None:
        """Fuse as far as the graph allows."""
        while (user := self.uses.sole_user(self.end)) in self.free and self._step(user):
            self.fused.append(self.end)
            self.end = user
            self.free.discard(user)

    def _step(self, user: Var) -> bool:
        value = self.uses.value[user]
        if self.epilogue.activation != "none" or static_shape(user) != static_shape(self.end):
            return False
        if op_name(value) == "relax.add":
            other = value.args[1] if value.args[0].same_as(self.end) else value.args[0]
            return self._add(other)
        marker = parse(value)
        if marker is None or marker.op != "activation":
            return False
        activation = marker.params["activation"]
        if activation not in ACTIVATIONS:
            return False
        self.epilogue = replace(self.epilogue, activation=activation)
        return True

    def _add(self, other: Expr) -> bool:
        channels = channel_constant(other, shape_of(self.end)[1])
        if channels is not None and self.residual is None:
            self.bias = channels if self.bias is None else self.bias + channels
            return True
        takes_residual = self.marker.op == "conv2d" and self.residual is None
        # add(y, y) uses its operand twice but counts as one user.
        if not takes_residual or not isinstance(other, Var) or other.same_as(self.end):
            return False
        if not is_float_image(other) or static_shape(other) != static_shape(self.end):
            return False
        self.residual = other
        return True

    def result(self) -> Marker:
        """The marker with everything fused."""
        tensors = list(self.marker.tensors)
        if self.bias is not None:
            tensors.append(relax.const(self.bias))
        if self.residual is not None:
            tensors.append(self.residual)
        epilogue = replace(
            self.epilogue, bias=self.bias is not None, residual=self.residual is not None
        )
        params = replace(self.params, epilogue=epilogue)
        return Marker(self.marker.op, tuple(tensors), params.to_dict())


def _transform(func: relax.Function) -> relax.Function:
    uses = Uses(func)
    blocks = []
    for block in bindings_of(func):
        # Bindings of this block that belong to no chain yet.
        free = {binding.var for binding in block}
        values: dict[Var, Expr] = {}
        fused: set[Var] = set()
        for binding in block:
            marker = parse(binding.value)
            if marker is None or marker.op not in ("conv2d", "depthwise_conv2d"):
                continue
            chain = _Chain(uses, binding.var, marker, free)
            chain.extend()
            values[chain.end] = chain.result().call(chain.end.ty)
            fused.update(chain.fused)
        blocks.append(with_values([b for b in block if b.var not in fused], values))
    return rebuild(func, blocks)


@tvm.transform.module_pass(opt_level=0, name="FuseEpilogue")
class FuseEpilogue:
    """conv -> bias -> residual -> activation becomes one marker."""

    def transform_module(self, mod: tvm.IRModule, _ctx: tvm.transform.PassContext) -> tvm.IRModule:
        return map_functions(mod, _transform)
