"""ONNX models run by ONNX Runtime, or by onnx's own reference implementation."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ..threads import available_cpus
from .errors import OracleError, first_line
from .sketch import Node, sketch

# Values that one run hands out when all of them are looked at: bounds the memory.
_VALUES_AT_ONCE = 64
_STEPS = frozenset(("Round", "Floor", "Ceil", "Sign", "Mod"))
_PICKS = frozenset(("TopK",))


def onnx_oracle(model: Any) -> OnnxOracle | str:
    """ONNX Runtime where it is installed and takes the model, else onnx's reference, else why not.

    Parameters
    ----------
    model : onnx.ModelProto, str or os.PathLike
    """
    import onnx

    reasons = []
    for runner in (_Runtime, _Reference):
        reason = runner.why_not()
        if reason is None:
            try:
                session = runner(model)
            except runner.errors() as error:
                reason = f"{runner.label} does not take it ({first_line(error)})"
            else:
                proto = onnx.load(model) if isinstance(model, str | os.PathLike) else model
                return OnnxOracle(session, proto)
        reasons.append(reason)
    return " and ".join(reasons)


class OnnxOracle:
    """An ONNX model and who runs it."""

    def __init__(self, session: Any, proto: Any) -> None:
        self._session = session
        self._proto = proto
        self.name = session.name
        stored = {t.name for t in proto.graph.initializer}
        self._inputs = [v.name for v in proto.graph.input if v.name not in stored]

    def run(self, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        """The outputs in the graph's order.

        Raises
        ------
        OracleError
            If the model fails.
        """
        try:
            return self._session.run(dict(zip(self._inputs, arrays, strict=True)))
        except self._session.errors() as error:
            raise OracleError(f"{self._session.label} fails: {first_line(error)}") from error

    run_again = run

    def trace(self, arrays: Sequence[np.ndarray]) -> list[Node]:
        """Every node of the graph; a loop or branch counts as one."""
        feeds = dict(zip(self._inputs, arrays, strict=True))
        wanted = [name for node in self._proto.graph.node for name in node.output if name]
        values: dict[str, Any] = {name: (a.dtype, None) for name, a in feeds.items()}
        for start in range(0, len(wanted), _VALUES_AT_ONCE):
            names = wanted[start : start + _VALUES_AT_ONCE]
            tapped = type(self._session)(_with_outputs(self._proto, names))
            for name, array in zip(names, tapped.run(feeds), strict=True):
                array = np.asarray(array)
                known = sketch(array) if array.dtype.kind == "f" and array.size else None
                values[name] = (array.dtype, known)
        producers = {out: _name(node) for node in self._proto.graph.node for out in node.output}
        return [_described(node, values, producers) for node in self._proto.graph.node]


class _Runtime:
    """A session of ONNX Runtime, its graph as it is."""

    label = "ONNX Runtime"

    def __init__(self, model: Any) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.intra_op_num_threads = len(available_cpus())
        options.log_severity_level = 4
        source = model if isinstance(model, str | os.PathLike) else model.SerializeToString()
        self._session = onnxruntime.InferenceSession(
            source, options, providers=["CPUExecutionProvider"]
        )
        self.name = f"ONNX Runtime {onnxruntime.__version__}"

    def run(self, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
        return [np.asarray(value) for value in self._session.run(None, feeds)]

    @staticmethod
    def why_not() -> str | None:
        if importlib.util.find_spec("onnxruntime") is None:
            return "ONNX Runtime is not installed (pip install onnxruntime)"
        return None

    @staticmethod
    def errors() -> tuple[type[BaseException], ...]:
        from onnxruntime.capi import onnxruntime_pybind11_state as state

        names = ("Fail", "InvalidArgument", "InvalidGraph", "NotImplemented", "RuntimeException")
        return (*(getattr(state, name) for name in names), RuntimeError, ValueError)


class _Reference:
    """onnx's reference implementation: slow, numpy only."""

    label = "onnx's reference implementation"

    def __init__(self, model: Any) -> None:
        import onnx
        from onnx.reference import ReferenceEvaluator

        source = os.fspath(model) if isinstance(model, os.PathLike) else model
        self._session = ReferenceEvaluator(source)
        self.name = f"the reference implementation of onnx {onnx.__version__}"

    def run(self, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
        return [np.asarray(value) for value in self._session.run(None, feeds)]

    @staticmethod
    def why_not() -> str | None:
        if importlib.util.find_spec("onnx") is None:
            return "onnx is not installed"
        return None

    @staticmethod
    def errors() -> tuple[type[BaseException], ...]:
        return (NotImplementedError, RuntimeError, TypeError, ValueError, LookupError)


def _with_outputs(proto: Any, names: Sequence[str]) -> Any:
    """A copy of the model that gives the values ``names``."""
    import onnx

    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    del copy.graph.output[:]
    copy.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    return copy


def _name(node: Any) -> str:
    return node.name or node.output[0]


def _described(node: Any, values: dict[str, Any], producers: dict[str, str]) -> Node:
    known = [values[name] for name in node.output if name in values]
    takes_float = any(values[n][0].kind == "f" for n in node.input if n in values)
    steps = any(dtype.kind != "f" for dtype, _ in known)
    # Quantised values are steps too, of the size that is allowed.
    steps = steps and node.op_type != "QuantizeLinear"
    is_discrete = steps or node.op_type in _STEPS or node.op_type in _PICKS
    described = Node(
        name=_name(node),
        op=node.op_type,
        inputs=tuple(producers.get(name, name) for name in node.input if name),
        values=tuple(value for _, value in known if value is not None),
    )
    return replace(described, discrete=takes_float and is_discrete)
