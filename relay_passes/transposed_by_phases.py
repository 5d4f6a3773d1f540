"""TransposedByPhases: a transposed convolution -> one convolution of stride 1 and an interleaving.

Preconditions: weights are constants, batch norms and factors are folded, activations are named. Run
before PatternRewrite.

With stride ``s`` output pixel ``q`` of a transposed convolution with padding ``p`` only sees the
taps ``k`` with ``k = q + p (mod s)``. So the pixels of one remainder (a phase) are a convolution of
stride 1 with every ``s``-th tap, last one first. All phases are filters of a single convolution;
``pixel_shuffle`` puts their pixels between each other. A bias and an activation come before that,
where the convolution has them for nothing::

    conv2d_transpose(x, W[i, o, kh, kw], s)  ->  conv2d(x, W'[o * sh * sw, i, ceil(kh / sh), ...])
    add(b), activation                           add(b'), activation
                                                 pixel_shuffle, cut to size
"""

from __future__ import annotations

from collections.abc import MutableMapping
from dataclasses import dataclass

import numpy as np
import tvm
from tvm import relax
from tvm.ir import Call, Expr, Var

from topi_kernels.pixel_shuffle import Phases

from .dataflow import (
    Emitter,
    Uses,
    array_of,
    bindings_of,
    channel_constant,
    height_width,
    is_undilated_conv,
    map_functions,
    op_name,
    rebuild,
    static_shape,
)
from .islands.pixel_shuffle import by_relax, marker_of
from .markers import Marker, parse


@dataclass(frozen=True)
class Origin:
    """The convolution that another one stands for, for the report.

    Parameters
    ----------
    op : str
        Relax operator, without ``relax.``.
    in_shape, out_shape : tuple of int
    kernel_size, stride : tuple of int
    weights : int
        Weights of the layer; the phases may pad them with zeros.
    flops : int
        Multiplications and additions of the dense layer.
    """

    op: str
    in_shape: tuple[int, ...]
    out_shape: tuple[int, ...]
    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    weights: int
    flops: int


