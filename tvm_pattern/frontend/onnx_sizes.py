"""Sizes of an ONNX model's inputs: those that it leaves open are those of the examples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

# Sizes of one axis, a name or None where it is open; None for a whole shape that is not known.
Dims = list[int | str | None] | None


def model_inputs(model: Any) -> dict[str, Dims]:
    """Inputs that are no initializers -> sizes; a name, or None, where one is open."""
    stored = {t.name for t in model.graph.initializer}
    return {v.name: _dims(v) for v in model.graph.input if v.name not in stored}


def _dims(value: Any) -> Dims:
    tensor = value.type.tensor_type
    if not tensor.HasField("shape"):
        return None
    return [
        # Exporters write -1, a name, "?" or nothing for an open size.
        d.dim_value
        if d.HasField("dim_value") and d.dim_value >= 0
        else (d.dim_param.replace("?", "") or None)
        for d in tensor.shape.dim
    ]


def with_fixed_sizes(model: Any, examples: Sequence[Any] | None) -> Any:
    """A copy of the model whose inputs have one size.

    Parameters
    ----------
    model : onnx.ModelProto
    examples : sequence of array or tensor, optional
        One per input.

    Raises
    ------
    ValueError
        If an input leaves a size open and there are no examples, or if they do not fit.
    """
    import onnx

    inputs = model_inputs(model)
    if examples is None:
        is_open = [n for n, dims in inputs.items() if dims is None or not _is_fixed(dims)]
        if is_open:
            shown = ", ".join(f"{name} {describe_dims(inputs[name])}" for name in is_open)
            raise ValueError(
                f"ONNX inputs {is_open} have symbolic dimensions ({shown}); give example_inputs"
                " (--shape) with the shapes to compile for"
            )
        shapes = {name: list(dims or ()) for name, dims in inputs.items()}
    else:
        shapes = _shapes_of(inputs, examples)  # type: ignore[assignment]
    fixed = onnx.ModelProto()
    fixed.CopyFrom(model)
    for value in fixed.graph.input:
        if value.name in shapes:
            tensor = value.type.tensor_type
            tensor.shape.ClearField("dim")
            tensor.shape.SetInParent()
            tensor.shape.dim.extend(
                onnx.TensorShapeProto.Dimension(dim_value=int(size))  # type: ignore[arg-type]
                for size in shapes[value.name]
            )
    if examples is not None:
        # They were written for sizes left open: to be inferred anew.
        del fixed.graph.value_info[:]
        for value in fixed.graph.output:
            if value.type.WhichOneof("value") == "tensor_type":
                value.type.tensor_type.ClearField("shape")
    return fixed


def _is_fixed(dims: list[int | str | None]) -> bool:
    return all(isinstance(d, int) for d in dims)


def describe_dims(dims: Dims) -> str:
    """As in messages: ``[1, 3, height, ?]``."""
    if dims is None:
        return "[...]"
    return f"[{', '.join('?' if d is None else str(d) for d in dims)}]"


def _shapes_of(inputs: dict[str, Dims], examples: Sequence[Any]) -> dict[str, list[int]]:
    if len(examples) != len(inputs):
        raise ValueError(
            f"got {len(examples)} example inputs, the ONNX model has {len(inputs)}"
            f" ({', '.join(inputs)}); give one per input"
        )
    shapes: dict[str, list[int]] = {}
    named: dict[str, int] = {}
    for (name, dims), value in zip(inputs.items(), examples, strict=True):
        got = list(np.shape(value))
        expected = [None] * len(got) if dims is None else dims
        if len(got) != len(expected) or any(
            isinstance(d, int) and d != g for d, g in zip(expected, got, strict=True)
        ):
            raise ValueError(
                f"example input {name!r}: got shape {got}, the ONNX model expects"
                f" {describe_dims(dims)}; give inputs that fit"
            )
        for dim, size in zip(expected, got, strict=True):
            if isinstance(dim, str) and named.setdefault(dim, size) != size:
                raise ValueError(
                    f"example input {name!r}: got shape {got}, the ONNX model expects"
                    f" {describe_dims(dims)}, and {dim} is {named[dim]} in another input or axis;"
                    " give inputs that fit together"
                )
        shapes[name] = got
    return shapes
