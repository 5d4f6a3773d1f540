"""CenterNorms: group and instance norms -> the same of images with the mean taken off first.

Preconditions: none; the norms are whole, so run before LegalizeOps.

TVM computes the variance as ``E[x * x] - E[x] * E[x]``, which float32 cannot hold where the mean is
large beside the spread: at 100 +- 0.1 all digits are lost, and the square root may be of a negative
number. The norm of ``x - E[x]`` is the same, and there the second term vanishes.
"""

from __future__ import annotations

import tvm
from tvm import relax
from tvm.ir import Call, Expr

from .dataflow import bindings_of, map_functions, op_name, rebuild, static_shape

INSTANCE_NORM = "relax.nn.instance_norm"
NORMS = ("relax.nn.group_norm", INSTANCE_NORM)


def _minus_mean(x: Expr, axes: list[int]) -> Expr:
    return relax.op.subtract(x, relax.op.mean(x, axes, keepdims=True))


def _centered(call: Call) -> Expr | None:
    """The image of a norm without its mean; None if ``call`` is no such norm."""
    name = op_name(call)
    if name not in NORMS:
        return None
    x, shape = call.args[0], static_shape(call.args[0])
    if shape is None:
        return None
    axes = [int(axis) % len(shape) for axis in call.attrs.axes]
    if name == INSTANCE_NORM:
        return _minus_mean(x, axes)
    # The channels of a group have one mean.
    channel, groups = int(call.attrs.channel_axis) % len(shape), int(call.attrs.num_groups)
    apart = (*shape[:channel], groups, shape[channel] // groups, *shape[channel + 1 :])
    axes = [channel + 1, *(axis + (axis > channel) for axis in axes)]
    return relax.op.reshape(_minus_mean(relax.op.reshape(x, apart), axes), shape)


def _rewritten(binding: relax.Binding) -> relax.Binding:
    call = binding.value
    image = _centered(call)
    if image is None:
        return binding
    return relax.VarBinding(binding.var, Call(call.op, [image, *call.args[1:]], call.attrs))


@tvm.transform.module_pass(opt_level=0, name="CenterNorms")
class CenterNorms:
    """Group and instance norms -> the same of images whose mean is zero."""

    def transform_module(self, mod: tvm.IRModule, _ctx: tvm.transform.PassContext) -> tvm.IRModule:
        return map_functions(
            mod,
            lambda func: rebuild(func, [[*map(_rewritten, block)] for block in bindings_of(func)]),
        )
