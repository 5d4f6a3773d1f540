"""Plots of a pruning run, drawn without a display."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ..atomic import write_figure
from .assignment import Assignment
from .projection import REMOVED
from .report import PruneReport


def _save(figure: Figure, path: str | Path) -> None:
    FigureCanvasAgg(figure)
    write_figure(figure, Path(path), dpi=120, bbox_inches="tight")


def plot_library(report: PruneReport, path: str | Path) -> None:
    """Every pattern of every library with the share of surviving kernels that use it."""
    sets = {a.pattern_set for a in report.assignment.values() if len(a.pattern_set) > 1}
    ordered = sorted(sets, key=lambda s: s.name)
    if not ordered:
        raise ValueError("no layer has more than one pattern; there is no library to draw")
    counts = {s: _usage(report.assignment, s) for s in ordered}
    columns = min(12, max(len(s) for s in ordered))
    rows = [-(-len(s) // columns) for s in ordered]
    figure = Figure(figsize=(1.1 * columns, 1.5 * sum(rows)))
    offset = 0
    for pattern_set, height in zip(ordered, rows, strict=True):
        used = counts[pattern_set]
        for rank, index in enumerate(np.argsort(-used, kind="stable")):
            axes = figure.add_subplot(sum(rows), columns, offset * columns + rank + 1)
            axes.imshow(pattern_set[int(index)].mask, cmap="Blues", vmin=0, vmax=1.4)
            axes.set_xticks([])
            axes.set_yticks([])
            share = used[index] / max(1, used.sum())
            axes.set_title(f"{100 * share:.1f} %", fontsize=8)
            if rank % columns == 0:
                axes.set_ylabel(pattern_set.name, fontsize=8)
        offset += height
    _save(figure, path)


def _usage(assignment: Assignment, pattern_set: Any) -> np.ndarray:
    used = np.zeros(REMOVED + 1, np.int64)
    for layer in assignment.values():
        if layer.pattern_set == pattern_set:
            ids = layer.pattern_id.cpu().numpy().ravel()
            used += np.bincount(ids, minlength=REMOVED + 1)
    return used[: len(pattern_set)]


def plot_kept_kernels(assignment: Assignment, path: str | Path, layers: int = 12) -> None:
    """Map of surviving kernels (in_channel across, filter down) of up to ``layers`` layers."""
    pruned = [
        (name, layer) for name, layer in assignment.items() if layer.kept < layer.pattern_id.numel()
    ]
    chosen = (pruned or list(assignment.items()))[:layers]
    columns = min(4, len(chosen))
    rows = -(-len(chosen) // columns)
    figure = Figure(figsize=(3 * columns, 3 * rows))
    for position, (name, layer) in enumerate(chosen):
        axes = figure.add_subplot(rows, columns, position + 1)
        alive = layer.pattern_id.cpu().numpy() != REMOVED
        axes.imshow(alive, cmap="Greys", aspect="auto", interpolation="nearest", vmin=0, vmax=1)
        axes.set_title(f"{name}: {layer.kept}/{alive.size}", fontsize=8)
    figure.supxlabel("in_channel")
    figure.supylabel("filter")
    _save(figure, path)


def plot_energy(report: PruneReport, path: str | Path) -> None:
    """Share of each layer's squared norm that the hard prune kept."""
    rows = [r for r in report.pruned if r.energy_kept is not None]
    figure = Figure(figsize=(7, 0.28 * len(rows) + 1))
    axes = figure.add_subplot()
    axes.barh([r.name for r in rows], [100 * (r.energy_kept or 0.0) for r in rows])
    axes.invert_yaxis()
    axes.set_xlim(0, 100)
    axes.set_xlabel("energy kept at the hard prune (%)")
    _save(figure, path)


def plot_training(epochs: Sequence[Mapping[str, Any]], path: str | Path) -> None:
    """Validation accuracy and training loss per epoch; the freeze is marked.

    Parameters
    ----------
    epochs : sequence of mapping
        Each with ``epoch``, ``loss``, ``accuracy`` and ``phase``.
    """
    figure = Figure(figsize=(7, 4))
    axes = figure.add_subplot()
    x = [e["epoch"] for e in epochs]
    axes.plot(x, [e["accuracy"] for e in epochs], "C0", label="validation accuracy (%)")
    axes.set_xlabel("epoch")
    axes.set_ylabel("validation accuracy (%)")
    losses = axes.twinx()
    losses.plot(x, [e["loss"] for e in epochs], "C1--", label="training loss")
    losses.set_ylabel("training loss")
    frozen = [e["epoch"] for e in epochs if e["phase"] != "training"]
    if frozen:
        axes.axvline(frozen[0], color="grey", linewidth=0.8)
        axes.annotate("freeze", (frozen[0], axes.get_ylim()[0]), fontsize=8)
    axes.legend(loc="lower left")
    losses.legend(loc="lower right")
    _save(figure, path)


def plot_sensitivity(curves: Mapping[str, Sequence[tuple[float, float]]], path: str | Path) -> None:
    """Loss increase against the connectivity rate, one line per layer.

    Parameters
    ----------
    curves : mapping
        Layer name to ``(connectivity, loss increase)`` points.
    """
    figure = Figure(figsize=(7, 4.5))
    axes = figure.add_subplot()
    for name, points in curves.items():
        ordered = sorted(points)
        axes.plot([p[0] for p in ordered], [p[1] for p in ordered], marker="o", label=name)
    axes.set_xlabel("connectivity (kernels before / after)")
    axes.set_ylabel("loss increase, one-shot")
    axes.legend(fontsize=6, ncols=2)
    _save(figure, path)


def save_plots(
    report: PruneReport, folder: str | Path, epochs: Sequence[Mapping[str, Any]] = ()
) -> list[Path]:
    """All plots of a finished run as PNG files in ``folder``."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    written = [folder / "kept_kernels.png", folder / "energy.png"]
    plot_kept_kernels(report.assignment, written[0])
    plot_energy(report, written[1])
    if any(len(a.pattern_set) > 1 for a in report.assignment.values()):
        written.append(folder / "library.png")
        plot_library(report, written[-1])
    if epochs:
        written.append(folder / "training.png")
        plot_training(epochs, written[-1])
    return written
