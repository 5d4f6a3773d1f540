"""ONNX graphs with fixed sizes, made plain: constants folded, shapes known.

ONNX Runtime does it by the optimisations that it calls basic; they keep to the operators of the
specification. TVM's importer takes few graphs that compute a shape from a shape.
"""

from __future__ import annotations

import importlib.util
import tempfile
from pathlib import Path
from typing import Any

from ..onnx_files import UnusableOnnxError
from .shared import first_line

# Batch norms are folded by a pass of our own, which refuses variances that give NaN.
_DISABLED = ["ConvBNFusion"]
# Nodes that stand for shapes, and what is computed from them.
_SHAPE_NODES = frozenset(("ConstantOfShape", "Expand", "If", "Loop", "Range", "Shape", "Size"))
_HALF = 10  # onnx.TensorProto.FLOAT16


def simplified(model: Any) -> Any:
    """A model with fixed input sizes, its constants folded by ONNX Runtime.

    Float16 models are left as they are: ONNX Runtime would compute them in float32.

    Parameters
    ----------
    model : onnx.ModelProto

    Raises
    ------
    ValueError
        If the sizes are none that the graph can have, or if ONNX Runtime is needed and missing.
    """
    if _is_half(model):
        return model
    if importlib.util.find_spec("onnxruntime") is None:
        shaped = sorted(_shape_nodes(model))
        if shaped:
            raise ImportError(
                f"the ONNX model computes shapes ({', '.join(shaped)}), which ONNX Runtime folds,"
                " and it is not installed; pip install '.[onnx]' in a clone of tvm-pattern"
            )
        return model
    plain = _by_onnx_runtime(model)
    # Operators that the specification defines by others are written out last, unfolded.
    return _by_onnx_runtime(plain) if _shape_nodes(plain) - _shape_nodes(model) else plain


def _shape_nodes(model: Any) -> set[str]:
    return {node.op_type for node in model.graph.node} & _SHAPE_NODES


def _by_onnx_runtime(model: Any) -> Any:
    import onnx
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        options.optimized_model_filepath = str(path)
        try:
            onnxruntime.InferenceSession(
                model.SerializeToString(),
                options,
                providers=["CPUExecutionProvider"],
                disabled_optimizers=_DISABLED,
            )
        except _errors() as error:
            if _is_about_sizes(str(error)):
                raise UnusableOnnxError(
                    f"the ONNX model cannot have inputs of these sizes: {_reason(error)}; give"
                    " example_inputs (--shape) of sizes that it is made for"
                ) from error
            # It takes fewer operators than onnx defines: the importer has its own word on them.
            return model
        return onnx.load(path)


def _errors() -> tuple[type[BaseException], ...]:
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    names = ("Fail", "InvalidArgument", "InvalidGraph", "NotImplemented", "RuntimeException")
    return (*(getattr(state, name) for name in names), RuntimeError, ValueError)


def _is_about_sizes(text: str) -> bool:
    marks = ("ShapeInferenceError", "Incompatible dimensions", "cannot be reshaped", "shape")
    return any(mark in text for mark in marks)


def _reason(error: BaseException) -> str:
    """Without the codes that ONNX Runtime begins its messages with."""
    return first_line(error).rpartition("[ShapeInferenceError]")[2].strip().rstrip(".")


def _is_half(model: Any) -> bool:
    stored = (t.data_type == _HALF for t in model.graph.initializer)
    given = (v.type.tensor_type.elem_type == _HALF for v in model.graph.input)
    return any(stored) or any(given)
