"""Pooling with the options that TVM's importer drops or stumbles over."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
from tvm import relax

from .torch_arguments import Arguments, dtype_of, shape_of, uses_item

_LAYOUTS = {1: "NCW", 2: "NCHW", 3: "NCDHW"}


def avg_pool(node: Any, importer: Any) -> relax.Expr:
    """``avg_pool2d`` and ``avg_pool3d``: TVM's operator where it agrees, else sums x factors."""
    arguments = Arguments(node, importer)
    rank = 3 if "3d" in node.target.__name__ else 2
    x, squeezed = _batched(arguments["self"], rank)
    kernel = arguments.pair("kernel_size", rank)
    stride = arguments.pair("stride", rank) if arguments.given["stride"] else kernel
    padding = arguments.pair("padding", rank)
    pool = {2: relax.op.nn.avg_pool2d, 3: relax.op.nn.avg_pool3d}[rank]
    if not arguments.given["ceil_mode"] and arguments.given["divisor_override"] is None:
        y = pool(
            x,
            kernel,
            stride,
            padding * 2,
            count_include_pad=arguments.given["count_include_pad"],
            layout=_LAYOUTS[rank],
        )
        return _unbatched(arguments, y, squeezed=squeezed)
    size = shape_of(x)[2:]
    outputs = arguments.output_shape[-rank:]
    widths = _padding_to_last_window(size, outputs, kernel, stride, padding)
    padded = arguments.emit(relax.op.nn.pad(x, widths)) if any(widths) else x
    mean = arguments.emit(pool(padded, kernel, stride, layout=_LAYOUTS[rank]))
    factors = _mean_factors(arguments, size, kernel)
    y = relax.op.multiply(mean, relax.const(factors.astype(dtype_of(x))))
    return _unbatched(arguments, y, squeezed=squeezed)


def _padding_to_last_window(
    size: list[int], outputs: list[int], kernel: list[int], stride: list[int], padding: list[int]
) -> list[int]:
    """Widths for ``nn.pad`` as far as the last window reaches; no window reaches further."""
    widths = [0, 0, 0, 0]
    for n, o, k, s, p in zip(size, outputs, kernel, stride, padding, strict=True):
        widths += [p, max((o - 1) * s + k - (n + p), 0)]
    return widths


def _mean_factors(arguments: Arguments, size: list[int], kernel: list[int]) -> np.ndarray:
    """torch's divisors against that of a full window: the operator on ones, in 64 bits."""
    import torch

    given = dict(arguments.given)
    given["self"] = torch.ones([1, 1, *size], dtype=torch.float64)
    divided = arguments.node.target(**given)
    summed = arguments.node.target(**{**given, "divisor_override": 1})
    # A window of padding alone has the sum 0; its divisor does not matter.
    ratio = torch.where(summed == 0, torch.zeros_like(summed), divided / summed)
    return (ratio * math.prod(kernel)).numpy()


def max_pool(node: Any, importer: Any) -> relax.Expr:
    """``max_pool*_with_indices``: the indices where they are used, else zeros instead."""
    arguments = Arguments(node, importer)
    rank = 3 if "3d" in node.target.__name__ else 2
    x, squeezed = _batched(arguments["self"], rank)
    kernel = arguments.pair("kernel_size", rank)
    stride = arguments.pair("stride", rank) if arguments.given["stride"] else kernel
    padding, dilation = arguments.pair("padding", rank), arguments.pair("dilation", rank)
    after = [
        # The last window decides: ceil_mode reaches further than the padding, or less far.
        max((o - 1) * s + (k - 1) * d + 1 - (n + p), 0)
        for n, o, k, s, p, d in zip(
            shape_of(x)[2:],
            arguments.output_shape[-rank:],
            kernel,
            stride,
            padding,
            dilation,
            strict=True,
        )
    ]
    if not arguments.given["ceil_mode"]:
        after = padding
    pool = {2: relax.op.nn.max_pool2d, 3: relax.op.nn.max_pool3d}[rank]
    y = pool(x, kernel, stride, [*padding, *after], dilation, layout=_LAYOUTS[rank])
    maxima = arguments.emit(_unbatched(arguments, y, squeezed=squeezed))
    if uses_item(node, 1):
        windows = list(zip(kernel, stride, padding, dilation, strict=True))
        indices = _positions(arguments, arguments.emit(x), windows)
        indices = _unbatched(arguments, indices, squeezed=squeezed)
    else:
        indices = relax.op.zeros(relax.ShapeExpr(arguments.output_shape), "int64")
    return arguments.emit(relax.Tuple([maxima, arguments.emit(indices)]))


