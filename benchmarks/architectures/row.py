"""One row of the table: a network compiled dense and pruned, checked and timed beside others."""

from __future__ import annotations

import copy
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from .zoo import Architecture

CONNECTIVITY = 3.6
# What a network that cannot be compiled or exported may raise.
ERRORS = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)


def row_of(
    architecture: Architecture, size: int, rounds: int, keep: Path | None = None
) -> dict[str, Any]:
    """Compile, check and time one architecture.

    Parameters
    ----------
    architecture : Architecture
    size : int
        Height and width of the image, where the network takes any.
    rounds : int
        Timed runs of each engine, in turns; 0: none.
    keep : Path, optional
        Folder that gets the libraries, the ONNX file and the input, for :func:`time_kept`.
    """
    import torch

    model, x = architecture.build(size), architecture.example(size)
    engines: dict[str, Callable[[], Any]] = {}
    with torch.no_grad():
        model(x)
    engines["torch"] = lambda: model(x)
    row: dict[str, Any] = {"key": architecture.key, "size": architecture.size(size)}
    row["parameters"] = sum(p.numel() for p in model.parameters())
    for name, network in (("dense", model), ("pruned", _pruned(model))):
        if isinstance(network, str):
            row[name] = {"status": "not pruned", "detail": network}
            continue
        row[name], library = _compiled(network, x)
        if library is not None:
            engines[name] = _run(library, x)
            if keep is not None:
                library.export(keep / f"{name}.so")
    with tempfile.TemporaryDirectory() as folder:
        if keep is not None:
            folder = str(keep)
            np.save(keep / "input.npy", x.numpy())
        session = _onnx_runtime(model, x, Path(folder) / "net.onnx")
        if isinstance(session, str):
            row["onnxruntime"] = {"detail": session}
        else:
            feed = {session.get_inputs()[0].name: x.numpy()}
            engines["onnxruntime"] = lambda: session.run(None, feed)
        with torch.no_grad():
            for name, times in _times(engines, rounds).items():
                row.setdefault(name, {}).update(times)
    return row


def time_kept(folder: Path, rounds: int) -> dict[str, dict[str, float]]:
    """Times of what :func:`row_of` kept: nothing is compiled, so a short quiet while is enough.

    Returns
    -------
    dict
        Milliseconds by engine: ``dense``, ``pruned``, ``onnxruntime``, where there is one.
    """
    import tvm_pattern as tp

    x = np.load(folder / "input.npy")
    engines: dict[str, Callable[[], Any]] = {}
    for name in ("dense", "pruned"):
        if (folder / f"{name}.so").is_file():
            engines[name] = partial(tp.load(folder / f"{name}.so"), x)
    session = _session(folder / "net.onnx") if (folder / "net.onnx").is_file() else ""
    if not isinstance(session, str):
        engines["onnxruntime"] = partial(session.run, None, {session.get_inputs()[0].name: x})
    return _times(engines, rounds)


def _run(library: Any, x: Any) -> Callable[[], Any]:
    array = x.numpy()
    return lambda: library(array)


def _pruned(model: Any) -> Any:
    """The network pruned in one shot, or why it is not."""
    from tvm_pattern.pruning import oneshot

    network = copy.deepcopy(model)
    try:
        oneshot(network, connectivity=CONNECTIVITY, connectivity_1x1=CONNECTIVITY)
    except ValueError as error:
        return first_line(error)
    return network


def _compiled(model: Any, x: Any) -> tuple[dict[str, Any], Any]:
    """What became of a network, and its library."""
    import tvm_pattern as tp

    start = time.perf_counter()
    try:
        library = tp.compile(model, (x,), num_threads=1)
    except tp.verification.VerificationError as error:
        return {"status": "differs", "detail": first_line(error)}, None
    except ERRORS as error:
        return {"status": "refused", "detail": first_line(error)}, None
    rows, check = library.report.rows, library.manifest.verification
    reasons = sorted({row.reason for row in rows if not row.taken})
    facts = {
        "status": "equal" if check["status"] == "checked" else check["status"],
        "detail": check.get("reason", "") if check["status"] != "checked" else "",
        "error": check.get("max_error"),
        "taken": sum(row.taken for row in rows),
        "convolutions": len(rows),
        "left": reasons,
        "compile_s": round(time.perf_counter() - start, 1),
    }
    return facts, library


def _onnx_runtime(model: Any, x: Any, path: Path) -> Any:
    """A session of the same network on one thread, or why there is none."""
    import torch

    try:
        # The older exporter: the newer one takes half a minute to begin with.
        torch.onnx.export(model, (x,), path, dynamo=False, verbose=False)
    except ERRORS as error:
        return f"torch.onnx.export: {first_line(error)}"
    return _session(path)


def _session(path: Path) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except ERRORS as error:
        return first_line(error)


def _times(engines: dict[str, Callable[[], Any]], rounds: int) -> dict[str, dict[str, float]]:
    """Milliseconds of each engine, run in turns after one run to warm up."""
    if not rounds:
        return {}
    seconds: dict[str, list[float]] = {name: [] for name in engines}
    for number in range(rounds + 1):
        for name, run in engines.items():
            start = time.perf_counter()
            run()
            if number:
                seconds[name].append(time.perf_counter() - start)
    return {
        name: {
            "p10_ms": round(float(np.quantile(values, 0.1)) * 1e3, 3),
            "median_ms": round(float(np.median(values)) * 1e3, 3),
        }
        for name, values in seconds.items()
    }


def first_line(error: BaseException) -> str:
    """What an error says, short enough for a table."""
    text = " ".join(str(error).split())
    return text[:300] if text else type(error).__name__
