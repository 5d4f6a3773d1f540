"""The graph that a library runs, as plain data and as an ONNX file for viewers such as Netron."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .atomic import write_file
from .manifest import ArtifactError, Manifest

#: Of the operators in the ONNX file; no ONNX runtime has them.
DOMAIN = "tvm_pattern"
_CALL = "relax.call_tir"
# What a viewer is told of a convolution, as far as the report knows it.
_FACTS = (
    *("reason", "in_shape", "out_shape", "kernel_size", "stride", "sparsity", "pattern_set"),
    *("group", "config", "dense_equivalent_gflop", "effective_gflop", "structure"),
)


def graph_of(mod: Any, layer_names: Mapping[str, str]) -> dict[str, Any]:
    """The operators of ``main`` and how they are connected, as plain data.

    Parameters
    ----------
    mod : tvm.IRModule
        Lowered by :func:`relay_passes.pipeline.lower`.
    layer_names : mapping
        Relax variable of a convolution -> the layer's own name.

    Returns
    -------
    dict
        ``inputs`` and ``outputs`` (names of values), ``nodes`` (``layer``, ``op``, ``inputs``,
        ``weights`` as texts, ``output``) and ``values`` (name -> ``shape`` and ``dtype``, empty
        where there is no static shape).
    """
    from tvm.ir import Var

    from relay_passes.dataflow import bindings_of, op_name

    from .profiling import LayerNamer

    main = mod["main"]
    names: dict[Any, str] = {}
    values: dict[str, dict[str, Any]] = {}

    def name_of(var: Any) -> str:
        if var not in names:
            stem = str(var.name)
            name, number = stem, 1
            while name in values:
                name, number = f"{stem}.{number}", number + 1
            names[var] = name
            values[name] = _type_of(var)
        return names[var]

    for param in main.params:
        name_of(param)
    nodes: list[dict[str, Any]] = []
    layer_of_value = LayerNamer(layer_names)
    for block in bindings_of(main):
        for binding in block:
            value = binding.value
            is_call = op_name(value) == _CALL
            op = str(value.args[0].name_hint) if is_call else _operator_of(value)
            read, weights = _arguments(list(value.args[1]) if is_call else _parts(value))
            nodes.append(
                {
                    "layer": layer_of_value(binding.var),
                    "op": op,
                    "inputs": [name_of(var) for var in read],
                    "weights": weights,
                    "output": name_of(binding.var),
                }
            )
    body = main.body.body
    if isinstance(body, Var) and nodes and nodes[-1]["op"] == "Tuple":  # several outputs
        del values[nodes.pop()["output"]]
        body = bindings_of(main)[-1][-1].value
    outputs = [body] if isinstance(body, Var) else [v for v in _parts(body) if isinstance(v, Var)]
    return {
        "inputs": [name_of(param) for param in main.params],
        "outputs": [name_of(var) for var in outputs],
        "nodes": nodes,
        "values": values,
    }


def _parts(value: Any) -> list[Any]:
    """What an expression reads."""
    for field in ("args", "fields"):
        if hasattr(value, field):
            return list(getattr(value, field))
    if hasattr(value, "tuple_value"):
        return [value.tuple_value]
    return [value]


def _operator_of(value: Any) -> str:
    from relay_passes.dataflow import op_name

    return op_name(value).rpartition(".")[2] or type(value).__name__


def _arguments(arguments: Sequence[Any]) -> tuple[list[Any], list[str]]:
    """Values that are read, and the types of the constants."""
    from tvm.ir import GenericConst, Var

    read = [value for value in arguments if isinstance(value, Var)]
    constants = [value for value in arguments if isinstance(value, GenericConst)]
    return read, [_type_text(value) for value in constants]


def _type_of(value: Any) -> dict[str, Any]:
    from relay_passes.dataflow import static_shape

    shape = static_shape(value)
    return {} if shape is None else {"shape": list(shape), "dtype": str(value.ty.dtype)}


def _type_text(value: Any) -> str:
    found = _type_of(value)
    return f"{found['dtype']}{found['shape']}" if found else str(value.ty)


def write_onnx(path: Path, graph: Mapping[str, Any], manifest: Manifest) -> None:
    """Write the graph as an ONNX file: for looking at, not for running.

    Parameters
    ----------
    path : pathlib.Path
    graph : mapping
        Of :func:`graph_of`.
    manifest : Manifest
        Its report is in the attributes of the convolutions.

    Raises
    ------
    ArtifactError
        If the package ``onnx`` is missing, or the library holds no graph.
    """
    try:
        from onnx import helper
    except ImportError:
        raise ArtifactError(
            "a graph is written by the package onnx, which is not installed; pip install"
            " '.[onnx]' in a clone of tvm-pattern"
        ) from None
    if not graph:
        raise ArtifactError("the library holds no graph; compile and export it again")
    # Each convolution's facts stand at the first operator of its layer.
    rows = {row["layer"]: row for row in manifest.report}
    facts = [rows.pop(node["layer"], {}) for node in graph["nodes"]]
    values = graph["values"]
    infos = {name: _value_info(helper, name, values[name]) for name in values}
    onnx_graph = helper.make_graph(
        [_node(helper, node, row) for node, row in zip(graph["nodes"], facts, strict=True)],
        "main",
        [infos[name] for name in graph["inputs"]],
        [infos[name] for name in graph["outputs"]],
        value_info=[
            info
            for name, info in infos.items()
            if values[name] and name not in (*graph["inputs"], *graph["outputs"])
        ],
    )
    model = helper.make_model(
        onnx_graph,
        opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid(DOMAIN, 1)],
        producer_name="tvm-pattern",
        producer_version=manifest.versions.get("tvm_pattern", ""),
        doc_string=f"what a library runs, to be looked at; target {json.dumps(manifest.target)}",
    )
    write_file(path, model.SerializeToString())


def _value_info(helper: Any, name: str, value: Mapping[str, Any]) -> Any:
    if not value:
        return helper.make_empty_tensor_value_info(name)
    import numpy as np
    from onnx import TensorProto

    dtype = value["dtype"]
    if dtype == "bfloat16":
        kind = TensorProto.BFLOAT16
    else:
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    return helper.make_tensor_value_info(name, kind, value["shape"])


def _node(helper: Any, node: Mapping[str, Any], row: Mapping[str, Any]) -> Any:
    # The same operator for every layer: TVM numbers its functions.
    kind = re.sub(r"\d+$", "", node["op"]) or node["op"]
    attributes: dict[str, Any] = {"function": node["op"]}
    if node["weights"]:
        attributes["weights"] = node["weights"]
    for fact in _FACTS:
        if row.get(fact):
            attributes[fact] = _attribute(row[fact])
    return helper.make_node(
        kind,
        node["inputs"],
        [node["output"]],
        name=f"{node['layer']}/{node['op']}",
        domain=DOMAIN,
        **attributes,
    )


def _attribute(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, dict) else value
