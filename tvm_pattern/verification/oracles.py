"""The model that was handed in, run by its own framework."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import tvm

from ..frontend import is_instance_of
from .dense import DenseGraph
from .errors import LOCATING_ERRORS, first_line
from .onnx_oracle import onnx_oracle
from .sketch import Node
from .torch_oracle import TorchOracle


class Oracle(Protocol):
    """Runs the model as it was handed in."""

    name: str

    def run(self, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        """The model's outputs in order, tuples and dicts flattened; OracleError if it fails."""

    def run_again(self, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        """The same; a model that draws random numbers draws others."""

    def trace(self, arrays: Sequence[np.ndarray]) -> list[Node]:
        """Every operator of the model's graph, with sketches of its results, in order."""


class RelaxOracle:
    """An IRModule: TVM's own kernels, and torch's convolutions, operator by operator."""

    def __init__(self, mod: tvm.IRModule, layer_names: dict[str, str] | None = None) -> None:
        self.name = f"the module itself, dense and operator by operator (TVM {tvm.__version__})"
        self._graph = DenseGraph(mod, layer_names)
        self.run = self.run_again = self._graph.run
        self.trace = self._graph.trace


def oracle_for(model: Any, examples: Sequence[Any] | None) -> Oracle | str:
    """The oracle of a model, or the reason why there is none.

    Parameters
    ----------
    model
        As :func:`tvm_pattern.compile` takes it.
    examples : sequence of tensor or array, optional
    """
    if isinstance(model, tvm.IRModule):
        try:
            return RelaxOracle(model)
        except LOCATING_ERRORS as error:
            return f"TVM does not build the module operator by operator ({first_line(error)})"
    if isinstance(model, str | os.PathLike) or is_instance_of(model, "onnx", "ModelProto"):
        return onnx_oracle(model)
    return TorchOracle(model, examples)
