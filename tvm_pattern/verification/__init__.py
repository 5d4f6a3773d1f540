"""Does the compiled library compute what the model computes?

:func:`verify_library` runs the library, :func:`verify_graph` the imported graph (for a target that
does not run on this computer), both on the example inputs and on seeded random ones, and holds the
outputs against the model that was handed in, run by its own framework.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tvm

from ..frontend import ImportedModel, as_input_tuple
from .check import Check, Subject
from .dense import DenseGraph
from .errors import (
    LOCATING_ERRORS,
    OracleError,
    Verification,
    VerificationError,
    first_line,
    not_checked,
)
from .inputs import as_arrays
from .oracles import oracle_for

__all__ = [
    "GRAPH",
    "OracleError",
    "Verification",
    "VerificationError",
    "check_verify",
    "not_checked",
    "verify_graph",
    "verify_library",
]

#: ``compile(verify=GRAPH)``: where the library cannot run, check the imported graph.
GRAPH = "graph"


def check_verify(verify: bool | str) -> None:  # noqa: FBT001 (or a word)
    """Validate the argument ``verify`` of :func:`tvm_pattern.compile`.

    Raises
    ------
    ValueError
        If it is neither a bool nor ``"graph"``.
    """
    if not isinstance(verify, bool) and verify != GRAPH:
        raise ValueError(f"verify={verify!r}: expected True, False or {GRAPH!r}")


def verify_library(
    library: Any,
    model: Any,
    imported: ImportedModel,
    example_inputs: Any = None,
    compile_and_run: Callable[[tvm.IRModule, Sequence[np.ndarray]], list[np.ndarray]] | None = None,
) -> Verification:
    """Hold a library against the model that it was compiled from.

    Parameters
    ----------
    library : Library
        It must run on this computer.
    model
        As it was given to :func:`tvm_pattern.compile`.
    imported : ImportedModel
        What the frontend made of it.
    example_inputs : tensor, array or sequence of them, optional
    compile_and_run : callable, optional
        Compiles another module like the library and runs it, to find the operator that differs.

    Raises
    ------
    VerificationError
        If an output differs by more than rounding.
    """

    def run(arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        result = library(*arrays)
        return list(result) if isinstance(result, tuple) else [result]

    return _verify(
        Subject("library", run, library, compile_and_run), model, imported, example_inputs
    )


def verify_graph(model: Any, imported: ImportedModel, example_inputs: Any = None) -> Verification:
    """Hold the imported graph, run dense on this computer, against the model.

    Parameters and errors as :func:`verify_library`.
    """
    if isinstance(model, tvm.IRModule):
        return not_checked("an IRModule is imported as it is; there is nothing to hold it against")
    try:
        graph = DenseGraph(imported.mod, imported.layer_names)
    except LOCATING_ERRORS as error:
        return not_checked(f"TVM does not build the imported graph here ({first_line(error)})")
    return _verify(Subject("imported graph", graph.run), model, imported, example_inputs)


def _verify(
    subject: Subject, model: Any, imported: ImportedModel, example_inputs: Any
) -> Verification:
    given = example_inputs
    if given is None:
        # An exported program holds the inputs it was exported with.
        given = (getattr(model, "example_inputs", None) or (None,))[0]
    examples = as_input_tuple(given) if given is not None else None
    oracle = oracle_for(model, examples)
    if isinstance(oracle, str):
        return not_checked(oracle)
    arrays = as_arrays(examples) if examples is not None else None
    return Check(imported, oracle, subject, arrays).result()
