"""StridesToChannels: wide steps and long rows of kernels -> more in_channels and fewer taps.

Preconditions: weights are constants, batch norms and factors are folded. Run before PatternRewrite.

The operator takes steps of up to :data:`~topi_kernels.eligibility.MAX_STRIDE`, and unrolls the taps
of a kernel. Patches of pictures and filter banks of sound have more of both. Of a step ``s`` the
pixels of each remainder are a channel of their own, and the convolution has stride 1::

    x[n, c, h, w], W[o, c, kh, kw], stride s
    -> x'[n, c * s * s, h / s, w / s], W'[o, c * s * s, kh / s, kw / s]

Rows of more than :data:`LONGEST_ROW` taps are cut into parts, each with channels of its own: the
image, moved to where the part begins.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, MutableMapping, Sequence
from dataclasses import dataclass

import numpy as np
import tvm
from tvm import relax
from tvm.ir import Call, Expr, Var

from topi_kernels.eligibility import MAX_STRIDE

from .dataflow import (
    Emitter,
    array_of,
    bindings_of,
    is_float_image,
    is_undilated_conv,
    map_functions,
    rebuild,
    shape_of,
    static_shape,
)
from .transposed_by_phases import Origin

#: Binds a value, and gives its variable.
Emit = Callable[[Expr], Var]

#: Taps of a row of a kernel that stay as they are.
LONGEST_ROW = 16


@dataclass(frozen=True)
class _Conv:
    """A convolution without dilation; ``size`` of its output."""

    image: Expr
    weight: np.ndarray
    stride: tuple[int, int]
    padding: tuple[int, ...]
    size: tuple[int, ...]

    def by_phases(self, emit: Emit) -> _Conv:
        """The same with stride 1."""
        (sh, sw), (kh, kw), (height, width) = self.stride, self.weight.shape[2:], self.size
        rows, columns = -(-kh // sh), -(-kw // sw)
        whole = (height + rows - 1) * sh, (width + columns - 1) * sw
        image = _resized(self.image, self.padding[:2], whole, emit)
        batch, channels = shape_of(image)[:2]
        apart = (batch, channels, whole[0] // sh, sh, whole[1] // sw, sw)
        image = emit(relax.op.reshape(image, apart))
        image = emit(relax.op.permute_dims(image, [0, 1, 3, 5, 2, 4]))
        image = emit(
            relax.op.reshape(image, (batch, channels * sh * sw, whole[0] // sh, whole[1] // sw))
        )
        filters = self.weight.shape[0]
        padded = np.zeros((filters, channels, rows * sh, columns * sw), self.weight.dtype)
        padded[:, :, :kh, :kw] = self.weight
        taps = padded.reshape(filters, channels, rows, sh, columns, sw).transpose(0, 1, 3, 5, 2, 4)
        weight = np.ascontiguousarray(taps).reshape(filters, -1, rows, columns)
        return _Conv(image, weight, (1, 1), (0, 0, 0, 0), self.size)

    def by_parts(self, emit: Emit) -> _Conv:
        """The same with rows of at most :data:`LONGEST_ROW` taps; of stride 1 along them."""
        filters, channels, kh, kw = self.weight.shape
        parts = -(-kw // LONGEST_ROW)
        each = -(-kw // parts)
        top, left, bottom, _ = self.padding
        whole = self.size[1] - 1 + parts * each
        image = _resized(self.image, (0, left), (shape_of(self.image)[2], whole), emit)
        width = self.size[1] - 1 + each
        moved = [
            emit(relax.op.strided_slice(image, [3], [part * each], [part * each + width]))
            for part in range(parts)
        ]
        padded = np.zeros((filters, channels, kh, parts * each), self.weight.dtype)
        padded[..., :kw] = self.weight
        taps = padded.reshape(filters, channels, kh, parts, each).transpose(0, 3, 1, 2, 4)
        weight = np.ascontiguousarray(taps).reshape(filters, -1, kh, each)
        image = emit(relax.op.concat(moved, 1))
        return _Conv(image, weight, self.stride, (top, 0, bottom, 0), self.size)


def _resized(image: Expr, before: Sequence[int], size: Sequence[int], emit: Emit) -> Expr:
    """An image with zeros above and to the left of it, cut or filled up to a size."""
    ends = [min(e, s - b) for e, s, b in zip(shape_of(image)[2:], size, before, strict=True)]
    if tuple(ends) != shape_of(image)[2:]:
        image = emit(relax.op.strided_slice(image, [2, 3], [0, 0], ends))
    after = [s - b - e for s, b, e in zip(size, before, ends, strict=True)]
    if not any((*before, *after)):
        return image
    widths = [0, 0, 0, 0, before[0], after[0], before[1], after[1]]
    return emit(relax.op.nn.pad(image, widths))


def _fits(call: Expr, out: Var) -> bool:
    fits = is_undilated_conv(call, out, "relax.nn.conv2d", "OIHW")
    return fits and is_float_image(out) and int(call.attrs.groups) == 1


def _steps(call: Call) -> tuple[bool, bool]:
    """Whether a convolution's steps are too wide, and its rows too long."""
    strides, columns = call.attrs.strides, shape_of(call.args[1])[3]
    too_wide = max(int(s) for s in strides) > MAX_STRIDE
    return too_wide, columns > LONGEST_ROW


