"""From torch or ONNX to Relax: the only module that sees both sides.

:func:`import_model` accepts a ``torch.nn.Module``, a ``torch.export.ExportedProgram``, an ONNX file
or ``ModelProto``, or a Relax ``IRModule``, and returns a module whose ``main`` has static shapes
and its weights as constants. A convolution's result is named after its layer, so that reports speak
of ``features.0`` and not of ``lv``.
"""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import tvm

from ..assigned import assigned_structures
from ..onnx_files import read_onnx
from .onnx_models import from_onnx_model
from .relax_models import from_ir_module
from .shared import (
    ImportedModel,
    TensorSpec,
    as_input_tuple,
    check_example_inputs,
    output_specs,
    with_structures,
)
from .torch_models import export_module, from_module, from_program

__all__ = [
    "ImportedModel",
    "TensorSpec",
    "as_input_tuple",
    "export_module",
    "import_model",
    "is_instance_of",
    "output_specs",
]


def import_model(
    model: Any, example_inputs: Any = None, *, host_operators: bool = False
) -> ImportedModel:
    """Import ``model`` into Relax.

    Parameters
    ----------
    model : torch.nn.Module | torch.export.ExportedProgram | QuantizedModel | str | os.PathLike | \
onnx.ModelProto | tvm.IRModule
        A module must be in evaluation mode. A path names an ONNX file.
    example_inputs : tensor, array or sequence of them, optional
        One per input. Their shapes and dtypes are the compiled ones. Needed for a module; for an
        ONNX model with symbolic dimensions they give the shapes; otherwise they are only checked.
    host_operators : bool
        Leave operators of a torch model that nobody translates to torch, see
        :mod:`tvm_pattern.host_operators`. Not in float16.

    Raises
    ------
    TypeError
        If ``model`` is none of the above.
    ValueError
        If it cannot be read or traced, has dynamic shapes or an empty input, is in training mode,
        holds NaN or Inf, does not fit ``example_inputs``, or its weights contradict the patterns
        that it carries.
    """
    if isinstance(model, tvm.IRModule):
        imported = from_ir_module(model)
    elif isinstance(model, str | os.PathLike):
        imported = from_onnx_model(read_onnx(Path(model)), example_inputs)
    elif is_instance_of(model, "onnx", "ModelProto"):
        imported = from_onnx_model(model, example_inputs)
    elif is_instance_of(model, "torch.export", "ExportedProgram"):
        imported = from_program(model, host_operators=host_operators)
    elif is_instance_of(model, "tvm_pattern.quantization.model", "QuantizedModel"):
        imported = with_structures(from_program(model.program), model.structures)
    elif is_instance_of(model, "torch.nn", "Module"):
        assigned = assigned_structures(model)
        imported = from_module(model, example_inputs, host_operators=host_operators)
        imported = replace(imported, assigned=assigned)
    else:
        raise TypeError(
            f"cannot compile a {type(model).__module__}.{type(model).__name__}; expected a"
            " torch.nn.Module, torch.export.ExportedProgram, path of an ONNX file,"
            " onnx.ModelProto or tvm.IRModule"
        )
    if example_inputs is not None:
        check_example_inputs(imported.inputs, as_input_tuple(example_inputs))
    for spec in imported.inputs:
        if 0 in spec.shape:
            raise ValueError(
                f"input {spec.name!r}: got the shape {list(spec.shape)}, expected no dimension of"
                " 0: there is nothing to compute; give inputs with at least one element"
            )
    return imported


def is_instance_of(value: Any, module: str, name: str) -> bool:
    """isinstance without importing ``module``: whoever owns an instance has imported it already."""
    owner = sys.modules.get(module)
    return owner is not None and isinstance(value, getattr(owner, name))
