"""Try lines of the ONNX table: the frontend against ONNX Runtime, else against ONNX's reference."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
import tvm
from onnx import TensorProto, helper, numpy_helper

from tvm_pattern.frontend import import_model

from .case import SAMPLES, Case, sample_arrays
from .trial import CRASHED, REFUSED, RIGHT, WRONG, Outcome, build, difference

_OPSET = 20


class _Value(str):
    """Name of a value of the graph that is being built."""


class _Graph(dict):
    """Names of an expression: inputs, helpers, and every other name an operator."""

    def __init__(self, case: Case, prefix: str) -> None:
        super().__init__(
            {name: _Value(name) for name in case.inputs},
            weight=self._weight,
            positive=lambda *shape: np.abs(self._weight(*shape)) + np.float32(0.1),
            constant=lambda value, kind: np.array(value, helper.tensor_dtype_to_np_dtype(kind)),
            constant_like_x=self._indices,
            condition=lambda *values: np.array(values, bool),
        )
        self._case, self._prefix = case, prefix
        self.nodes: list[onnx.NodeProto] = []
        self.stored: list[onnx.TensorProto] = []

    def __missing__(self, name: str) -> Callable[..., Any]:
        def emit(*inputs: Any, outputs: int = 1, **attributes: Any) -> Any:
            made = [_Value(f"{self._prefix}{len(self.nodes)}_{i}") for i in range(outputs)]
            named = [self._input(value) for value in inputs]
            self.nodes.append(helper.make_node(name, named, made, **attributes))
            return made[0] if outputs == 1 else made

        return emit

    def _input(self, value: Any) -> str:
        if isinstance(value, str):
            return value
        array = np.asarray(value)
        if array.dtype == np.float64:
            array = array.astype("float32")
        name = f"{self._prefix}c{len(self.stored)}"
        self.stored.append(numpy_helper.from_array(array, name))
        return name

    def _weight(self, *shape: int) -> np.ndarray:
        rng = np.random.default_rng(len(shape) + sum(shape))
        return rng.standard_normal(shape).astype("float32")

    def _indices(self, axis: int) -> np.ndarray:
        shape = tuple(int(d) for d in self._case.inputs["x"].split()[-1].split(","))
        order = np.random.default_rng(7).permuted(
            np.broadcast_to(np.arange(shape[axis])[:, None, None], shape[axis:]), axis=0
        )
        return np.broadcast_to(order, shape).astype("int64")


def onnx_model(cases: Sequence[Case]) -> onnx.ModelProto:
    """Cases that have the same inputs as one model."""
    nodes, stored, outputs = [], [], []
    for i, case in enumerate(cases):
        graph = _Graph(case, f"v{i}_")
        results = eval(case.code, {"__builtins__": {}}, graph)
        nodes += graph.nodes
        stored += graph.stored
        outputs += results if isinstance(results, list) else [results]
    arrays = sample_arrays(cases[0], "ordinary")
    inputs = [
        helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape)
        for n, a in arrays.items()
    ]
    empty = [onnx.ValueInfoProto(name=str(name)) for name in outputs]
    model = helper.make_model(
        helper.make_graph(nodes, "cases", inputs, empty, stored),
        opset_imports=[helper.make_opsetid("", _OPSET)],
        ir_version=9,
    )
    inferred = onnx.shape_inference.infer_shapes(model)
    known = {v.name: v for v in [*inferred.graph.value_info, *inferred.graph.output]}
    for value in model.graph.output:
        value.CopyFrom(known.get(value.name, value))
        if not value.type.tensor_type.elem_type:
            value.type.tensor_type.elem_type = TensorProto.FLOAT
    return model


def oracle(model: onnx.ModelProto) -> Callable[[dict[str, np.ndarray]], list[Any]]:
    """The model as ONNX Runtime runs it, as ONNX's reference does where that is not installed."""
    try:
        import onnxruntime
    except ImportError:
        from onnx.reference import ReferenceEvaluator

        reference = ReferenceEvaluator(model)
        return lambda arrays: list(reference.run(None, arrays))
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 4, 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    taken = {value.name for value in session.get_inputs()}
    return lambda arrays: session.run(None, {n: a for n, a in arrays.items() if n in taken})


def try_onnx(cases: Sequence[Case]) -> list[Outcome]:
    """Compile ONNX cases that have the same inputs and compare them on every sample."""
    model = onnx_model(cases)
    try:
        run = build(import_model(model))
    except (TypeError, ValueError, tvm.error.InternalError, RuntimeError) as error:
        if len(cases) > 1:
            half = len(cases) // 2
            return try_onnx(cases[:half]) + try_onnx(cases[half:])
        refused = isinstance(error, TypeError | ValueError)
        return [Outcome(REFUSED if refused else CRASHED, str(error))]
    outcomes = [Outcome(RIGHT)] * len(cases)
    oracles = [oracle(onnx_model([case])) for case in cases]
    for sample in SAMPLES:
        arrays = sample_arrays(cases[0], sample)
        got = iter(run(list(arrays.values())))
        for i, reference in enumerate(oracles):
            expected = reference(arrays)
            detail = difference([next(got) for _ in expected], expected)
            if detail and outcomes[i].status == RIGHT:
                outcomes[i] = Outcome(WRONG, f"{sample} inputs: {detail}")
    return outcomes
