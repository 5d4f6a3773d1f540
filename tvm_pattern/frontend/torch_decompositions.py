"""Into what torch takes operators apart before they are translated."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from .torch_quantized import fake_per_channel, fake_per_tensor
from .torchvision_operators import deform_conv2d, roi_align

# In torch's own words, but not part of what torch.export decomposes by default.
_REFERENCES = ("grid_sampler_2d",)
_OF_TORCHVISION: dict[str, Callable[..., Any]] = {
    "deform_conv2d": deform_conv2d,
    "roi_align": roi_align,
}


def decompositions(kept: frozenset[str]) -> dict[Any, Callable[..., Any]]:
    """torch's default decompositions with some more, and without the operators ``kept`` whole.

    Parameters
    ----------
    kept : frozenset of str
        Operators with their own translation, as ``elu.default``.
    """
    import torch

    table = dict(_of_torch(kept))
    # Operators that torch has once torchvision is imported.
    for name, decomposed in _OF_TORCHVISION.items():
        operator = getattr(torch.ops.torchvision, name, None)
        if operator is not None:
            table[operator.default] = decomposed
    return table


@functools.cache
def _of_torch(kept: frozenset[str]) -> dict[Any, Callable[..., Any]]:
    import torch
    from torch._decomp import get_decompositions
    from torch.export import default_decompositions

    aten = torch.ops.aten
    table = dict(default_decompositions())
    table.update(get_decompositions([getattr(aten, name) for name in _REFERENCES]))
    for name in kept:
        packet, overload = name.split(".")
        # None: an operator of another library, which torch takes nothing apart into.
        operator = getattr(getattr(aten, packet, None), overload, None)
        if operator is not None:
            table.pop(operator, None)
    table[aten.add.Tensor] = table[aten.add.Scalar] = _scaled(lambda x, y: x + y)
    table[aten.sub.Tensor] = table[aten.sub.Scalar] = _scaled(lambda x, y: x - y)
    table[aten.mul.Tensor] = table[aten.mul.Scalar] = _multiply
    table[aten.div.Tensor] = table[aten.div.Scalar] = _divide
    table[aten.div.Tensor_mode] = _divide_rounded
    table[aten.floor_divide.default] = _floor_divide
    table[aten.fmod.Scalar] = table[aten.fmod.Tensor] = _fmod
    table[aten.remainder.Scalar] = table[aten.remainder.Tensor] = _remainder
    table[aten.logaddexp.default] = _logaddexp
    table[aten.var_mean.correction] = _var_mean
    table[aten.clamp.default] = _clamp
    table[aten.select.int] = _select
    table[aten.take.default] = _take
    table[aten.isfinite.default] = _is_finite
    table[aten.exp2.default] = _exp2
    table[aten.unfold.default] = _unfold
    table[aten.col2im.default] = _col2im
    table[aten.rrelu_with_noise.default] = _rrelu
    table[aten.rrelu_with_noise_functional.default] = _rrelu_functional
    table[aten.fake_quantize_per_tensor_affine.default] = fake_per_tensor
    table[aten.fake_quantize_per_channel_affine.default] = fake_per_channel
    return table


def _scaled(combine: Callable[[Any, Any], Any]) -> Callable[..., Any]:
    """``add`` and ``sub`` multiply by ``alpha``, which TVM's importer overlooks."""

    def decomposed(x: Any, y: Any, alpha: Any = 1) -> Any:
        if alpha != 1:
            return combine(x, y * alpha)
        alike = _of_one_type(x, y)
        return NotImplemented if alike is None else combine(*alike)

    return decomposed


