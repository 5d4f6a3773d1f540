"""Indexing with tensors: numpy's rules, which TVM's importer follows in some cases only."""

from __future__ import annotations

from typing import Any

from tvm import relax

from .torch_arguments import Arguments, UnsupportedOptionError, dtype_of, shape_of


def index(node: Any, importer: Any) -> relax.Expr:
    """``x[i, :, j]``: the indexed axes come first while they are read, then where torch has them.

    Negative indices count from the end, and none reads outside of the tensor.
    """
    arguments = Arguments(node, importer)
    x = arguments["self"]
    given = [(axis, i) for axis, i in enumerate(arguments["indices"]) if i is not None]
    axes = [axis for axis, _ in given]
    for _, i in given:
        if dtype_of(i) in ("bool", "uint8"):
            raise UnsupportedOptionError(
                "the operator 'index' with a mask has a result whose shape depends on the data;"
                " use torch.where or multiply by the mask"
            )
    shape, output = shape_of(x), arguments.output_shape
    if len(given) == 1:
        return _take(arguments, x, _from_the_start(arguments, given[0][1], shape[axes[0]]), axes[0])
    rest = [axis for axis in range(len(shape)) if axis not in axes]
    x = arguments.emit(relax.op.permute_dims(x, axes + rest))
    rank = max(len(shape_of(i)) for _, i in given)
    common = _broadcast([shape_of(i) for _, i in given], rank)
    flat = None
    for axis, i in given:
        i = _from_the_start(arguments, i, shape[axis])
        i = arguments.emit(relax.op.broadcast_to(i, relax.ShapeExpr(common)))
        step = relax.const(shape[axis], "int64")
        flat = (
            i
            if flat is None
            else arguments.emit(relax.op.add(arguments.emit(relax.op.multiply(flat, step)), i))
        )
    joined = arguments.emit(relax.op.reshape(x, [-1, *(shape[axis] for axis in rest)]))
    y = _take(arguments, joined, flat, 0)
    if axes == list(range(axes[0], axes[0] + len(axes))):
        order = [rank + i for i in range(axes[0])] + list(range(rank))
        order += [rank + i for i in range(axes[0], len(rest))]
        y = arguments.emit(relax.op.permute_dims(y, order))
    return arguments.emit(relax.op.reshape(y, output))


def index_put(node: Any, importer: Any) -> relax.Expr:
    """``x[i, j] = values`` where every axis has its tensor of positions."""
    arguments = Arguments(node, importer)
    x, indices = arguments["self"], arguments["indices"]
    whole = len(indices) == len(shape_of(x)) and None not in arguments.given["indices"]
    if not whole or any(dtype_of(i) == "bool" for i in indices):
        raise UnsupportedOptionError(
            "the operator 'index_put' (assigning to x[:, i], to a mask, or F.fold) is taken with"
            " positions for every axis only; use torch.where, torch.cat or pixel_shuffle"
        )
    shape = shape_of(x)
    rank = max(len(shape_of(i)) for i in indices)
    common = relax.ShapeExpr(_broadcast([shape_of(i) for i in indices], rank))
    places = [
        arguments.emit(relax.op.broadcast_to(_from_the_start(arguments, i, size), common))
        for i, size in zip(indices, shape, strict=False)
    ]
    values = arguments.emit(
        relax.op.broadcast_to(
            arguments["values"], relax.ShapeExpr([*common.values, *shape[len(indices) :]])
        )
    )
    return arguments.emit(
        relax.op.index_put(x, places, values, accumulate=arguments.given["accumulate"])
    )


def _take(arguments: Arguments, x: relax.Expr, indices: relax.Expr, axis: int) -> relax.Expr:
    return arguments.emit(relax.op.take(x, indices, axis=axis, mode="clip"))


def _from_the_start(arguments: Arguments, indices: relax.Expr, size: int) -> relax.Expr:
    if dtype_of(indices) != "int64":
        indices = arguments.emit(relax.op.astype(indices, "int64"))
    wrapped = relax.op.add(indices, relax.const(size, "int64"))
    negative = relax.op.less(indices, relax.const(0, "int64"))
    return arguments.emit(relax.op.where(negative, wrapped, indices))


def _broadcast(shapes: list[list[int]], rank: int) -> list[int]:
    padded = [[1] * (rank - len(shape)) + shape for shape in shapes]
    return [max(sizes) if 0 not in sizes else 0 for sizes in zip(*padded, strict=True)]
