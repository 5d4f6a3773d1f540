"""Resizing: torch itself says which input pixels an output pixel is made of.

Every mode of ``interpolate`` is linear in the image and separable: one matrix per axis. TVM knows
one rule for coordinates, torch has several, and each rounds in its own way; so the matrix is what
torch makes of unit vectors, and any option is right by construction.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from tvm import relax

from .torch_arguments import Arguments, dtype_of, shape_of

# Up to so many input pixels an output pixel is a sum of gathered pixels, above a matrix product.
_GATHERED_PIXELS = 2


def resize(node: Any, importer: Any) -> relax.Expr:
    """``upsample_*`` and ``_upsample_*_aa``: one axis after the other."""
    arguments = Arguments(node, importer)
    x = arguments[next(iter(arguments.given))]
    shape = shape_of(x)
    for axis in range(2, len(shape)):
        matrix = _axis_matrix(arguments, axis, len(shape), shape[axis])
        x = apply_along(arguments.emit, x, matrix, axis)
    return x


def _axis_matrix(arguments: Arguments, axis: int, rank: int, size: int) -> np.ndarray:
    """What the operator does along one axis: [output pixels, input pixels]."""
    import torch

    # The other axes keep their two pixels. With one pixel, torch takes the image for one in
    # channels-last order and answers wrong numbers for some modes.
    view, shape, kept = [size] + [1] * (rank - 2), [size] + [2] * (rank - 2), [2] * (rank - 2)
    view[axis - 1] = shape[axis - 1] = size
    image = next(iter(arguments.given))
    given = dict(arguments.given)
    given[image] = torch.eye(size).view(view).expand(shape).contiguous()[None]
    if given["output_size"] is not None:
        given["output_size"] = list(kept)
        given["output_size"][axis - 2] = arguments.output_shape[axis]
    if given.get("scale_factors") is not None:  # the overload `vec`: a list
        given["scale_factors"] = [1.0] * (rank - 2)
        given["scale_factors"][axis - 2] = arguments.given["scale_factors"][axis - 2]
    separate = [name for name in given if name.startswith("scales")]  # the others: one by one
    for other, name in enumerate(separate):
        given[name] = given[name] if other == axis - 2 else None
    result = arguments.node.target(**given)[0].movedim(axis - 1, 1)
    return result.reshape(*result.shape[:2], -1)[..., 0].T.contiguous().numpy()


def apply_along(
    emit: Callable[[relax.Expr], relax.Var], x: relax.Expr, matrix: np.ndarray, axis: int
) -> relax.Expr:
    """``matrix`` [output, input] applied to one axis of ``x``."""
    matrix = matrix.astype(dtype_of(x))
    if matrix.shape[0] == matrix.shape[1] and np.array_equal(matrix, np.eye(len(matrix))):
        return x
    used = matrix != 0
    pixels = int(used.sum(1).max(initial=0))
    if 0 < pixels <= _GATHERED_PIXELS:
        return _gather(emit, x, matrix, axis, pixels)
    rank = len(shape_of(x))
    order = [a for a in range(rank) if a != axis] + [axis]
    moved = emit(relax.op.permute_dims(x, order))
    product = emit(relax.op.matmul(moved, relax.const(np.ascontiguousarray(matrix.T))))
    return emit(relax.op.permute_dims(product, [order.index(a) for a in range(rank)]))


def _gather(
    emit: Callable[[relax.Expr], relax.Var],
    x: relax.Expr,
    matrix: np.ndarray,
    axis: int,
    pixels: int,
) -> relax.Expr:
    # Used pixels first, in their order; a row with fewer repeats a pixel with weight zero.
    order = np.argsort(matrix == 0, axis=1, kind="stable")[:, :pixels]
    weights = np.take_along_axis(matrix, order, axis=1)
    indices = np.where(weights != 0, order, order[:, :1])
    broadcast = [1] * len(shape_of(x))
    broadcast[axis] = len(matrix)
    total = None
    for pixel in range(pixels):
        term = emit(
            relax.op.take(x, relax.const(indices[:, pixel].astype("int64")), axis=axis, mode="clip")
        )
        if not np.all(weights[:, pixel] == 1):
            weight = relax.const(np.ascontiguousarray(weights[:, pixel].reshape(broadcast)))
            term = emit(relax.op.multiply(term, weight))
        total = term if total is None else emit(relax.op.add(total, term))
    return total
