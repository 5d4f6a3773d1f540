"""A quantised network as an ONNX file of QuantizeLinear and DequantizeLinear pairs."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from topi_kernels.structure import METADATA, Structure

from ..atomic import write_file
from .errors import QuantizationError

# The oldest that torch's exporter writes itself; quantised values are as old as opset 13.
_OPSET = 18


def to_onnx(
    program: torch.export.ExportedProgram, structures: dict[str, Structure], path: str | Path
) -> None:
    """Write ``program`` as an ONNX QDQ file, its weights as int8.

    The structures are in its metadata; other programs than this one read the file as any other.

    Parameters
    ----------
    program : torch.export.ExportedProgram
    structures : dict
        By layer.
    path : str or pathlib.Path

    Raises
    ------
    QuantizationError
        If torch cannot export the network.
    ImportError
        Without ``onnxscript``, which torch exports with.
    """
    try:
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ImportError(
            "torch writes ONNX files by onnxscript, which is not installed; pip install"
            " '.[quantization]' in a clone of tvm-pattern"
        ) from error
    from torch.onnx import OnnxExporterError

    try:
        with _quiet():
            exported = torch.onnx.export(program, dynamo=True, opset_version=_OPSET, verbose=False)
    except (OnnxExporterError, RuntimeError) as error:
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise QuantizationError(
            f"torch cannot export the network to ONNX: {reason}; save it as .pt2"
        ) from error
    model: Any = exported.model_proto
    entry = model.metadata_props.add()
    entry.key = METADATA
    entry.value = json.dumps({name: s.to_plain() for name, s in structures.items()})
    write_file(Path(path), model.SerializeToString())


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hide what the exporter says about packages that are not there, and its progress."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