def phase_weights(weight: np.ndarray, groups: int, stride: tuple[int, int]) -> np.ndarray:
    """Weights of all phases as one convolution's.

    Parameters
    ----------
    weight : numpy.ndarray
        ``[in_channels, out_channels / groups, kh, kw]`` of a transposed convolution.
    groups : int
    stride : tuple of int

    Returns
    -------
    numpy.ndarray
        ``[out_channels * sh * sw, in_channels / groups, ceil(kh / sh), ceil(kw / sw)]``; the filter
        of channel ``o`` and phase ``(rh, rw)`` is ``(o * sh + rh) * sw + rw``.
    """
    inputs, outputs, kh, kw = weight.shape
    sh, sw = stride
    th, tw = -(-kh // sh), -(-kw // sw)
    padded = np.zeros((groups, inputs // groups, outputs, th * sh, tw * sw), weight.dtype)
    padded[..., :kh, :kw] = weight.reshape(groups, inputs // groups, outputs, kh, kw)
    taps = padded.reshape(groups, inputs // groups, outputs, th, sh, tw, sw)[:, :, :, ::-1, :, ::-1]
    phases = taps.transpose(0, 2, 4, 6, 1, 3, 5)  # group, o, rh, rw, i, taps
    return np.ascontiguousarray(phases).reshape(-1, inputs // groups, th, tw)


def _fits(binding: relax.VarBinding) -> bool:
    value, var = binding.value, binding.var
    return is_undilated_conv(value, var, "relax.nn.conv2d_transpose", "IOHW")


def _origin(call: Call, out: Var) -> Origin:
    in_shape, weight = static_shape(call.args[0]) or (), array_of(call.args[1])
    pixels = in_shape[0] * in_shape[2] * in_shape[3]
    return Origin(
        op_name(call).removeprefix("relax."),
        in_shape,
        static_shape(out) or (),
        weight.shape[2:],
        tuple(int(s) for s in call.attrs.strides),
        weight.size,
        2 * pixels * weight.size,
    )


@dataclass(frozen=True)
class _Tail:
    """What follows a transposed convolution and may come before the interleaving.

    ``out`` is the last of ``dropped``, the variables that are no longer bound by themselves.
    """

    out: Var
    bias: np.ndarray | None = None
    activation: Marker | None = None
    dropped: tuple[Var, ...] = ()

    @classmethod
    def of(cls, uses: Uses, conv: Var) -> _Tail:
        """A bias per channel and an activation of values that nothing else uses."""
        tail = cls(conv)
        user = uses.sole_user(conv)
        if user is not None and op_name(uses.definition(user)) == "relax.add":
            shape, args = static_shape(conv) or (), list(uses.definition(user).args)
            (other,) = [a for a in args if not a.same_as(conv)] or [conv]
            bias = channel_constant(other, shape[1])
            if bias is not None and static_shape(user) == shape:
                tail = cls(user, bias, None, (user,))
        user = uses.sole_user(tail.out)
        marker = None if user is None else parse(uses.definition(user))
        if user is None or marker is None or marker.op != "activation":
            return tail
        return cls(user, tail.bias, marker, (*tail.dropped, user))


class _Phases(Emitter):
    """The bindings that one transposed convolution and its tail become."""

    def __init__(self, call: Call, conv: Var, tail: _Tail, *, on_planes: bool) -> None:
        super().__init__()
        self.call, self.conv, self.tail, self.out = call, conv, tail, tail.out
        self.on_planes = on_planes

    def run(self) -> list[relax.Binding]:
        attrs, name = self.call.attrs, self.conv.name
        weight, groups = array_of(self.call.args[1]), int(attrs.groups)
        stride = int(attrs.strides[0]), int(attrs.strides[1])
        before = [int(p) for p in attrs.padding[:2]]
        size, wanted = height_width(self.call.args[0]), height_width(self.out)
        phases = phase_weights(weight, groups, stride)
        # Pixels of a phase, counted from that of the uncropped output's first one.
        counts = [-(-(w + p) // s) for w, p, s in zip(wanted, before, stride, strict=True)]
        reach = [t - 1 for t in phases.shape[2:]]
        after = [max(c - n, 0) for c, n in zip(counts, size, strict=True)]
        image = self.emit(
            relax.op.nn.conv2d(
                self.call.args[0],
                relax.const(phases),
                padding=(*reach, *after),
                groups=groups,
            ),
            name,
        )
        image = self.with_tail(image, stride[0] * stride[1])
        marker = marker_of(image, Phases(stride, (before[0], before[1])), wanted)
        if self.on_planes:
            value: Expr = marker.call(self.out.ty)
        else:
            value = by_relax(marker, lambda step: self.emit(step, f"{name}_phases"))
            value = relax.BlockBuilder().normalize(value)
        return [*self.bindings, relax.VarBinding(self.out, value)]

    def with_tail(self, image: Var, phases: int) -> Var:
        """Bias and activation of all phases."""
        bias, marker = self.tail.bias, self.tail.activation
        if bias is not None:
            every = np.repeat(bias, phases).reshape(1, -1, 1, 1)
            image = self.emit(relax.op.add(image, relax.const(every)), f"{self.conv.name}_bias")
        if marker is not None:
            call = Marker(marker.op, (image,), marker.params).call(image.ty)
            image = self.emit(call, f"{self.conv.name}_activation")
        return image


@tvm.transform.module_pass(opt_level=0, name="TransposedByPhases")
class TransposedByPhases:
    """``conv2d_transpose`` -> ``conv2d`` of its phases, put between each other.

    Parameters
    ----------
    origins : mapping
        Receives the original layer by the name of the convolution's variable.
    on_planes : bool
        Whether the device puts phases between each other on planes; else Relax's operators do.
    """

    def __init__(self, origins: MutableMapping[str, Origin], *, on_planes: bool = True) -> None:
        self.origins = origins
        self.on_planes = on_planes

    def transform_module(self, mod: tvm.IRModule, _ctx: tvm.transform.PassContext) -> tvm.IRModule:
        return map_functions(mod, self._transform)

    def _phases(self, binding: relax.VarBinding, tail: _Tail) -> list[relax.Binding]:
        phases = _Phases(binding.value, binding.var, tail, on_planes=self.on_planes)
        return phases.run()

    def _transform(self, func: relax.Function) -> relax.Function:
        blocks, uses, dropped = [], Uses(func), set[Var]()
        for block in bindings_of(func):
            bindings: list[relax.Binding] = []
            for binding in block:
                if isinstance(binding, relax.VarBinding) and _fits(binding):
                    self.origins[str(binding.var.name)] = _origin(binding.value, binding.var)
                    tail = _Tail.of(uses, binding.var)
                    dropped.update(tail.dropped)
                    bindings += self._phases(binding, tail)
                elif binding.var not in dropped:
                    bindings.append(binding)
            blocks.append(bindings)
        return rebuild(func, blocks)
