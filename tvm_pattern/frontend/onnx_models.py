"""From ONNX to Relax."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from tvm import relax

from .onnx_rewrites import GraphEditor
from .shared import (
    IMPORTER_ERRORS,
    ImportedModel,
    as_input_tuple,
    check_finite,
    finish,
    first_line,
    layer_of,
    quiet,
)

_LIMITS = ("Clip", "Max", "Min")


def read_onnx(path: Path) -> Any:
    import onnx
    from google.protobuf.message import DecodeError

    if not path.is_file():
        raise ValueError(f"no such file: {path}; expected the path of an ONNX model")
    try:
        model = onnx.load(path)
        onnx.checker.check_model(model)
    except (DecodeError, OSError, ValueError, onnx.checker.ValidationError) as error:
        raise ValueError(
            f"{path} is not a readable ONNX model: {error}; export it again and check it with"
            " onnx.checker.check_model"
        ) from error
    return model


def from_onnx_model(model: Any, example_inputs: Any) -> ImportedModel:
    from tvm.relax.frontend.onnx import from_onnx

    _check_onnx_finite(model)
    inputs = _onnx_inputs(model)
    shapes = {}
    if example_inputs is not None:
        examples = as_input_tuple(example_inputs)
        if len(examples) != len(inputs):
            raise ValueError(
                f"got {len(examples)} example inputs, the ONNX model has {len(inputs)}"
                f" ({', '.join(inputs)}); give one per input"
            )
        for (name, dims), value in zip(inputs.items(), examples, strict=True):
            got = list(np.shape(value))
            if len(got) != len(dims) or any(
                d not in (None, g) for d, g in zip(dims, got, strict=True)
            ):
                raise ValueError(
                    f"example input {name!r}: got shape {got}, the ONNX model expects"
                    f" {[d if d is not None else '?' for d in dims]}; give inputs that fit"
                )
            shapes[name] = got
    else:
        dynamic = [n for n, dims in inputs.items() if None in dims]
        if dynamic:
            raise ValueError(
                f"ONNX inputs {dynamic} have symbolic dimensions; give example_inputs with the"
                " shapes to compile for"
            )
    rewritten = GraphEditor(model, shapes).rewrite()
    try:
        with quiet():
            mod = from_onnx(rewritten, shape_dict=shapes or None)
            if shapes:
                mod = relax.transform.FoldConstant()(mod)
    except IMPORTER_ERRORS as error:
        raise ValueError(
            f"TVM's ONNX importer does not take this model: {first_line(error)}; simplify or"
            " re-export it"
        ) from error
    mod = relax.transform.BindParams("main", {})(mod)
    return finish(mod, _onnx_layer_names(model))


def _onnx_inputs(model: Any) -> dict[str, list[int | None]]:
    """Inputs that are no initializers -> dimensions, None where symbolic."""
    stored = {t.name for t in model.graph.initializer}
    return {
        value.name: [
            d.dim_value if d.HasField("dim_value") else None
            for d in value.type.tensor_type.shape.dim
        ]
        for value in model.graph.input
        if value.name not in stored
    }


def _check_onnx_finite(model: Any) -> None:
    from onnx import numpy_helper

    arrays = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    # Infinite bounds are no weights.
    limits = {name for node in model.graph.node if node.op_type in _LIMITS for name in node.input}
    check_finite(
        (name, array)
        for name, array in arrays.items()
        if not (name in limits and array.size == 1 and np.isinf(array).all())
    )


def _onnx_layer_names(model: Any) -> list[str | None]:
    stored = {t.name for t in model.graph.initializer}
    names: list[str | None] = []
    for node in model.graph.node:
        if node.op_type in ("Conv", "ConvTranspose"):
            weight = node.input[1]
            layer = layer_of(weight) if weight in stored and "." in weight else node.name
            names.append(layer or None)
    return names
