"""Tensors that go into and out of a library: plain data, checks, and which size they are of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import tvm

from .frontend import TensorSpec

# Sizes that the message on a size that is not there lists.
_SHOWN_SIZES = 8
Shapes = list[tuple[int, ...]]


def tensor_data(spec: TensorSpec) -> Any:
    """As a manifest says it."""
    return {"name": spec.name, "shape": list(spec.shape), "dtype": spec.dtype}


def spec_of(data: Any) -> TensorSpec:
    """Inverse of :func:`tensor_data`."""
    return TensorSpec(data["name"], tuple(data["shape"]), data["dtype"])


def as_array(value: Any, spec: TensorSpec) -> np.ndarray:
    """An array or torch tensor as the input that it is given for.

    Raises
    ------
    ValueError
        If it is neither, or of another shape or dtype.
    """
    if hasattr(value, "detach"):
        if str(value.dtype) == "torch.bfloat16" and spec.dtype == "float32":
            value = value.float()  # every value is one of float32
        _check_readable(value, spec)
        value = value.numpy(force=True)
    elif isinstance(value, tvm.runtime.Tensor):
        value = value.numpy()
    if not isinstance(value, np.ndarray):
        raise ValueError(
            f"input {spec.name!r}: got a {type(value).__name__}, expected a numpy array or torch"
            f" tensor {spec.dtype}{list(spec.shape)}"
        )
    if value.shape != spec.shape:
        raise ValueError(
            f"input {spec.name!r}: got shape {list(value.shape)}, expected {list(spec.shape)};"
            " the library is compiled for that shape, compile again for another"
        )
    if str(value.dtype) != spec.dtype:
        raise ValueError(
            f"input {spec.name!r}: got dtype {value.dtype}, expected {spec.dtype}; pass"
            f" x.astype({spec.dtype!r})"
        )
    return value


def _check_readable(tensor: Any, spec: TensorSpec) -> None:
    """Refuse a torch tensor that has no plain values.

    Raises
    ------
    ValueError
        With what to do.
    """
    if tensor.is_meta:
        raise ValueError(
            f"input {spec.name!r}: got a tensor on the meta device, expected one with values"
        )
    layout = str(tensor.layout).removeprefix("torch.")
    if layout != "strided":
        raise ValueError(
            f"input {spec.name!r}: got the layout {layout}, expected a dense tensor; pass"
            " x.to_dense()"
        )
    if tensor.is_quantized:
        raise ValueError(
            f"input {spec.name!r}: got a quantised tensor ({tensor.dtype}), expected {spec.dtype};"
            " pass x.dequantize()"
        )


def no_such_size(got: Shapes, sizes: Sequence[Shapes]) -> str:
    """What to say of shapes that no size of a library has; it names the nearest."""

    def distance(wanted: Shapes) -> float:
        if [len(shape) for shape in wanted] != [len(shape) for shape in got]:
            return float("inf")
        pairs = zip(sum(wanted, ()), sum(got, ()), strict=True)
        return float(sum(abs(np.log(max(w, 1) / max(g, 1))) for w, g in pairs))

    def shown(shapes: Shapes) -> str:
        return " and ".join(str(list(shape)) for shape in shapes) or "no inputs"

    known = ", ".join(map(shown, sizes[:_SHOWN_SIZES]))
    more = f" and {len(sizes) - _SHOWN_SIZES} more" if len(sizes) > _SHOWN_SIZES else ""
    return (
        f"got inputs of the shapes {shown(got)}, the library is compiled for {known}{more}; the"
        f" nearest is {shown(min(sizes, key=distance))}: bring the inputs to that, or compile again"
        " with theirs among sizes"
    )