def _positions(
    arguments: Arguments, x: relax.Expr, windows: list[tuple[int, int, int, int]]
) -> relax.Expr:
    """Where in its image each window has its maximum: the first one, or the last NaN, as in torch.

    Parameters
    ----------
    arguments : Arguments
    x : relax.Expr
        (batch, in_channels, *spatial).
    windows : list of tuple
        Of each spatial axis: kernel, stride, padding, dilation.
    """
    rank, shape, kind = len(windows), shape_of(x), dtype_of(x)
    size, outputs = shape[2:], arguments.output_shape[-len(windows) :]
    # Pixels of each tap, by axis; those beside the image are never the maximum.
    taps = [
        np.arange(o) * s - p + np.arange(k)[:, None] * d
        for (k, s, p, d), o in zip(windows, outputs, strict=True)
    ]
    widths = [0, 0, 0, 0]
    for pixels, n in zip(taps, size, strict=True):
        widths += [max(-int(pixels.min()), 0), max(int(pixels.max()) - (n - 1), 0)]
    lowest = -math.inf if "float" in kind else int(np.iinfo(kind).min)
    padded = arguments.emit(relax.op.nn.pad(x, widths, pad_value=lowest))
    firsts = [_first_inside(t) for t in taps]
    place: relax.Expr = _flat(firsts, size)
    best: relax.Expr = relax.const(lowest, kind)
    axes = list(range(2, 2 + rank))
    for chosen in itertools.product(*taps):
        begin = [int(c[0]) + w for c, w in zip(chosen, widths[4::2], strict=True)]
        end = [int(c[-1]) + w + 1 for c, w in zip(chosen, widths[4::2], strict=True)]
        strides = [s for _, s, _, _ in windows]
        tap = arguments.emit(relax.op.strided_slice(padded, axes, begin, end, strides))
        larger = relax.op.greater(tap, best)
        if "float" in kind:
            larger = relax.op.logical_or(arguments.emit(larger), relax.op.isnan(tap))
        larger = arguments.emit(larger)
        place = arguments.emit(relax.op.where(larger, _flat(list(chosen), size), place))
        best = arguments.emit(relax.op.where(larger, tap, best))
    return place


def _first_inside(pixels: np.ndarray) -> np.ndarray:
    """The first tap of each window that lies in the image."""
    return np.where(pixels >= 0, pixels, np.iinfo("int64").max).min(0)


def _flat(pixels: list[np.ndarray], size: list[int]) -> relax.Constant:
    """Positions in a flattened image, (1, 1, *outputs), of pixels along its axes."""
    grid = np.meshgrid(*pixels, indexing="ij")
    strides = [math.prod(size[axis + 1 :]) for axis in range(len(size))]
    flat = sum(g * s for g, s in zip(grid, strides, strict=True))
    return relax.const(np.asarray(flat)[None, None], "int64")


def adaptive_max_pool(node: Any, importer: Any) -> relax.Expr:
    """``adaptive_max_pool*``: a maximum over each window, rows first, then columns."""
    arguments = Arguments(node, importer)
    x = arguments["self"]
    rank = len(arguments.given["output_size"])
    shape = shape_of(x)
    for axis in range(len(shape) - rank, len(shape)):
        x = _adaptive_axis(arguments, x, axis, arguments.output_shape[axis])
    indices = relax.op.zeros(relax.ShapeExpr(arguments.output_shape), "int64")
    return arguments.emit(relax.Tuple([x, arguments.emit(indices)]))


def _adaptive_axis(arguments: Arguments, x: relax.Expr, axis: int, count: int) -> relax.Expr:
    """Maxima of ``count`` windows: the pixels of a window are gathered one after the other."""
    size = shape_of(x)[axis]
    starts = [(o * size) // count for o in range(count)]
    stops = [-((-(o + 1) * size) // count) for o in range(count)]
    longest = max(b - a for a, b in zip(starts, stops, strict=True))
    if count == 1:
        return arguments.emit(relax.op.max(x, axis=axis, keepdims=True))
    result = None
    for step in range(longest):
        at = [min(a + step, b - 1) for a, b in zip(starts, stops, strict=True)]
        term = arguments.emit(
            relax.op.take(x, relax.const(np.array(at, "int64")), axis=axis, mode="clip")
        )
        result = term if result is None else arguments.emit(relax.op.maximum(result, term))
    return result


def _batched(x: relax.Expr, rank: int) -> tuple[relax.Expr, bool]:
    missing = len(shape_of(x)) == rank + 1
    return (relax.op.expand_dims(x, 0) if missing else x), missing


def _unbatched(arguments: Arguments, y: relax.Expr, *, squeezed: bool) -> relax.Expr:
    y = arguments.emit(y)
    return arguments.emit(relax.op.squeeze(y, [0])) if squeezed else y
