"""Table and plot of the study's rows: ``python -m benchmarks.cifar.summary FILE.jsonl``.

Works on the rows that are there. ``FILE.md`` and ``FILE.png`` are written beside it.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from scipy.stats import t as student_t

from .rows import PATTERN_METHODS, PATTERN_RATE, Row, all_rows, from_fields
from .study import Results, ResultsError

Seeds = dict[int, float]


def comparisons(network: str) -> list[tuple[str, Row, Row]]:
    """The study's questions: what they say, a row and the row that it is held against."""
    dense, base = Row(network, "dense"), Row(network, "gradual", 8.0)
    patterns = replace(base, rate=PATTERN_RATE)
    found = [
        ("8x against dense", base, dense),
        ("patterns alone (2.25x) against dense", patterns, dense),
        ("patterns alone, PCONV's four, against dense", replace(patterns, library="pconv4"), dense),
    ]
    for rate in (4.0, 8.0, 12.0):
        for kind, name in (("filter-latency", "latency"), ("filter-weights", "weights")):
            question = f"{rate:g}x against filter pruning of equal {name}"
            found.append((question, replace(base, rate=rate), Row(network, kind, rate)))
    for group in (2, 4, 8):
        near, like = replace(base, group=group), replace(base, group=group, similar=True)
        found.append((f"F={group} of neighbours against F=1 at 8x", near, base))
        found.append((f"F={group} of similar filters against F=1 at 8x", like, base))
        found.append((f"F={group}: similar filters against neighbours at 8x", like, near))
    for library in ("natural8", "pconv4"):
        found.append((f"{library} against fixed8 at 8x", replace(base, library=library), base))
    for rate in (PATTERN_RATE, 4.0, 8.0):
        projected = Row(network, "projection", rate)
        for method in ("posttrain", "posttrain-blocks"):
            untrained = Row(network, method, rate)
            found.append((f"{method} {rate:g}x against dense", untrained, dense))
            question = f"{method} {rate:g}x against projection and recalibration"
            found.append((question, untrained, projected))
            question = f"{method} {rate:g}x against gradual with training"
            found.append((question, untrained, replace(base, rate=rate)))
    for method in ("admm", "oneshot", "unstructured"):
        other = Row(network, method, 8.0)
        found.append((f"{method} against gradual at 8x", other, base))
    return found


@dataclass(frozen=True)
class Difference:
    """Mean of ``a - b`` over common seeds, its standard deviation and the noise of the mean.

    ``noise`` is half of a 95 % interval from the spread pooled over all rows of the network, since
    two or three seeds tell little about a row's own spread; NaN with one seed of everything.
    """

    mean: float
    spread: float
    seeds: int
    noise: float

    @property
    def verdict(self) -> str:
        if np.isnan(self.noise):
            return "one seed"
        if abs(self.mean) <= self.noise:
            return "within noise"
        return "higher" if self.mean > 0 else "lower"


def paired(a: Seeds, b: Seeds) -> list[float]:
    """Differences over the seeds that both have."""
    return [a[seed] - b[seed] for seed in sorted(a.keys() & b.keys())]


class Table:
    """Accuracies by row and seed; diverged runs are counted and left out of the means."""

    def __init__(self, lines: list[dict[str, Any]]) -> None:
        self.accuracy: dict[Row, Seeds] = defaultdict(dict)
        self.diverged: dict[Row, int] = defaultdict(int)
        self.fraction: dict[Row, float] = {}
        self.rate: dict[Row, float] = {}
        for line in lines:
            row = from_fields(line)
            if line["test"] is None:
                self.diverged[row] += 1
            else:
                self.accuracy[row][line["seed"]] = line["test"]
            self.rate[row] = line["compression_rate"]
            if line["fraction"] is not None:
                self.fraction[row] = line["fraction"]

    def rows(self, network: str) -> list[Row]:
        """Rows that there are, in the study's order."""
        known = [row for row in all_rows() if row in self.rate]
        known += [row for row in self.rate if row not in known]
        return [row for row in known if row.network == network]

    @property
    def networks(self) -> list[str]:
        return list(dict.fromkeys(row.network for row in self.rate))

    def pooled(self, network: str) -> tuple[float, int]:
        """Standard deviation of a difference to dense within rows, and its degrees of freedom."""
        dense = self.accuracy[Row(network, "dense")]
        squares, freedom = 0.0, 0
        for row in self.rows(network):
            values = paired(self.accuracy[row], dense)
            if row.method != "dense" and len(values) > 1:
                squares += float(np.var(values)) * len(values)
                freedom += len(values) - 1
        return (float(np.sqrt(squares / freedom)) if freedom else float("nan")), freedom

    def difference(self, a: Row, b: Row) -> Difference | None:
        """None without a common seed."""
        values = paired(self.accuracy[a], self.accuracy[b])
        if not values:
            return None
        deviation, freedom = self.pooled(a.network)
        noise = float("nan")
        if freedom:
            noise = float(student_t.ppf(0.975, freedom)) * deviation / np.sqrt(len(values))
        spread = float(np.std(values, ddof=1)) if len(values) > 1 else float("nan")
        return Difference(float(np.mean(values)), spread, len(values), noise)


