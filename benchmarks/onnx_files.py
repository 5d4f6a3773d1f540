"""ONNX files compiled as they are, beside ONNX Runtime: the rows of ``docs/onnx-files.md``.

``python -m benchmarks.onnx_files net.onnx --shape 1x3x320x320`` compiles the file for that size
(``--shape`` again for each further input), holds the library against ONNX Runtime on random input,
times both in turns in this process on one thread, and prints a row of the table.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

import tvm_pattern as tp
from tvm_pattern.sources import examples_of

from .device import pin
from .harness import BUSY_ENOUGH, CONTENDED, Budget, interleave


def session_of(path: Path) -> onnxruntime.InferenceSession:
    """The file in ONNX Runtime, on one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def largest_error(got: Sequence[np.ndarray], expected: Sequence[np.ndarray]) -> tuple[float, float]:
    """Largest difference of all outputs, and the largest value that was expected."""
    errors, sizes = [], []
    for ours, theirs in zip(got, expected, strict=True):
        if ours.shape != theirs.shape:
            raise ValueError(f"an output is {ours.shape} here and {theirs.shape} in ONNX Runtime")
        errors.append(np.abs(ours.astype("float64") - theirs.astype("float64")).max(initial=0))
        sizes.append(np.abs(theirs.astype("float64")).max(initial=0))
    return float(max(errors)), float(max(sizes))


def measure(path: Path, shapes: Sequence[str] | None, budget: Budget) -> dict[str, Any]:
    """The row of one file: convolutions taken, error against ONNX Runtime, milliseconds of both.

    Parameters
    ----------
    path : Path
        An ONNX file.
    shapes : sequence of str, optional
        Of its inputs, in order; needed where the file leaves sizes open.
    budget : Budget

    Raises
    ------
    ValueError
        If the file cannot be compiled, or an output has another shape.
    """
    examples = examples_of(shapes)
    library = tp.compile(path, examples, num_threads=1)
    if examples is None:
        rng = np.random.default_rng(0)
        examples = tuple(rng.standard_normal(s.shape).astype(s.dtype) for s in library.inputs)
    session = session_of(path)
    names = [value.name for value in session.get_inputs()]
    feed = dict(zip(names, examples, strict=True))
    result = library(*examples)
    outputs = result if isinstance(result, tuple) else (result,)
    error, size = largest_error(outputs, session.run(None, feed))
    timings = interleave(
        {"onnxruntime": lambda: session.run(None, feed), "here": lambda: library(*examples)}, budget
    )
    rows = library.report.rows
    row: dict[str, Any] = {
        "file": path.name,
        "inputs": ["x".join(map(str, x.shape)) for x in examples],
        "taken": sum(r.taken for r in rows),
        "convolutions": len(rows),
        "max_abs_error": error,
        "largest_value": size,
        "contended": any(t.busy < BUSY_ENOUGH for t in timings.values()),
    }
    for name, timing in timings.items():
        quantiles = np.percentile(timing.samples_ms, (10, 50, 90))
        row[name] = dict(zip(("p10_ms", "median_ms", "p90_ms"), map(float, quantiles), strict=True))
        row[name]["runs"] = len(timing.samples_ms)
    return row


def to_line(row: dict[str, Any]) -> str:
    """A row as the page's table has it."""
    theirs, here = row["onnxruntime"]["median_ms"], row["here"]["median_ms"]
    error = f"{row['max_abs_error']:.1e}"
    if row["largest_value"] > 2:
        error += f" of values up to {row['largest_value']:.3g}"
    cells = (
        f"`{row['file']}`",
        ", ".join(row["inputs"]),
        f"{row['taken']} of {row['convolutions']}",
        error,
        f"{theirs:.2f}",
        f"{here:.2f}",
        f"{here / theirs:.2f}{f' ({CONTENDED})' if row['contended'] else ''}",
    )
    return f"| {' | '.join(cells)} |"


def main(values: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path, help="an ONNX file")
    parser.add_argument("--shape", action="append", help="of an input, such as 1x3x320x320")
    parser.add_argument("--seconds", type=float, default=10, help="of timing, both together (10)")
    parser.add_argument("--json", type=Path, help="where to write the figures, spread included")
    options = parser.parse_args(values)
    pin(1)
    row = measure(options.file, options.shape, Budget(options.seconds))
    if options.json is not None:
        options.json.write_text(json.dumps(row, indent=1) + "\n", encoding="utf-8")
    print(to_line(row))
    return 0


if __name__ == "__main__":
    sys.exit(main())
