"""The picture of the demo: patterns, kept kernels, speed of each layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure

from topi_kernels.pattern import PatternSet

from .atomic import write_figure
from .pruning.assignment import LayerAssignment
from .pruning.report import PruneReport

REMOVED = 255


@dataclass(frozen=True)
class LayerTime:
    """Median milliseconds of one convolution in both engines."""

    layer: str
    torch_ms: float
    ours_ms: float


def save_picture(path: Path, report: PruneReport, layers: Sequence[LayerTime]) -> None:
    """Draw the three panels into a PNG.

    Parameters
    ----------
    path : pathlib.Path
    report : PruneReport
        Of the digits network; its widest layer is shown.
    layers : sequence of LayerTime
        Of ResNet-50.
    """
    figure = Figure(figsize=(15, 10), layout="constrained")
    halves: Any = figure.subfigures(2, 1, height_ratios=[1, 1.3])
    top, bottom = halves
    left, right = top.subfigures(1, 2)
    name, layer = max(report.assignment.items(), key=lambda item: item[1].pattern_id.numel())
    _draw_patterns(left, layer.pattern_set, _usage(report))
    _draw_kernels(right.subplots(), name, layer)
    _draw_layers(bottom.subplots(), layers)
    write_figure(figure, path, dpi=110)


def _usage(report: PruneReport) -> np.ndarray:
    counts = np.zeros(256, int)
    for layer in report.assignment.values():
        counts += np.bincount(layer.pattern_id.numpy().ravel(), minlength=256)
    return counts[:REMOVED]


def _draw_patterns(figure: SubFigure, patterns: PatternSet, counts: np.ndarray) -> None:
    figure.suptitle("Pattern library: 4 of 9 taps, and how often the digits network uses each")
    columns = 4
    rows = -(-len(patterns) // columns)
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for ax in axes:
        ax.set_axis_off()
    total = max(1, counts[: len(patterns)].sum())
    for ax, pattern, count in zip(axes, patterns, counts, strict=False):
        ax.imshow(pattern.mask, cmap="Blues", vmin=0, vmax=1.4)
        ax.set_title(f"{count / total:.0%}", fontsize=10)
        for edge in (0.5, 1.5):
            ax.axhline(edge, color="white", linewidth=2)
            ax.axvline(edge, color="white", linewidth=2)


def _draw_kernels(ax: Axes, name: str, layer: LayerAssignment) -> None:
    kept = layer.pattern_id.numpy() != REMOVED
    ids = np.ma.masked_array(layer.pattern_id.numpy(), ~kept)
    ax.imshow(ids, cmap="tab10", vmin=0, vmax=9, aspect="auto", interpolation="nearest")
    ax.set_title(f"Kept kernels of {name}: {kept.mean():.0%} of {kept.size}, coloured by pattern")
    ax.set_xlabel("in_channel")
    ax.set_ylabel("filter")


def _draw_layers(ax: Axes, layers: Sequence[LayerTime]) -> None:
    positions = np.arange(len(layers))
    ax.bar(positions - 0.2, [r.torch_ms for r in layers], 0.4, label="torch dense")
    ax.bar(positions + 0.2, [r.ours_ms for r in layers], 0.4, label="tvm-pattern pruned")
    ax.set_xticks(positions, [r.layer for r in layers], rotation=90, fontsize=7)
    ax.set_xlim(-1, len(layers))
    ax.set_ylabel("median ms")
    ax.set_title("ResNet-50: time of each convolution (ours includes activation and residual)")
    ax.legend()