def _of_one_type(x: Any, y: Any, *, divided: bool = False) -> tuple[Any, Any] | None:
    """Integers and floats as torch adds and multiplies them; None if they are of one type.

    TVM's importer gives a number the type of the tensor: integers times 0.5 are zero there.
    """
    import torch

    kind = torch.result_type(x, y)
    if divided and not (kind.is_floating_point or kind.is_complex):
        kind = torch.get_default_dtype()
    given = (x, y)
    tensors = [v for v in given if isinstance(v, torch.Tensor)]
    if not kind.is_floating_point or all(tensor.dtype == kind for tensor in tensors):
        return None
    x, y = (v.to(kind) if isinstance(v, torch.Tensor) else v for v in given)
    return x, y


def _multiply(x: Any, y: Any) -> Any:
    alike = _of_one_type(x, y)
    return NotImplemented if alike is None else alike[0] * alike[1]


def _divide(x: Any, y: Any) -> Any:
    """TVM folds a division by the number zero and fails; times infinity is the same."""
    alike = _of_one_type(x, y, divided=True)
    if alike is not None:
        return alike[0] / alike[1]
    return x * math.inf if isinstance(y, int | float) and y == 0 else NotImplemented


def _divide_rounded(x: Any, y: Any, *, rounding_mode: str | None) -> Any:
    """By a number: TVM's importer makes an integer of it, whatever is divided."""
    import torch

    if rounding_mode == "floor":
        return _floor_divide(x, y)
    if not isinstance(y, int | float) or not x.is_floating_point() or rounding_mode is None:
        return NotImplemented
    return torch.trunc(x / float(y))


def _floats(x: Any, y: Any) -> tuple[Any, Any] | None:
    """A tensor and a tensor or number as floats; None where they are integers, or float64."""
    import torch

    dtype = torch.result_type(x, y)
    if not dtype.is_floating_point or dtype == torch.float64:
        return None
    # A number is rounded to float32 before torch computes with it.
    return x.to(dtype), float(np.float32(y)) if isinstance(y, int | float) else y.to(dtype)


def _exact_fmod(x: Any, y: Any) -> Any:
    """``fmod`` of narrower floats: exact in float64 up to quotients of 2^29."""
    import torch

    wide, divisor = x.double(), y.double() if torch.is_tensor(y) else y
    result = (wide - torch.trunc(wide / divisor) * divisor).to(x.dtype)
    whole = x - x + x  # NaN of an infinity
    if torch.is_tensor(y):
        return torch.where(torch.isinf(y), whole, result)
    return whole if math.isinf(y) else result


def _fmod(x: Any, y: Any) -> Any:
    """TVM subtracts the divisor as often as the rounded quotient says."""
    floats = _floats(x, y)
    return NotImplemented if floats is None else _exact_fmod(*floats)


def _goes_the_other_way(remainder: Any, y: Any) -> Any:
    """Where a remainder is not zero and has the other sign than the divisor."""
    if isinstance(y, float):
        return remainder > 0 if y < 0 else remainder < 0
    return ((y < 0) & (remainder > 0)) | ((y > 0) & (remainder < 0))


def _floor_divide(x: Any, y: Any) -> Any:
    """Of floats by their remainder, as torch does: 1 // 0.1 is 9, though 1 / 0.1 rounds to 10."""
    import torch

    floats = _floats(x, y)
    if floats is None:
        return NotImplemented
    x, y = floats
    if isinstance(y, float) and y == 0:
        return x * math.inf
    remainder = _exact_fmod(x, y)
    quotient = torch.round((x - remainder) / y)
    quotient = torch.where(_goes_the_other_way(remainder, y), quotient - 1, quotient)
    return quotient if isinstance(y, float) else torch.where(y == 0, x / y, quotient)


def _remainder(x: Any, y: Any) -> Any:
    """Of floats exactly: TVM subtracts a rounded quotient's floor times the divisor."""
    import torch

    floats = _floats(x, y)
    if floats is None:
        return NotImplemented
    x, y = floats
    remainder = _exact_fmod(x, y)
    return torch.where(_goes_the_other_way(remainder, y), remainder + y, remainder)


