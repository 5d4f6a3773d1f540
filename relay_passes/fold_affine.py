"""FoldAffine: constant factors and terms -> the weights of the convolution before, or one operator.

Preconditions: constants are folded; FoldBatchNorm and RecognizeActivations have run (a hardsigmoid
begins with a term, too). Run before PatternRewrite. What follows a convolution whose value nothing
else uses goes into its weights and bias; elsewhere a factor and a term, if they are scalars, become
one ``affine`` activation, which can stay on planes::

    conv -> add(c) -> multiply(s) -> add(t)      ->  conv' -> add(c * s + t)
    activation -> multiply(s) -> add(t)          ->  activation -> affine(s, t)
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import tvm
from tvm import relax
from tvm.ir import Call, Expr, Var

from .dataflow import (
    Uses,
    array_of,
    bindings_of,
    channel_constant,
    constant,
    filter_axis,
    is_constant_conv,
    is_float_image,
    map_functions,
    op_name,
    rebuild,
    shape_of,
    with_values,
)
from .recognize_activations import activation_marker


@dataclass(frozen=True)
class Affine:
    """``scale * x + shift``, both ``[channels]`` of float64.

    Parameters
    ----------
    source : Var
        The image ``x``.
    scale, shift : numpy.ndarray
    """

    source: Var
    scale: np.ndarray
    shift: np.ndarray

    def after(self, inner: Affine) -> Affine:
        """This one of the value of another."""
        return Affine(inner.source, self.scale * inner.scale, self.scale * inner.shift + self.shift)

    @property
    def scalars(self) -> tuple[float, float] | None:
        """Factor and term, if they are the same for all channels."""
        if np.ptp(self.scale) or np.ptp(self.shift):
            return None
        return float(self.scale[0]), float(self.shift[0])


def affine_of(value: Expr, channels: int) -> Affine | None:
    """A sum, difference, product or quotient of an image and a constant per channel, or None."""
    name = op_name(value)
    if name == "relax.negative" and isinstance(value.args[0], Var):
        return Affine(value.args[0], np.full(channels, -1.0), np.zeros(channels))
    if name not in ("relax.add", "relax.subtract", "relax.multiply", "relax.divide"):
        return None
    for turned, (x, other) in enumerate((tuple(value.args), tuple(value.args)[::-1])):
        found = channel_constant(other, channels) if isinstance(x, Var) else None
        if found is None:
            continue
        number, one, zero = found.astype(np.float64), np.ones(channels), np.zeros(channels)
        if name == "relax.add":
            return Affine(x, one, number)
        if name == "relax.subtract":
            return Affine(x, -one, number) if turned else Affine(x, one, -number)
        if name == "relax.multiply":
            return Affine(x, number, zero)
        if not turned and np.all(number):
            return Affine(x, 1 / number, zero)
    return None


class AffineChains:
    """Which values of a function are factors and terms of others."""

    def __init__(self, func: relax.Function) -> None:
        self.uses = Uses(func)

    def step(self, var: Expr) -> Affine | None:
        """One factor or term, or a batch norm at inference."""
        value = self.uses.definition(var)
        if value is None or not is_float_image(var):
            return None
        found = self.batch_norm(value) or affine_of(value, shape_of(var)[1])
        same = found is not None and shape_of_or_none(found.source) == shape_of(var)
        return found if same else None

    def batch_norm(self, value: Expr) -> Affine | None:
        """The affine function that a batch norm with constants is, if ``value`` is its result."""
        if not isinstance(value, relax.TupleGetItem) or value.index != 0:
            return None
        call = self.uses.definition(value.tuple_value)
        if op_name(call) != "relax.nn.batch_norm" or self.uses.sole_user(value.tuple_value) is None:
            return None
        numbers = [constant(arg) for arg in call.args[1:5]]
        if call.attrs.training or int(call.attrs.axis) != 1 or any(n is None for n in numbers):
            return None
        gamma, beta, mean, variance = (n.astype(np.float64) for n in numbers if n is not None)
        scale = 1 / np.sqrt(variance + float(call.attrs.epsilon))
        scale = scale * gamma if call.attrs.scale else scale
        shift = -mean * scale
        return Affine(call.args[0], scale, shift + beta if call.attrs.center else shift)

    def chain(self, var: Var) -> Affine | None:
        """All steps that end in ``var``."""
        found = self.step(var)
        while found is not None and self.uses.sole_user(found.source) is not None:
            inner = self.step(found.source)
            if inner is None:
                break
            found = found.after(inner)
        return found


class _Folder(AffineChains):
    def __init__(self, func: relax.Function) -> None:
        super().__init__(func)
        self.value: dict[Var, Expr] = {}

    def run(self, func: relax.Function) -> relax.Function:
        for var in self.uses.value:
            found = self.chain(var) if self.is_last(var) else None
            if found is None:
                continue
            if self.is_own_conv(found.source):
                self.into_conv(var, found)
            elif found.scalars is not None and not np.any(found.scale == 0):
                marker = activation_marker(found.source, "affine", found.scalars)
                self.value[var] = marker.call(var.ty)
        return rebuild(func, [with_values(block, self.value) for block in bindings_of(func)])

    def is_last(self, var: Var) -> bool:
        """Whether the value is not one step of a longer chain."""
        user = self.uses.sole_user(var)
        found = None if user is None else self.step(user)
        return found is None or not found.source.same_as(var)

    def is_own_conv(self, var: Var) -> bool:
        call = self.uses.definition(var)
        return is_constant_conv(call) and self.uses.sole_user(var) is not None

    def into_conv(self, var: Var, affine: Affine) -> None:
        conv = self.uses.value[affine.source]
        builder = relax.BlockBuilder()
        if np.any(affine.scale != 1):
            weight, axis = array_of(conv.args[1]), filter_axis(conv)
            shape = [1] * weight.ndim
            shape[axis] = -1
            scaled = (weight * affine.scale.reshape(shape)).astype(weight.dtype)
            call = Call(conv.op, [conv.args[0], relax.const(scaled)], conv.attrs)
            self.value[affine.source] = builder.normalize(call)
        shift = affine.shift.reshape(1, -1, 1, 1).astype(str(var.ty.dtype))
        self.value[var] = builder.normalize(relax.op.add(affine.source, relax.const(shift)))


def shape_of_or_none(expr: Expr) -> tuple[int, ...] | None:
    """Shape of a float image, else None."""
    return shape_of(expr) if is_float_image(expr) else None


@tvm.transform.module_pass(opt_level=0, name="FoldAffine")
class FoldAffine:
    """Constant factors and terms -> convolutions' weights, or one ``affine`` each."""

    def transform_module(self, mod: tvm.IRModule, _ctx: tvm.transform.PassContext) -> tvm.IRModule:
        folded = map_functions(mod, lambda func: _Folder(func).run(func))
        return relax.transform.DeadCodeElimination()(folded)