# Latency ----------------------------------------------------------------------------------------


def ratio_of(latency: dict[str, Any] | None, row: Row, fraction: float | None) -> float | None:
    """Latency over that of the dense network; between measured widths a straight line.

    None where it was not measured: unstructured rows run dense, other pattern sets were not built.
    """
    entry = (latency or {}).get("networks", {}).get(row.network)
    if entry is None:
        return None
    if row.method == "dense":
        return 1.0
    if row.method in PATTERN_METHODS:
        if row.library != "fixed8":
            return None
        fitting = [
            p["ratio"] for p in entry["pattern"] if (p["rate"], p["group"]) == (row.rate, row.group)
        ]
        return fitting[0] if fitting else None
    thin = sorted((t["fraction"], t["ratio"]) for t in entry["thin"])
    if fraction is None or not thin or not thin[0][0] <= fraction <= thin[-1][0]:
        return None
    return float(np.interp(fraction, [t[0] for t in thin], [t[1] for t in thin]))


# Markdown ---------------------------------------------------------------------------------------


def _spread(mean: float, deviation: float, sign: str = "") -> str:
    figure = f"{mean:{sign}.2f}"
    return figure if np.isnan(deviation) else f"{figure} ± {deviation:.2f}"


def _table(head: list[str], body: list[list[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in body]) + "\n"


def _rows_table(table: Table, network: str, latency: dict[str, Any] | None) -> str:
    body = []
    for row in table.rows(network):
        values = list(table.accuracy[row].values())
        deviation = float(np.std(values, ddof=1)) if len(values) > 1 else float("nan")
        difference = table.difference(row, Row(network, "dense"))
        ratio = ratio_of(latency, row, table.fraction.get(row))
        count = str(len(values))
        if table.diverged[row]:
            count += f" ({table.diverged[row]} diverged)"
        compared = difference is not None and row.method != "dense"
        body.append(
            [
                row.label,
                f"{table.rate[row]:.2f}x",
                "" if ratio is None else f"{ratio:.2f}",
                _spread(float(np.mean(values)), deviation) if values else "",
                count,
                _spread(difference.mean, difference.spread, "+") if compared and difference else "",
                difference.verdict if compared and difference else "",
            ]
        )
    head = [
        "row", "real rate", "latency / dense", "test accuracy (%)", "seeds",
        "against dense (points)", "verdict",
    ]  # fmt: skip
    return _table(head, body)


def _questions_table(table: Table, network: str) -> str:
    body = []
    for question, a, b in comparisons(network):
        found = table.difference(a, b)
        if found is not None:
            noise = "" if np.isnan(found.noise) else f"± {found.noise:.2f}"
            mean = _spread(found.mean, found.spread, "+")
            body.append([question, mean, noise, str(found.seeds), found.verdict])
    return _table(["question", "difference (points)", "noise", "seeds", "verdict"], body)


def to_markdown(results: Results, latency: dict[str, Any] | None, facts: dict[str, Any]) -> str:
    """The whole summary."""
    table = Table(results.rows)
    settings = results.settings or {}
    parts = [
        "# Accuracy of pruned networks on CIFAR-10\n\n"
        f"Every row of a seed starts from the same dense network ({settings.get('pretrain_epochs')}"
        f" epochs) and trains {settings.get('epochs')} epochs more along the same learning rates,"
        " the dense row too. Mean ± standard deviation over seeds, in percent, of the last epoch;"
        " the test images chose nothing. Rates count all convolution weights. Noise is half a 95 %"
        " interval of the mean difference, from the spread within rows pooled over a network; of"
        " twenty true zeros one is expected outside. Rows of one seed are judged by that spread"
        " too.\n"
    ]
    for network in table.networks:
        deviation, freedom = table.pooled(network)
        pooled = "not known: one seed"
        if freedom:
            pooled = f"{deviation:.2f} points ({freedom} degrees of freedom)"
        parts.append(f"## {network}\n\n" + _rows_table(table, network, latency))
        parts.append(f"Pooled standard deviation of a difference: {pooled}.\n")
        parts.append(_questions_table(table, network))
    if latency is not None:
        where = latency["device"]
        parts.append(
            f"Latency: {where.get('cpu')}, {where.get('threads')} thread(s),"
            f" {latency.get('clock')}, batch"
            f" {latency.get('batch')}, median over rounds of the ratio to the dense network,"
            f" compiled alike; warm-up: {latency.get('warm_up')}. Groups of similar filters have"
            " the latency of neighbours, filter rows that of the width, by a straight line between"
            " measured ones.\n"
        )
    parts.append(f"Trained on: {facts}. Settings: `{settings}`.\n")
    return "\n".join(parts)


# Plot -------------------------------------------------------------------------------------------

SERIES = (
    ("patterns, gradual", "o-", lambda row: row.method == "gradual" and row.group == 1),
    ("neighbours share", "^", lambda row: row.group > 1 and not row.similar),
    ("similar filters share", "v", lambda row: row.similar),
    ("ADMM", "P", lambda row: row.method == "admm"),
    ("one-shot", "X", lambda row: row.method == "oneshot"),
    ("posttrain, no training", "D:", lambda row: row.method == "posttrain"),
    ("filter pruning", "s--", lambda row: row.method.startswith("filter")),
)


def _panel(axes: Axes, table: Table, network: str, latency: dict[str, Any]) -> None:
    def points(chosen: list[Row]) -> list[tuple[float, float, float]]:
        found = []
        for row in chosen:
            ratio = ratio_of(latency, row, table.fraction.get(row))
            values = list(table.accuracy[row].values())
            if ratio is not None and values:
                found.append((ratio, float(np.mean(values)), float(np.std(values))))
        return sorted(found)

    rows = table.rows(network)
    for label, style, belongs in SERIES:
        found = points([row for row in rows if belongs(row)])
        if found:
            ratios, means, errors = zip(*found, strict=True)
            axes.errorbar(ratios, means, errors, fmt=style, capsize=2, markersize=5, label=label)
    for _, dense, _ in points([Row(network, "dense")]):
        axes.axhline(dense, color="gray", linewidth=0.8, label="dense")
    axes.set(title=network, xlabel="latency / dense", ylabel="test accuracy (%)")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7)


