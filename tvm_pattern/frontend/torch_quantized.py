"""Quantised values of exported programs: ``quantized_decomposed`` operators and fake quantisation.

PT2E programs hold pairs of ``quantize`` and ``dequantize`` around operators on floats. They become
``R.quantize`` and ``R.dequantize``, whose values are the same but where a float lies on the border
between two steps: torch multiplies by a scale's reciprocal, Relax divides by the scale.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from tvm import relax

from relay_passes.dataflow import array_of

from .torch_arguments import Arguments, UnsupportedOptionError, dtype_of, shape_of

_INTEGERS = ("int8", "uint8", "int16", "int32")


def _dtype(value: Any) -> str:
    name = str(value).removeprefix("torch.")
    if name not in _INTEGERS:
        raise UnsupportedOptionError(
            f"a tensor is quantised to {name}; expected one of {', '.join(_INTEGERS)}"
        )
    return name


def _constant(arguments: Arguments, name: str, dtype: str) -> relax.Expr:
    """A scale or zero point, given as a number or as a tensor, as a constant or variable."""
    value = arguments.stored(name)
    if value is None:
        raise UnsupportedOptionError(
            f"the {name} of a quantised tensor is computed; expected a constant: calibrate the"
            " network by data (static quantisation)"
        )
    array = value.astype(dtype)
    return relax.const(array.reshape(()) if array.size == 1 else array)


def _axis(arguments: Arguments, x: relax.Expr) -> int:
    return int(arguments.given.get("axis") or 0) % max(1, len(shape_of(x)))


def _zero_points(arguments: Arguments, scale: relax.Expr) -> relax.Expr:
    name = "zero_points" if "zero_points" in arguments.given else "zero_point"
    if arguments.given[name] is None:
        return relax.const(np.zeros(shape_of(scale), "int32"))
    return _constant(arguments, name, "int32")


def _scales(arguments: Arguments) -> relax.Expr:
    name = "scales" if "scales" in arguments.given else "scale"
    return _constant(arguments, name, "float32")


def quantize(node: Any, importer: Any) -> relax.Expr:
    """``quantize_per_tensor`` and ``quantize_per_channel``: of a constant, a constant."""
    arguments = Arguments(node, importer)
    dtype = _dtype(arguments.given["dtype"])
    x, stored = arguments["input"], arguments.stored("input")
    scale = _scales(arguments)
    zero_point, axis = _zero_points(arguments, scale), _axis(arguments, x)
    limits = int(arguments.given["quant_min"]), int(arguments.given["quant_max"])
    shape = [-1 if a == axis else 1 for a in range(len(shape_of(x)))]
    scales, zeros = (array_of(v) for v in (scale, zero_point))
    if scales.ndim:
        scales, zeros = scales.reshape(shape), zeros.reshape(shape)
    if stored is not None:
        steps = np.rint(stored / scales) + zeros
        return relax.const(np.clip(steps, *limits).astype(dtype))
    info = np.iinfo(dtype)
    if limits[0] > info.min or limits[1] < info.max:
        # What lies beyond a limit is rounded to it.
        low, high = (relax.const((limit - zeros).astype("float32") * scales) for limit in limits)
        x = relax.op.minimum(relax.op.maximum(x, low), high)
    return arguments.emit(relax.op.quantize(x, scale, zero_point, axis, dtype))


def dequantize(node: Any, importer: Any) -> relax.Expr:
    """``dequantize_per_tensor`` and ``dequantize_per_channel``."""
    arguments = Arguments(node, importer)
    given = arguments.given.get("out_dtype")
    if given is not None and str(given) != "torch.float32":
        raise UnsupportedOptionError(
            f"a tensor is dequantised to {str(given).removeprefix('torch.')}; expected float32"
        )
    x, scale = arguments["input"], _scales(arguments)
    _dtype(dtype_of(x))
    zero_point = _zero_points(arguments, scale)
    return arguments.emit(relax.op.dequantize(x, scale, zero_point, _axis(arguments, x)))


def _eight_bits(low: int, high: int) -> Any:
    """The 8-bit dtype that holds a range."""
    import torch

    if low >= 0 and high <= 255:
        return torch.uint8
    if low < -128 or high > 127:
        raise UnsupportedOptionError(
            f"fake quantisation to {low} ... {high}; expected a range within 8 bits"
        )
    return torch.int8


def fake_per_tensor(x: Any, scale: float, zero_point: int, low: int, high: int) -> Any:
    """``fake_quantize_per_tensor_affine`` as what it stands for."""
    import torch

    operators = torch.ops.quantized_decomposed
    arguments = (scale, zero_point, low, high, _eight_bits(low, high))
    integers = operators.quantize_per_tensor.default(x, *arguments)
    return operators.dequantize_per_tensor.default(integers, *arguments)


def fake_per_channel(x: Any, scale: Any, zero_point: Any, axis: int, low: int, high: int) -> Any:
    """``fake_quantize_per_channel_affine`` as what it stands for."""
    import torch

    operators = torch.ops.quantized_decomposed
    arguments = (scale, zero_point, axis, low, high, _eight_bits(low, high))
    integers = operators.quantize_per_channel.default(x, *arguments)
    return operators.dequantize_per_channel.default(integers, *arguments)


CONVERTERS = {
    "quantize_per_tensor.default": quantize,
    "quantize_per_tensor.tensor": quantize,
    "quantize_per_channel.default": quantize,
    "dequantize_per_tensor.default": dequantize,
    "dequantize_per_tensor.tensor": dequantize,
    "dequantize_per_channel.default": dequantize,
}
