"""The page itself: facts and figures put into the template."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape
from matplotlib.figure import Figure

from topi_kernels.report import RewriteReport

from ..atomic import write_file
from . import figures
from .data import LayerFacts, ReportError, layer_facts

_FOLDER = Path(__file__).parent
_TEMPLATE = "page.html.j2"


def _times(value: float) -> str:
    return f"{value:.2f}x"


# Column -> field of LayerFacts, and how a value is written.
_COLUMNS: dict[str, tuple[str, Callable[[Any], str]]] = {
    "layer": ("name", str),
    "kind": ("kind", str),
    "shape": ("shape", str),
    "ms": ("ms", lambda value: f"{value:.3f}"),
    "share": ("share", lambda value: f"{100 * value:.1f} %"),
    "x against dense": ("measured_gain", _times),
    "x against dense, expected": ("expected_gain", _times),
    "GFLOP, dense": ("gflop", lambda value: f"{value:.3g}"),
    "rate": ("rate", _times),
    "energy kept": ("energy", lambda value: f"{100 * value:.1f} %"),
    "note": ("note", str),
}
_NUMBERS = tuple(name for name in _COLUMNS if name not in ("layer", "kind", "shape", "note"))


@dataclass(frozen=True)
class _Figure:
    title: str
    uri: str
    caption: str


def write_html(
    path: str | os.PathLike,
    *,
    title: str = "tvm-pattern",
    pruned: Mapping[str, Any] | Any = None,
    epochs: Sequence[Mapping[str, Any]] = (),
    library: Any = None,
    profile: Any = None,
    dense_profile: Any = None,
    latency: str = "",
    sensitivity: Mapping[str, Sequence[tuple[float, float]]] | None = None,
    sensitivity_label: str = "loss increase, one-shot",
    weights: Mapping[str, np.ndarray] | None = None,
    dense_weights: Mapping[str, np.ndarray] | None = None,
    by_time: bool = False,
) -> Path:
    """Write one HTML file that needs no other.

    Parameters
    ----------
    path : str or os.PathLike
    title : str
    pruned : PruneReport or mapping, optional
        What pruning did, or its ``to_dict()``.
    epochs : sequence of mapping
        Of the training: ``epoch``, ``accuracy``, ``phase``.
    library : Library or Manifest, optional
        What was compiled.
    profile : Profile, optional
        Of ``library.profile()``.
    dense_profile : Profile, optional
        Of the network compiled without pruning, for the gain of each layer.
    latency : str
        A line about the time of whole runs.
    sensitivity : mapping, optional
        Layer -> ``(connectivity, loss)`` points, such as
        :meth:`tvm_pattern.pruning.budget.BudgetPlan.sensitivity` gives.
    sensitivity_label : str
        What the points measure.
    weights, dense_weights : mapping, optional
        Layer -> ``[filters, in_channels, kh, kw]`` after pruning, and before: of the layers whose
        kernels are drawn.
    by_time : bool
        The slowest layers first, not the network's order.

    Returns
    -------
    pathlib.Path

    Raises
    ------
    ReportError
        If there is nothing to report.
    """
    if hasattr(pruned, "to_dict"):
        pruned = pruned.to_dict()
    if pruned is None and library is None:
        raise ReportError("got neither a pruning report nor a library; expected at least one")
    manifest = getattr(library, "manifest", library)
    report = None if manifest is None else _report_of(manifest)
    dense_times = None if dense_profile is None else _times_of(dense_profile)
    rows = layer_facts(pruned, report, _times_of(profile), dense_times)
    if by_time:
        rows.sort(key=lambda row: -(row.ms or 0.0))
    columns = [name for name, (field, _) in _COLUMNS.items() if _is_known(rows, field)]
    environment = Environment(
        loader=FileSystemLoader(_FOLDER),
        autoescape=select_autoescape(default=True),
        undefined=StrictUndefined,
    )
    pictures = _pictures(rows, epochs, sensitivity, sensitivity_label)
    pictures += _kernel_pictures(weights or {}, dense_weights or {})
    text = environment.get_template(_TEMPLATE).render(
        title=title,
        warnings=[report.warning] if report is not None and report.warning else [],
        summary=_summary(pruned, manifest, report, profile, latency, dense_profile),
        columns=[(name, None) for name in columns],
        numbers=_NUMBERS,
        rows=[_cells(row, columns) for row in rows],
        figures=pictures,
    )
    path = Path(path)
    write_file(path, text.encode())
    return path


def _report_of(manifest: Any) -> RewriteReport:
    import json

    return RewriteReport.from_json(json.dumps(manifest.report))


def _times_of(profile: Any) -> dict[str, tuple[float, float]]:
    """Milliseconds and share of each layer, over all its steps."""
    found: dict[str, tuple[float, float]] = {}
    for step in profile.steps if profile is not None else ():
        ms, share = found.get(step.layer, (0.0, 0.0))
        found[step.layer] = (ms + step.ms, share + step.share)
    return found


def _is_known(rows: Sequence[LayerFacts], field: str) -> bool:
    return any(getattr(row, field) not in (None, "") for row in rows)


def _cells(row: LayerFacts, columns: Sequence[str]) -> list[tuple[str, str]]:
    values = asdict(row)
    cells = []
    for name in columns:
        field, shown = _COLUMNS[name]
        cells.append((name, "" if values[field] is None else shown(values[field])))
    return cells


def _summary(
    pruned: Mapping[str, Any] | None,
    manifest: Any,
    report: RewriteReport | None,
    profile: Any,
    latency: str,
    dense_profile: Any,
) -> list[tuple[str, str]]:
    lines: list[tuple[str, str]] = []
    if pruned is not None:
        rates = f"{pruned['compression_rate']:.2f}x over all layers of the pruning report,"
        rates += f" {pruned['compression_rate_pruned']:.2f}x over the pruned ones"
        lines += [("weights before / after", rates), ("method", pruned["method"])]
    if manifest is not None and report is not None:
        dense = sum(row.dense_equivalent_gflop for row in report.rows)
        effective = sum(row.effective_gflop for row in report.rows)
        target = manifest.target
        lines += [
            ("target", str(target.get("tag") or target.get("mcpu") or target.get("kind"))),
            ("convolutions taken", f"{len(report.taken)} of {len(report.rows)}"),
            ("work", f"{dense:.3g} GFLOP dense-equivalent, {effective:.3g} GFLOP effective"),
            ("threads", str(manifest.num_threads)),
            ("verification", manifest.verification.get("summary", "not recorded")),
        ]
    if profile is not None:
        lines.append(
            ("time", f"{profile.whole_ms:.3f} ms, the steps one by one {profile.sum_ms:.3f} ms")
        )
    if profile is not None and dense_profile is not None:
        gain = dense_profile.whole_ms / max(profile.whole_ms, 1e-9)
        lines.append(
            ("against dense", f"{dense_profile.whole_ms:.3f} ms compiled dense: {gain:.2f}x")
        )
    if latency:
        lines.append(("runs", latency))
    return lines


def _pictures(
    rows: Sequence[LayerFacts],
    epochs: Sequence[Mapping[str, Any]],
    sensitivity: Mapping[str, Sequence[tuple[float, float]]] | None,
    label: str,
) -> list[_Figure]:
    drawn: list[tuple[str, Figure | None, str]] = [
        ("Time by layer", figures.times(rows), "Each step by itself, in nearer caches than whole."),
        (
            "Energy removed by layer",
            figures.lost_energy(rows),
            "Share of the squared norm of the weights that the hard prune removed.",
        ),
        (
            "Sensitivity by layer",
            figures.curves(sensitivity or {}, label),
            "Each layer pruned by itself to each rate, the others as they were.",
        ),
        ("Training", figures.training(epochs), "On held-out images."),
    ]
    return [
        _Figure(title, figures.as_uri(figure), caption)
        for title, figure, caption in drawn
        if figure is not None
    ]


def _kernel_pictures(
    weights: Mapping[str, np.ndarray], dense_weights: Mapping[str, np.ndarray]
) -> list[_Figure]:
    found = []
    for name, after in weights.items():
        before = dense_weights.get(name)
        if before is not None and before.shape != after.shape:
            raise ReportError(
                f"layer {name!r} has weights {before.shape} before and {after.shape} after pruning;"
                " expected weights of one network"
            )
        text = "The first filters and in_channels, by the magnitude of their weights."
        if before is not None:
            energy = float((after**2).sum() / max((before**2).sum(), np.finfo(np.float32).tiny))
            text += f" Squared norm after / before: {100 * energy:.1f} %."
        figure = figures.as_uri(figures.kernels(before, after))
        found.append(_Figure(f"Kernels of {name}", figure, text))
    return found
