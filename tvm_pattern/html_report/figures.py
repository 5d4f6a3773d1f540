"""The pictures of a page, as SVG; ratios on linear axes, legends beside the curves."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from .data import LayerFacts

# Layers that a picture shows at most; of more, the slowest or those that lost most.
_BARS = 40
_CURVES = 10
#: Kernels of a layer that are drawn, filters x in_channels.
_KERNELS = 8


def as_uri(figure: Figure) -> str:
    """A figure as the address of an ``<img>``; the same figure gives the same text."""
    stream = io.BytesIO()
    with rc_context({"svg.hashsalt": "tvm-pattern"}):
        FigureCanvasSVG(figure).print_svg(stream, metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(stream.getvalue()).decode()


def _bars(rows: Sequence[tuple[str, float]], label: str) -> Figure:
    figure = Figure(figsize=(9, 0.24 * len(rows) + 0.9), layout="constrained")
    axes = figure.add_subplot()
    axes.barh([name for name, _ in rows], [value for _, value in rows], height=0.7)
    axes.invert_yaxis()
    axes.margins(y=0.01)
    axes.set_xlabel(label)
    return figure


def times(rows: Sequence[LayerFacts]) -> Figure | None:
    """Measured time of each layer, the slowest first."""
    found = sorted(((r.name, r.ms) for r in rows if r.ms), key=lambda item: -item[1])
    return _bars(found[:_BARS], "measured time (ms)") if found else None


def lost_energy(rows: Sequence[LayerFacts]) -> Figure | None:
    """Share of each layer's energy that pruning took, the most first."""
    found = [(r.name, 100 * (1 - r.energy)) for r in rows if r.energy is not None and r.energy < 1]
    found.sort(key=lambda item: -item[1])
    return _bars(found[:_BARS], "energy removed (% of the squared norm)") if found else None


def curves(points: Mapping[str, Sequence[tuple[float, float]]], label: str) -> Figure | None:
    """What each layer loses at each rate; of many layers, those that lose most.

    Parameters
    ----------
    points : mapping
        Layer -> ``(connectivity, loss)`` points.
    label : str
        Of the axis of losses.
    """
    named = {name: sorted(values) for name, values in points.items() if values}
    if not named:
        return None
    chosen = sorted(named, key=lambda name: -named[name][-1][1])[:_CURVES]
    figure = Figure(figsize=(9, 4.2), layout="constrained")
    axes = figure.add_subplot()
    for name in chosen:
        x, y = zip(*named[name], strict=True)
        axes.plot(x, y, marker="o", markersize=3, label=name)
    axes.set_xlabel("connectivity (kernels before / after)")
    axes.set_ylabel(label)
    axes.set_xlim(left=1)
    axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
    figure.legend(loc="outside right upper", fontsize=8)
    return figure


def training(epochs: Sequence[Mapping[str, Any]]) -> Figure | None:
    """Accuracy on held-out images by epoch; the freeze is marked."""
    found = [(e["epoch"], e["accuracy"], e.get("phase")) for e in epochs if "accuracy" in e]
    if not found:
        return None
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    axes = figure.add_subplot()
    axes.plot([e for e, _, _ in found], [a for _, a, _ in found], marker="o", markersize=3)
    frozen = [epoch for epoch, _, phase in found if phase not in (None, "training")]
    if frozen:
        axes.axvline(frozen[0], color="grey", linewidth=0.8)
        axes.annotate("patterns frozen", (frozen[0], axes.get_ylim()[0]), fontsize=8)
    axes.set_xlabel("epoch")
    axes.set_ylabel("accuracy (%)")
    return figure


def kernels(before: np.ndarray | None, after: np.ndarray) -> Figure:
    """The first kernels of a layer by the magnitude of their weights, before and after pruning.

    Parameters
    ----------
    before, after : numpy.ndarray
        Weights ``[filters, in_channels, kh, kw]``.
    """
    pictures = [("before", before), ("after", after)] if before is not None else [("", after)]
    top = max(float(np.abs(weight).max()) for _, weight in pictures) or 1.0
    figure = Figure(figsize=(4.2 * len(pictures), 4.8), layout="constrained")
    for position, (title, weight) in enumerate(pictures):
        axes = figure.add_subplot(1, len(pictures), position + 1)
        axes.imshow(_mosaic(np.abs(weight)), cmap="Blues", vmin=0, vmax=top)
        axes.set_title(title)
        axes.set_xlabel("in_channel")
        axes.set_ylabel("filter")
        step = weight.shape[3] + 1
        axes.set_xticks(np.arange(min(weight.shape[1], _KERNELS)) * step + step / 2 - 1)
        axes.set_xticklabels(map(str, range(min(weight.shape[1], _KERNELS))))
        step = weight.shape[2] + 1
        axes.set_yticks(np.arange(min(weight.shape[0], _KERNELS)) * step + step / 2 - 1)
        axes.set_yticklabels(map(str, range(min(weight.shape[0], _KERNELS))))
    return figure


def _mosaic(weight: np.ndarray) -> np.ndarray:
    """Kernels side by side, a gap between them."""
    part = weight[:_KERNELS, :_KERNELS]
    filters, channels, height, width = part.shape
    gaps = np.full((filters, channels, height + 1, width + 1), np.nan)
    gaps[:, :, :height, :width] = part
    return gaps.transpose(0, 2, 1, 3).reshape(filters * (height + 1), -1)[:-1, :-1]