def plot(results: Results, latency: dict[str, Any], path: Path) -> None:
    """Accuracy over measured latency, a panel per network."""
    table = Table(results.rows)
    figure = Figure(figsize=(5.5 * max(1, len(table.networks)), 4.2))
    panels = figure.subplots(1, max(1, len(table.networks)), squeeze=False)[0]
    for axes, network in zip(panels, table.networks, strict=False):
        _panel(axes, table, network, latency)
    figure.tight_layout()
    FigureCanvasAgg(figure).print_png(str(path))


def facts_of(path: Path) -> dict[str, Any]:
    """Device and versions of the last run."""
    runs = [json.loads(line) for line in path.read_text().splitlines() if '"settings"' in line]
    return {key: value for key, value in runs[-1].items() if key != "settings"} if runs else {}


def main(values: list[str] | None = None) -> int:
    """Write the table, and the plot if there is a latency table."""
    parser = argparse.ArgumentParser(prog="benchmarks.cifar.summary")
    parser.add_argument("rows", type=Path, help="FILE.jsonl of the study")
    parser.add_argument("--latency", type=Path, help="table of benchmarks.cifar.latency")
    options = parser.parse_args(values)
    try:
        results = Results.read(options.rows)
    except ResultsError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if not results.rows:
        print(f"error: {options.rows} has no finished rows; run the study first", file=sys.stderr)
        return 2
    latency = json.loads(options.latency.read_text()) if options.latency else None
    text = to_markdown(results, latency, facts_of(options.rows))
    options.rows.with_suffix(".md").write_text(text)
    if latency is not None:
        plot(results, latency, options.rows.with_suffix(".png"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
