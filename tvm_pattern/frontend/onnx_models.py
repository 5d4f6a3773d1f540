"""From ONNX to Relax."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from tvm import relax

from topi_kernels.structure import METADATA, Structure

from ..onnx_files import check_opset, check_size
from .onnx_rewrites import REWRITES, GraphEditor
from .onnx_simplify import simplified
from .onnx_sizes import with_fixed_sizes
from .quantized_weights import fold_constants
from .shared import (
    IMPORTER_ERRORS,
    ImportedModel,
    as_input_tuple,
    check_finite,
    finish,
    first_line,
    layer_of,
    quiet,
    with_structures,
)

_LIMITS = ("Clip", "Max", "Min")
_SIZED_BY_DATA = {"Compress", "NonMaxSuppression", "NonZero", "Unique"}


def from_onnx_model(model: Any, example_inputs: Any) -> ImportedModel:
    from tvm.relax.frontend.onnx import from_onnx

    check_opset(model)
    check_size(model)
    _check_onnx_finite(model)
    examples = as_input_tuple(example_inputs) if example_inputs is not None else None
    plain = simplified(_with_layer_names(with_fixed_sizes(model, examples)))
    check_operators(plain)
    rewritten = GraphEditor(plain).rewrite()
    try:
        with quiet():
            mod = from_onnx(rewritten)
            mod = fold_constants(mod)
    except IMPORTER_ERRORS as error:
        if "negative output shape" in str(error):
            raise ValueError(
                f"the ONNX model cannot have inputs of these sizes: {first_line(error)}; give"
                " example_inputs (--shape) of sizes that it is made for"
            ) from error
        raise ValueError(
            f"TVM's ONNX importer does not take this model: {first_line(error)}; simplify or"
            " re-export it"
        ) from error
    mod = relax.transform.BindParams("main", {})(mod)
    output_names = [output.name for output in model.graph.output]
    finished = finish(mod, _layer_names(plain), _linear_names(plain), output_names)
    return with_structures(finished, _structures(model))


def _structures(model: Any) -> dict[str, Structure]:
    """What whoever pruned the network left in the file.

    Raises
    ------
    ValueError
        If that is damaged.
    """
    stored = {entry.key: entry.value for entry in model.metadata_props}.get(METADATA)
    if stored is None:
        return {}
    try:
        return {name: Structure.from_plain(data) for name, data in json.loads(stored).items()}
    except (AttributeError, ValueError) as error:
        raise ValueError(
            f"the ONNX file's metadata {METADATA!r} is damaged ({error}); write the file again, or"
            " remove that entry"
        ) from error


def check_operators(model: Any) -> None:
    """Refuse a model for the operators that nobody translates.

    Raises
    ------
    ValueError
        Names each with its first node, and the way out.
    """
    from tvm.relax.frontend.onnx import onnx_frontend

    if not model.graph.output:
        raise ValueError("the ONNX model has no outputs; expected one at least: name what it gives")
    sized = sorted({node.op_type for node in model.graph.node} & _SIZED_BY_DATA)
    if sized:
        raise ValueError(
            f"the ONNX model has {', '.join(sized)}, whose result has as many entries as the data"
            " say; expected fixed shapes: compile the network up to there"
            " (onnx.utils.extract_model) and leave the selection to ONNX Runtime"
        )
    training = [node for node in model.graph.node if _drops_at_random(node, model)]
    if training:
        name = training[0].name or training[0].output[0]
        raise ValueError(
            f"the ONNX model has Dropout in training mode (node {name!r}), which draws random"
            " numbers; export the network in evaluation mode"
        )
    known = {*onnx_frontend._get_convert_map(), *REWRITES, "Constant", "If"}
    unknown: dict[str, Any] = {}
    for node in model.graph.node:
        if node.op_type not in known:
            unknown.setdefault(node.op_type, node)
    if unknown:
        named = ", ".join(f"{kind} (node {n.name or n.output[0]!r})" for kind, n in unknown.items())
        before = next(iter(unknown.values())).input[:1]
        way_out = (
            f"compile the network up to there (onnx.utils.extract_model with the output"
            f" {before[0]!r}) and leave the rest to ONNX Runtime"
            if before
            else "compute what it gives beforehand, and make it an input of the network"
        )
        raise ValueError(f"the ONNX model has operators without a translation: {named}; {way_out}")


def _drops_at_random(node: Any, model: Any) -> bool:
    """Whether a node is a Dropout whose input ``training_mode`` is not known to be false."""
    from onnx import numpy_helper

    if node.op_type != "Dropout" or len(node.input) < 3 or not node.input[2]:
        return False
    values = [numpy_helper.to_array(t) for t in model.graph.initializer if t.name == node.input[2]]
    values += [
        numpy_helper.to_array(other.attribute[0].t)
        for other in model.graph.node
        if other.op_type == "Constant" and node.input[2] in other.output
    ]
    return not values or bool(values[0].any())


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


_CONVOLUTIONS = ("Conv", "ConvTranspose")
_QUANTIZERS = ("DequantizeLinear", "QuantizeLinear")
_PRODUCTS = ("Gemm", "MatMul")


def _with_layer_names(model: Any) -> Any:
    """The model with every convolution named after its layer, which its weights' name tells."""
    stored = {t.name for t in model.graph.initializer}
    stored.update(n.output[0] for n in model.graph.node if n.op_type == "Constant")
    # Integer weights are dequantised first, and whoever quantised them added to their names.
    sources = {n.output[0]: n.input[0] for n in model.graph.node if n.op_type in _QUANTIZERS}
    for node in model.graph.node:
        if node.op_type in _CONVOLUTIONS:
            weight = node.input[1]
            while weight in sources:
                weight = sources[weight]
            layer = layer_of(weight) if weight in stored and "." in weight else node.name
            node.name = layer or ""
    return model


def _linear_names(model: Any) -> list[str | None]:
    """Layers of the products with a stored matrix."""
    stored = {t.name for t in model.graph.initializer}
    return [
        layer_of(node.input[1]) if "." in node.input[1] else node.name or None
        for node in model.graph.node
        if node.op_type in _PRODUCTS and node.input[1] in stored
    ]


def _layer_names(model: Any) -> list[str | None]:
    return [node.name or None for node in model.graph.node if node.op_type in _CONVOLUTIONS]
