"""What a manifest says of a compiled library: written, and read back as targets and reports."""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import tvm
from pydantic import TypeAdapter, ValidationError
from tvm.target import Target

from topi_kernels.report import LayerRow, RewriteReport

from . import __version__
from .frontend import TensorSpec
from .machine import required_features, target_architecture
from .manifest import Manifest, bad_field
from .memory import Footprint
from .profiling import Step
from .tensors import tensor_data

_ROWS = TypeAdapter(list[LayerRow])


def describe(
    target: Target,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    num_threads: int,
    report: RewriteReport,
    steps: Sequence[Step] = (),
    launches: dict[str, list[list[int]]] | None = None,
    footprint: Footprint | None = None,
) -> Manifest:
    """The manifest of a library that was compiled just now."""
    footprint = footprint or Footprint(0, 0)
    return Manifest(
        target=_plain(target.export()),
        architecture=target_architecture(target),
        cpu_features=required_features(target),
        inputs=[tensor_data(spec) for spec in inputs],
        outputs=[tensor_data(spec) for spec in outputs],
        num_threads=num_threads,
        versions={
            "tvm_pattern": __version__,
            "tvm": tvm.__version__,
            "python": platform.python_version(),
        },
        report=[_plain(asdict(row)) for row in report.rows],
        steps=[_plain(asdict(step)) for step in steps],
        notes=list(report.notes),
        launches=launches or {},
        weight_bytes=footprint.weights,
        activation_bytes=footprint.activations,
    )


def describe_size(
    function: str,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    report: RewriteReport,
    steps: Sequence[Step],
    activation_bytes: int,
) -> Any:
    """What the manifest says of a size beyond the first."""
    return {
        "function": function,
        "inputs": [tensor_data(spec) for spec in inputs],
        "outputs": [tensor_data(spec) for spec in outputs],
        "report": [_plain(asdict(row)) for row in report.rows],
        "steps": [_plain(asdict(step)) for step in steps],
        "verification": {},
        "activation_bytes": activation_bytes,
    }


def target_of(manifest: Manifest, origin: str) -> Target:
    """The target that a manifest names.

    Raises
    ------
    ArtifactError
        If TVM knows no such target.
    """
    try:
        return Target(manifest.target)
    except (ValueError, TypeError, KeyError, AttributeError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[-1:]
        raise bad_field(origin, "target", f"TVM knows no such target {reason}") from None


def report_of(manifest: Manifest, origin: str) -> RewriteReport:
    """The report that a manifest holds, with what its check found.

    Raises
    ------
    ArtifactError
        If it is none.
    """
    text = json.dumps(manifest.report)
    try:
        _ROWS.validate_json(text, strict=True)
        report = RewriteReport.from_json(text)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        place = ".".join(map(str, ("report", *problem["loc"])))
        raise bad_field(origin, place, problem["msg"].lower()) from None
    except (ValueError, TypeError, KeyError) as error:
        raise bad_field(origin, "report", f"it is no report of convolutions ({error})") from None
    summary = manifest.verification.get("summary")
    if summary is not None and not isinstance(summary, str):
        raise bad_field(origin, "verification", f"its summary is {summary!r}, expected a text")
    notes = [*manifest.notes, *([summary] if summary else ())]
    notes.append(f"memory of a run: {Footprint(manifest.weight_bytes, manifest.activation_bytes)}")
    if manifest.sizes:
        notes.append(
            f"the first of {len(manifest.sizes) + 1} sizes; sizes[1].report, ...: the next"
        )
    return replace(report, notes=tuple(notes))


def _plain(value: Any) -> Any:
    """TVM containers and integers as plain Python data."""
    if isinstance(value, str | bool | int | float) or value is None:
        return str(value) if isinstance(value, str) else value
    if hasattr(value, "items"):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, tvm.tirx.IntImm):
        return int(value)
    return [_plain(v) for v in value]
