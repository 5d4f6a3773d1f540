"""What a page says of each layer: joined from the pruner's report, the compiler's and a profile."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from topi_kernels.report import RewriteReport

# What `tvm-pattern prune` writes to its folder.
_REPORT, _HISTORY, _WEIGHTS = "report.json", "history.json", "model.safetensors"


class ReportError(ValueError):
    """There is nothing to report, or a file of a run cannot be read."""


@dataclass(frozen=True)
class LayerFacts:
    """One row of the page; None where that is not known.

    Parameters
    ----------
    name : str
    kind : str
        Of the pruner, else the operator of the imported network.
    shape : str
        Of the weights, else of the output.
    rate : float, optional
        Weights before / after.
    energy : float, optional
        Share of the squared norm of the weights that pruning left.
    ms, share : float, optional
        Measured time, and its share of all steps.
    gflop : float, optional
        Dense-equivalent GFLOP.
    expected_gain : float, optional
        Time of the layer compiled dense over its time, by the cost model, before any timing.
    measured_gain : float, optional
        The same of two profiles.
    note : str
        Why it was left out by pruner or compiler, or how it runs.
    """

    name: str
    kind: str = ""
    shape: str = ""
    rate: float | None = None
    energy: float | None = None
    ms: float | None = None
    share: float | None = None
    gflop: float | None = None
    expected_gain: float | None = None
    measured_gain: float | None = None
    note: str = ""


@dataclass(frozen=True)
class PrunedRun:
    """What a folder of ``tvm-pattern prune`` holds.

    Parameters
    ----------
    report : dict
        Of :meth:`tvm_pattern.pruning.report.PruneReport.to_dict`.
    epochs : list of dict
        Of the training; empty after one-shot pruning.
    weights : pathlib.Path, optional
        The pruned weights.
    """

    report: dict[str, Any]
    epochs: list[dict[str, Any]]
    weights: Path | None


def read_pruned(path: Path) -> PrunedRun:
    """The files of a pruning run.

    Parameters
    ----------
    path : pathlib.Path
        The folder that ``prune`` wrote, or a report's ``.json``.

    Raises
    ------
    ReportError
        If there is no report, or it is none.
    """
    file = path / _REPORT if path.is_dir() else path
    report = _read_json(file)
    if not isinstance(report, dict) or not isinstance(report.get("layers"), list):
        raise ReportError(
            f"{file} is no report of pruning; expected {_REPORT} as the command prune writes it"
        )
    folder = file.parent
    history = folder / _HISTORY
    read = _read_json(history) if history.is_file() else []
    epochs = read.get("epochs", []) if isinstance(read, dict) else read
    weights = folder / _WEIGHTS
    return PrunedRun(report, epochs, weights if weights.is_file() else None)


def _read_json(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ReportError(
            f"no such file: {file}; expected the folder that the command prune wrote, or its"
            f" {_REPORT}"
        ) from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ReportError(f"cannot read {file}: {error}") from None


def layer_facts(
    pruned: Mapping[str, Any] | None,
    report: RewriteReport | None,
    times: Mapping[str, tuple[float, float]],
    dense_times: Mapping[str, tuple[float, float]] | None = None,
) -> list[LayerFacts]:
    """Rows in the order of the network; layers are joined by name.

    Parameters
    ----------
    pruned : mapping, optional
        A pruning report as plain data.
    report : RewriteReport, optional
        Of a compiled library.
    times : mapping
        Layer -> measured milliseconds and share, of all its steps.
    dense_times : mapping, optional
        The same of the network compiled without pruning.
    """
    rows: dict[str, dict[str, Any]] = {}
    for layer in pruned["layers"] if pruned else ():
        rows[layer["name"]] = {
            "kind": layer["kind"],
            "shape": _shape(layer["shape"]),
            "rate": layer["compression_rate"],
            "energy": layer["energy_kept"],
            "note": layer["reason"] or layer["note"],
        }
    for row in report.rows if report is not None else ():
        facts = rows.setdefault(row.layer, {"kind": row.op, "shape": _shape(row.out_shape)})
        facts["gflop"] = row.dense_equivalent_gflop
        facts["expected_gain"] = row.expected_gain or None
        facts.setdefault("rate", 1 / (1 - row.sparsity) if row.sparsity < 1 else None)
        facts["note"] = "; ".join(filter(None, (facts.get("note", ""), _compiled(row))))
    for name, (ms, share) in times.items():
        facts = rows.setdefault(name, {})
        facts.update(ms=ms, share=share)
        if dense_times is not None and name in dense_times and ms > 0:
            facts["measured_gain"] = dense_times[name][0] / ms
    return [LayerFacts(name, **facts) for name, facts in rows.items()]


def _compiled(row: Any) -> str:
    if not row.taken:
        return f"compiled dense: {row.reason}"
    return row.reason or (f"{row.group} filters share" if row.group > 1 else "")


def _shape(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))


#: Rates at which a layer's curve of energies has its points.
_RATES = (1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0)


def read_weights(path: Path) -> dict[str, np.ndarray]:
    """Weights of spatial kernels in a safetensors file, by layer.

    Raises
    ------
    ReportError
        If it cannot be read.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        tensors = load_file(path)
    except (SafetensorError, OSError, KeyError, ValueError, TypeError, AttributeError) as error:
        raise ReportError(
            f"cannot read the weights {path}: {error}; expected a .safetensors file"
        ) from None
    return {
        name.removesuffix(".weight"): value.astype(np.float32)
        for name, value in tensors.items()
        if name.endswith(".weight") and value.ndim == 4 and value.shape[2] * value.shape[3] > 1
    }


def energy_curves(
    weights: Mapping[str, np.ndarray],
) -> dict[str, list[tuple[float, float]]]:
    """What connectivity pruning alone would take of each layer, at several rates.

    Parameters
    ----------
    weights : mapping
        Layer -> ``[filters, in_channels, kh, kw]``, before pruning.

    Returns
    -------
    dict
        Layer -> ``(connectivity, per cent of the squared norm that goes)``.
    """
    curves = {}
    for name, weight in weights.items():
        energy = np.sort((weight.astype(np.float64) ** 2).sum((2, 3)).ravel())[::-1]
        kept = np.cumsum(energy)
        points = []
        for rate in _RATES:
            count = max(1, round(energy.size / rate))
            points.append((rate, float(100 * (1 - kept[count - 1] / max(kept[-1], 1e-300)))))
        curves[name] = points
    return curves