def _bindings(call: Call, out: Var) -> list[relax.Binding]:
    """The bindings that compute a convolution in another form."""
    emitter = Emitter()

    def emit(value: Expr) -> Var:
        return emitter.emit(value, f"{out.name}_in")

    too_wide, too_long = _steps(call)
    padding, strides = (tuple(map(int, v)) for v in (call.attrs.padding, call.attrs.strides))
    conv = _Conv(
        call.args[0], array_of(call.args[1]), (strides[0], strides[1]), padding, shape_of(out)[2:]
    )
    if too_wide or (too_long and strides[1] > 1):
        conv = conv.by_phases(emit)
    if conv.weight.shape[3] > LONGEST_ROW:
        conv = conv.by_parts(emit)
    weight = relax.const(conv.weight)
    value = relax.op.nn.conv2d(conv.image, weight, strides=conv.stride, padding=conv.padding)
    return [*emitter.bindings, relax.VarBinding(out, relax.BlockBuilder().normalize(value))]


def _origin(call: Call, out: Var) -> Origin:
    """The convolution that the report speaks of."""
    in_shape, out_shape = static_shape(call.args[0]) or (), static_shape(out) or ()
    weight = array_of(call.args[1])
    pixels = out_shape[0] * out_shape[2] * out_shape[3]
    return Origin(
        "nn.conv2d",
        in_shape,
        out_shape,
        weight.shape[2:],
        tuple(int(s) for s in call.attrs.strides),
        weight.size,
        2 * pixels * weight.size,
    )


@tvm.transform.module_pass(opt_level=0, name="StridesToChannels")
class StridesToChannels:
    """Convolutions of wide steps or long rows -> others of more in_channels.

    Parameters
    ----------
    origins : mapping
        Receives the original layer by the name of the convolution's variable.
    assigned : collection of str
        Variables of the layers whose patterns somebody assigned: these stay as they are.
    """

    def __init__(
        self, origins: MutableMapping[str, Origin], assigned: Collection[str] = ()
    ) -> None:
        self.origins, self.assigned = origins, assigned

    def transform_module(self, mod: tvm.IRModule, _ctx: tvm.transform.PassContext) -> tvm.IRModule:
        return map_functions(mod, self._transform)

    def _transform(self, func: relax.Function) -> relax.Function:
        return rebuild(
            func,
            [[b for old in block for b in self._rewritten(old)] for block in bindings_of(func)],
        )

    def _rewritten(self, binding: relax.Binding) -> list[relax.Binding]:
        var, value = binding.var, binding.value
        name = str(var.name)
        if not _fits(value, var) or not any(_steps(value)) or name in self.assigned:
            return [binding]
        self.origins[name] = _origin(value, var)
        return _bindings(value, var)