def _logaddexp(x: Any, y: Any) -> Any:
    """TVM's operator does not compile on every target."""
    import torch

    larger, distance = torch.maximum(x, y), torch.abs(x - y)
    # Of two equal infinities the distance is NaN.
    return torch.where(x == y, larger + math.log(2), larger + torch.log1p(torch.exp(-distance)))


def _var_mean(x: Any, dim: Any = None, *, correction: Any = None, keepdim: bool = False) -> Any:
    import torch

    axes = list(range(x.dim())) if dim is None else dim
    return torch.var(x, axes, correction=correction, keepdim=keepdim), torch.mean(x, axes, keepdim)


def _exp2(x: Any) -> Any:
    return 2**x


def _unfold(x: Any, dim: int, size: int, step: int) -> Any:
    """``Tensor.unfold``: overlapping windows along an axis, which torch itself takes as strides."""
    import torch

    dim = dim % x.dim()
    starts = torch.arange(0, x.shape[dim] - size + 1, step)
    positions = (starts[:, None] + torch.arange(size)).flatten()
    windows = torch.index_select(x, dim, positions).unflatten(dim, (len(starts), size))
    return windows.movedim(dim + 1, -1)


def _col2im(
    x: Any, output_size: Any, kernel_size: Any, dilation: Any, padding: Any, stride: Any
) -> Any:
    """``F.fold``: a transposed convolution of each channel whose weights put a tap at its place."""
    import torch

    kh, kw = kernel_size
    counts = [
        (size + 2 * p - d * (k - 1) - 1) // s + 1
        for size, p, d, k, s in zip(
            output_size, padding, dilation, kernel_size, stride, strict=True
        )
    ]
    beyond = [
        size - ((n - 1) * s - 2 * p + d * (k - 1) + 1)
        for size, n, p, d, k, s in zip(
            output_size, counts, padding, dilation, kernel_size, stride, strict=True
        )
    ]
    batched = x if x.dim() == 3 else x[None]
    channels = batched.shape[1] // (kh * kw)
    taps = torch.arange(kh * kw)
    places = (taps[:, None] == taps).to(x.dtype).reshape(kh * kw, 1, kh, kw)
    folded = torch.nn.functional.conv_transpose2d(
        batched.reshape(batched.shape[0], -1, *counts),
        places.repeat(channels, 1, 1, 1),
        stride=stride,
        padding=padding,
        output_padding=beyond,
        groups=channels,
        dilation=dilation,
    )
    return folded if x.dim() == 3 else folded[0]


def _rrelu_functional(
    x: Any, noise: Any, lower: float = 1 / 8, upper: float = 1 / 3, *further: Any, **_: Any
) -> Any:
    """Evaluation mode: the slope is the mean of its bounds. ``further``: training, a generator."""
    import torch

    if any(further):
        return NotImplemented
    return torch.nn.functional.leaky_relu(x, (lower + upper) / 2), noise


def _rrelu(*arguments: Any, **named: Any) -> Any:
    found = _rrelu_functional(*arguments, **named)
    return found if found is NotImplemented else found[0]


def _clamp(x: Any, min: Any = None, max: Any = None) -> Any:
    """Bounds the wrong way round: torch answers the upper one, TVM the lower one."""
    import torch

    if min is None or max is None or min <= max:
        return NotImplemented
    return torch.clamp(torch.clamp(x, min=min), max=max)


def _select(x: Any, dim: int, index: int) -> Any:
    """Counted from the end, TVM's importer reads outside of the tensor."""
    import torch

    return torch.select(x, dim, index + x.shape[dim]) if index < 0 else NotImplemented


def _take(x: Any, index: Any) -> Any:
    """As :func:`_select`, of the flattened tensor."""
    return x.reshape(-1)[index]


def _is_finite(x: Any) -> Any:
    """TVM's operator does not compile."""
    import torch

    return torch.abs(x) < math.inf if x.is_floating_point() else NotImplemented
