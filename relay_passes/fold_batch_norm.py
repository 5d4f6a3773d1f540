"""FoldBatchNorm: conv2d (+ bias) + batch_norm at inference -> conv2d + bias.

Preconditions: weights, bias and statistics are constants (bind parameters and run FoldConstant
before, so that a reshaped bias is a constant too); run before anything fuses the convolution. A
batch norm stays where it is if the convolution (or its bias) has other users, is transposed with
groups, or if the batch norm itself is in training mode or its statistics are used.

Relax's own ``FoldBatchnormToConv2D`` leaves a convolution with a bias alone.
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
    map_functions,
    op_name,
    rebuild,
    with_values,
)


@dataclass(frozen=True)
class _Match:
    """A foldable chain; ``bias`` is the variable of the addition, if there is one."""

    conv: Var
    bias: Var | None
    batch_norm: Var
    output: Var


def _match(uses: Uses, output: Var) -> _Match | None:
    value = uses.value[output]
    if not isinstance(value, relax.TupleGetItem) or value.index != 0:
        return None
    norm = value.tuple_value
    call = uses.definition(norm)
    if op_name(call) != "relax.nn.batch_norm" or uses.sole_user(norm) is None:
        return None
    if call.attrs.training or int(call.attrs.axis) != 1:
        return None
    source = call.args[0]
    if not isinstance(source, Var) or uses.sole_user(source) is None:
        return None
    if any(constant(arg) is None for arg in call.args[1:]):
        return None
    bias, conv = None, source
    if op_name(uses.definition(source)) == "relax.add":
        bias, conv = source, _conv_of_bias(uses, source)
    if conv is None or not is_constant_conv(uses.definition(conv)):
        return None
    return _Match(conv, bias, norm, output)


def _conv_of_bias(uses: Uses, addition: Var) -> Var | None:
    """The variable to which ``addition`` adds a per-channel constant, if nothing else uses it."""
    for conv, bias in _both_orders(uses.value[addition].args):
        call = uses.definition(conv)
        if is_constant_conv(call) and uses.sole_user(conv) is not None:
            out_channels = int(call.args[1].ty.shape[filter_axis(call)])
            if channel_constant(bias, out_channels) is not None:
                return conv
    return None


def _both_orders(args: list[Expr]) -> list[tuple[Expr, Expr]]:
    return [(args[0], args[1]), (args[1], args[0])]


def check_variances(func: relax.Function) -> None:
    """Refuse batch norms at inference that divide by zero or by the root of a negative number.

    Raises
    ------
    ValueError
        Naming the batch norm, its first such channel and the values.
    """
    for block in bindings_of(func):
        for binding in block:
            call = binding.value
            if op_name(call) != "relax.nn.batch_norm" or call.attrs.training:
                continue
            variance, epsilon = constant(call.args[4]), float(call.attrs.epsilon)
            if variance is None:
                continue
            bad = np.flatnonzero(~(variance.astype(np.float64) + epsilon > 0))
            if bad.size:
                raise ValueError(
                    f"batch norm {binding.var.name!r}: {bad.size} of {variance.size} variances plus"
                    f" epsilon {epsilon:g} are not positive (channel {bad[0]}:"
                    f" {variance[bad[0]]:g}), which gives NaN or Inf; expected variances >"
                    " -epsilon, check the checkpoint"
                )


def fold_constants(
    weight: np.ndarray,
    bias: np.ndarray | None,
    gamma: np.ndarray,
    beta: np.ndarray,
    mean: np.ndarray,
    variance: np.ndarray,
    epsilon: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Weight ``[o, i, kh, kw]`` and bias ``[o]`` of the convolution with the norm folded in.

    Computed in float64, since a small variance magnifies rounding.
    """
    scale = gamma.astype(np.float64) / np.sqrt(variance.astype(np.float64) + epsilon)
    old = 0.0 if bias is None else bias.astype(np.float64)
    new_bias = (old - mean) * scale + beta
    new_weight = weight * scale.reshape(-1, 1, 1, 1)
    return new_weight.astype(weight.dtype), new_bias.astype(weight.dtype)


def _fold(uses: Uses, match: _Match) -> tuple[Call, Call]:
    """New values of the convolution and of the batch norm's output."""
    conv, norm = uses.value[match.conv], uses.value[match.batch_norm]
    axis = filter_axis(conv)
    weight = np.swapaxes(array_of(conv.args[1]), 0, axis)
    bias = None
    if match.bias is not None:
        for first, second in _both_orders(uses.value[match.bias].args):
            if first == match.conv:
                bias = channel_constant(second, weight.shape[0])
    gamma, beta, mean, variance = (array_of(arg) for arg in norm.args[1:5])
    if not norm.attrs.scale:
        gamma = np.ones_like(gamma)
    if not norm.attrs.center:
        beta = np.zeros_like(beta)
    new_weight, new_bias = fold_constants(
        weight, bias, gamma, beta, mean, variance, float(norm.attrs.epsilon)
    )
    new_weight = np.ascontiguousarray(np.swapaxes(new_weight, 0, axis))
    new_conv = Call(conv.op, [conv.args[0], relax.const(new_weight)], conv.attrs)
    shaped = relax.const(new_bias.reshape(1, -1, 1, 1))
    builder = relax.BlockBuilder()
    return builder.normalize(new_conv), builder.normalize(relax.op.add(match.conv, shaped))


def _transform(func: relax.Function) -> relax.Function:
    check_variances(func)
    uses = Uses(func)
    matches = [m for m in (_match(uses, var) for var in uses.value) if m is not None]
    replaced: dict[Var, Expr] = {}
    dropped: set[Var] = set()
    for match in matches:
        replaced[match.conv], replaced[match.output] = _fold(uses, match)
        dropped |= {match.batch_norm} | ({match.bias} if match.bias is not None else set())
    blocks = [
        with_values([b for b in block if b.var not in dropped], replaced)
        for block in bindings_of(func)
    ]
    return rebuild(func, blocks)


@tvm.transform.module_pass(opt_level=0, name="FoldBatchNorm")
class FoldBatchNorm:
    """conv2d (+ bias) + batch_norm -> conv2d + bias, on constants.

    Raises
    ------
    ValueError
        If a variance plus epsilon is not positive.
    """

    def transform_module(self, mod: tvm.IRModule, _ctx: tvm.transform.PassContext) -> tvm.IRModule:
        return map_functions(mod, _transform)
