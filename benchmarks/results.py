"""Result files: JSON, a log of every sample, a Markdown table and a plot."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from .harness import CONTENDED, OURS, Contender, Row

_WARNING = "Other programs used the cores during this run: not a result."


def variant_name(row: Row) -> str:
    """Engine, and for ours the group: ``tvm-pattern F=4``, ``tvm-pattern dense``."""
    if row.engine != OURS:
        return row.engine
    return f"{OURS} dense" if row.group is None else f"{OURS} F={row.group}"


def peak_name(dtype: str) -> str:
    """What result files call the peak that rates of a dtype are parts of."""
    return "dot_peak_gops" if dtype == "int8" else "fma_peak_gflops"


def write_text(path: Path, text: str) -> None:
    """Write so that a reader, or a crash, never sees half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".part")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


def write_json(path: Path, device: dict[str, Any], peak: float, rows: Sequence[Row]) -> None:
    """The result file; its format is in ``benchmarks/README.md``."""
    data = {
        "device": device,
        peak_name(rows[0].dtype if rows else "float32"): round(peak, 2),
        "rows": [row.as_dict() for row in rows],
    }
    write_text(path, json.dumps(data, indent=1) + "\n")


def write_samples(path: Path, contenders: Sequence[Contender], peak: Sequence[float]) -> None:
    """Every sample in the order taken, one JSON line per engine and workload."""
    name = peak_name(contenders[0].dtype if contenders else "float32")
    lines = [json.dumps({name: [round(v, 2) for v in peak]})]
    lines += [
        json.dumps(
            {
                "workload": c.workload,
                "engine": c.engine,
                "group": c.group,
                "samples_ms": [round(v, 5) for v in c.samples_ms],
            }
        )
        for c in contenders
        if c.samples_ms
    ]
    write_text(path, "\n".join(lines) + "\n")


def _by_workload(rows: Sequence[Row]) -> dict[str, list[Row]]:
    table: dict[str, list[Row]] = {}
    for row in rows:
        table.setdefault(row.workload, []).append(row)
    return table


def _figure(value: float | None, digits: int = 3) -> str:
    return "" if value is None else f"{value:.{digits}g}"


def _speedup(row: Row, rows: Sequence[Row]) -> str:
    """Our row against the fastest other engine on the same workload."""
    others = [r.median_ms for r in rows if r.engine != OURS and r.median_ms]
    if row.engine != OURS or not row.median_ms or not others:
        return ""
    return f"{min(others) / row.median_ms:.2f}x"


def markdown(title: str, device: dict[str, Any], peak: float, rows: Sequence[Row]) -> str:
    """The table people read; both FLOP counters carry their label."""
    dtype = rows[0].dtype if rows else "float32"
    of_what = "Peak of the dot products of bytes" if dtype == "int8" else "FMA peak"
    out = [
        f"# {title}",
        "",
        f"{device['cpu']}, {device['threads']} thread(s) on core(s) {device['pinned_to']},"
        f" {dtype}, {device['date']}. {of_what} of one core, measured in the same run:"
        f" {peak:.1f} {'GOP/s' if dtype == 'int8' else 'GFLOP/s'}.",
        "",
        f"Command: `{device['command']}`. Engines: "
        + ", ".join(f"{k} {v}" for k, v in sorted(device["engines"].items()))
        + ".",
        "",
    ]
    if any(CONTENDED in row.note for row in rows):
        out += [f"**{_WARNING}**", ""]
    for workload, group in _by_workload(rows).items():
        out += [
            f"## {workload}",
            "",
            "| engine | median ms | p10-p90 ms | runs | images/s | peak memory MB | sparsity |"
            " effective GFLOP/s | dense-equivalent GFLOP/s | effective / peak |"
            " over fastest other | max abs error | note |",
            "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|---|",
        ]
        timed = [r.median_ms for r in group if r.median_ms]
        for row in sorted(group, key=lambda r: (r.median_ms is None, r.median_ms or 0.0)):
            median = _figure(row.median_ms, 4)
            cells = [
                variant_name(row),
                f"**{median}**" if timed and row.median_ms == min(timed) else median,
                f"{_figure(row.p10_ms)}-{_figure(row.p90_ms)}" if row.runs else "",
                str(row.runs) if row.runs else "",
                _figure(row.images_per_second),
                "" if row.peak_memory_mb is None else f"{row.peak_memory_mb:.1f}",
                "" if row.sparsity is None else f"{row.sparsity:.1%}",
                _figure(row.effective_gflops, 4),
                _figure(row.dense_equivalent_gflops, 4),
                "" if row.peak_fraction is None else f"{row.peak_fraction:.0%}",
                _speedup(row, group),
                _figure(row.max_abs_error, 2),
                row.note.replace("|", "\\|").replace("\n", " "),
            ]
            out.append("| " + " | ".join(cells) + " |")
        out.append("")
    return "\n".join(out)


def plot(path: Path, title: str, rows: Sequence[Row]) -> bool:
    """Bars of speed relative to the fastest other engine; False if there is nothing to draw."""
    table = {w: [r for r in g if r.median_ms] for w, g in _by_workload(rows).items()}
    table = {w: g for w, g in table.items() if g}
    if not table:
        return False
    names = list(dict.fromkeys(variant_name(r) for g in table.values() for r in g))
    others = [n for n in names if not n.startswith(OURS)]
    names = others + [n for n in names if n not in others]
    greys, colours = plt.get_cmap("Greys"), plt.get_cmap("viridis")
    ours = len(names) - len(others)
    shades = [greys(0.35 + 0.5 * i / max(1, len(others) - 1)) for i in range(len(others))]
    shades += [colours(i / max(1, ours)) for i in range(ours)]

    figure, axes = plt.subplots(figsize=(max(7.0, 1.5 * len(table)), 4.8), layout="constrained")
    width = 0.85 / len(names)
    for place, (name, shade) in enumerate(zip(names, shades, strict=True)):
        xs, heights = [], []
        for x, group in enumerate(table.values()):
            row = next((r for r in group if variant_name(r) == name), None)
            if row is None or row.median_ms is None:
                continue
            dense = [r.median_ms for r in group if r.engine != OURS and r.median_ms]
            base = min(dense) if dense else min(r.median_ms for r in group if r.median_ms)
            xs.append(x + (place - len(names) / 2 + 0.5) * width)
            heights.append(base / row.median_ms)
        axes.bar(xs, heights, width, label=name, color=shade)
    axes.axhline(1.0, color="black", linewidth=0.8)
    axes.set_xticks(range(len(table)), list(table), rotation=30, ha="right")
    axes.set_ylabel("speed, fastest other engine = 1")
    axes.set_title(f"{title}\n{_WARNING}" if any(CONTENDED in r.note for r in rows) else title)
    axes.legend(fontsize=7, ncols=2)
    figure.savefig(path, dpi=130)
    plt.close(figure)
    return True


def write_all(
    path: Path, title: str, device: dict[str, Any], peak: float, rows: Sequence[Row]
) -> list[Path]:
    """JSON, Markdown and PNG with the same stem; returns what was written."""
    write_json(path, device, peak, rows)
    write_text(path.with_suffix(".md"), markdown(title, device, peak, rows))
    written = [path, path.with_suffix(".md")]
    if plot(path.with_suffix(".png"), title, rows):
        written.append(path.with_suffix(".png"))
    return written
