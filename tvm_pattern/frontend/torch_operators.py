"""ATen operators that are translated here because TVM's importer gets them wrong or has none.

``converters`` goes to the importer as it is; ``decompositions`` says into what torch itself takes
an operator apart first. What neither of them handles is TVM's, and what nobody handles correctly is
refused by ``torch_refusals``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm import relax

from .torch_arguments import Arguments, dtype_of, shape_of
from .torch_index import index, index_put
from .torch_pool import adaptive_max_pool, avg_pool, max_pool
from .torch_quantized import CONVERTERS as QUANTIZED
from .torch_resize import resize

Converter = Callable[[Any, Any], relax.Expr]

_RESIZES = tuple(
    f"{operator}.{overload}"
    for operator in (
        "upsample_nearest1d",
        "upsample_nearest2d",
        "upsample_nearest3d",
        "_upsample_nearest_exact1d",
        "_upsample_nearest_exact2d",
        "_upsample_nearest_exact3d",
        "upsample_linear1d",
        "upsample_bilinear2d",
        "upsample_trilinear3d",
        "upsample_bicubic2d",
        "_upsample_bilinear2d_aa",
        "_upsample_bicubic2d_aa",
        "_upsample_lanczos2d_aa",
    )
    for overload in ("vec", "default")
)


def _elu(node: Any, importer: Any) -> relax.Expr:
    """``elu`` with all of its factors: selu is one of its forms."""
    arguments = Arguments(node, importer)
    x, given = arguments["self"], arguments.given
    kind = dtype_of(x)
    scaled = relax.op.multiply(x, relax.const(given["input_scale"], kind))
    negative = relax.op.exp(scaled if given["input_scale"] != 1 else x)
    negative = relax.op.minimum(
        relax.op.subtract(negative, relax.const(1, kind)), relax.const(0, kind)
    )
    negative = relax.op.multiply(negative, relax.const(given["alpha"] * given["scale"], kind))
    positive = relax.op.nn.relu(x)
    if given["scale"] != 1:
        positive = relax.op.multiply(positive, relax.const(given["scale"], kind))
    return arguments.emit(relax.op.add(positive, negative))


def _extremum(operator: Callable[..., relax.Expr]) -> Converter:
    """``amax`` and ``amin``: over the given axes, over all of them if there are none."""

    def convert(node: Any, importer: Any) -> relax.Expr:
        arguments = Arguments(node, importer)
        axes = list(arguments.given["dim"]) or None
        return arguments.emit(
            operator(arguments["self"], axis=axes, keepdims=arguments.given["keepdim"])
        )

    return convert


def _group_norm(node: Any, importer: Any) -> relax.Expr:
    """``native_group_norm``: TVM's needs a weight and a bias."""
    arguments = Arguments(node, importer)
    x = arguments["input"]
    channels, kind = shape_of(x)[1], dtype_of(x)
    weight, bias = arguments["weight"], arguments["bias"]
    shape = relax.ShapeExpr([channels])
    y = relax.op.nn.group_norm(
        x,
        relax.op.ones(shape, kind) if weight is None else weight,
        relax.op.zeros(shape, kind) if bias is None else bias,
        num_groups=arguments.given["group"],
        channel_axis=1,
        axes=list(range(2, len(shape_of(x)))),
        epsilon=arguments.given["eps"],
    )
    return arguments.emit(relax.Tuple([arguments.emit(y)]))


def _any(node: Any, importer: Any) -> relax.Expr:
    """``any`` of numbers or truth values, over axes or over all."""
    arguments = Arguments(node, importer)
    x, dims = arguments["self"], arguments.given.get("dim")
    zero = relax.const(0, dtype_of(x))
    if dtype_of(x) != "bool":
        x = arguments.emit(relax.op.not_equal(x, zero))
    axes = [dims] if isinstance(dims, int) else dims or None
    counted = relax.op.max(
        relax.op.astype(x, "int8"), axes, keepdims=arguments.given.get("keepdim", False)
    )
    return arguments.emit(relax.op.astype(counted, "bool"))


def _min_dim(node: Any, importer: Any) -> relax.Expr:
    """``min(x, dim)``: values and positions."""
    arguments = Arguments(node, importer)
    x, axis, keepdims = arguments["self"], arguments.given["dim"], arguments.given["keepdim"]
    values = arguments.emit(relax.op.min(x, axis, keepdims))
    return arguments.emit(relax.Tuple([values, arguments.emit(relax.op.argmin(x, axis, keepdims))]))


def _prelu(node: Any, importer: Any) -> relax.Expr:
    """``prelu``: whole, so that it can stay on planes."""
    arguments = Arguments(node, importer)
    x, slope = arguments["self"], arguments["weight"]
    shape = shape_of(x)
    if not shape:
        x = arguments.emit(relax.op.reshape(x, (1,)))
    result = arguments.emit(relax.op.nn.prelu(x, slope, 1 if len(shape) > 1 else 0))
    return result if shape else arguments.emit(relax.op.reshape(result, ()))


def _prod_dim(node: Any, importer: Any) -> relax.Expr:
    """``prod(x, dim)``."""
    arguments = Arguments(node, importer)
    return arguments.emit(
        relax.op.prod(arguments["self"], arguments.given["dim"], arguments.given["keepdim"])
    )


def converters() -> dict[str, Converter]:
    """Operator of the exported program -> its translation."""
    return {
        **dict.fromkeys(_RESIZES, resize),
        **QUANTIZED,
        "elu.default": _elu,
        "amax.default": _extremum(relax.op.max),
        "amin.default": _extremum(relax.op.min),
        "avg_pool2d.default": avg_pool,
        "avg_pool3d.default": avg_pool,
        "max_pool2d_with_indices.default": max_pool,
        "max_pool3d_with_indices.default": max_pool,
        "adaptive_max_pool2d.default": adaptive_max_pool,
        "adaptive_max_pool3d.default": adaptive_max_pool,
        "native_group_norm.default": _group_norm,
        "index.Tensor": index,
        "index_put.default": index_put,
        "any.default": _any,
        "any.dim": _any,
        "any.dims": _any,
        "min.dim": _min_dim,
        "prelu.default": _prelu,
        "prod.dim_int": _prod_dim,
    }
