"""Table and plot of the accuracy study, computed from its raw rows alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from scipy.stats import t as student_t

Row = dict[str, Any]
Key = tuple[str, int, int, str, str]

PAIRS = (
    ("gradual", "dense", 1),
    ("gradual", "filter", None),
    ("gradual", "filter-shaped", None),
    ("gradual", "oneshot", None),
    ("gradual", "unstructured", None),
    ("admm", "oneshot", None),
    ("admm-separate", "admm", None),
    ("posttrain", "dense", 1),
    ("posttrain", "oneshot", None),
    ("posttrain-blocks", "posttrain", None),
    ("posttrain-blocks", "dense", 1),
)
"""(method, reference, rate of the reference or None for the same rate)."""

PATTERN_METHODS = ("oneshot", "gradual", "admm", "admm-separate", "posttrain", "posttrain-blocks")


def _key(row: Row) -> Key:
    # Rows of before filters alike could share have no "sharing".
    sharing = row.get("sharing", "neighbours") if row["group"] > 1 else ""
    return row["method"], row["rate"], row["group"], row["library"], sharing


def by_seed(rows: list[Row], field: str = "test") -> dict[Key, dict[int, float]]:
    """Values of a field per trial and seed."""
    table: dict[Key, dict[int, float]] = {}
    for row in rows:
        if field in row:
            table.setdefault(_key(row), {})[row["seed"]] = row[field]
    return table


def mean_std(values: list[float]) -> tuple[float, float]:
    """Mean and sample standard deviation (0 for one value)."""
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


def _cell(values: dict[int, float] | None) -> str:
    if not values:
        return ""
    mean, std = mean_std(list(values.values()))
    return f"{mean:.2f} ± {std:.2f}"


def paired(a: dict[int, float], b: dict[int, float]) -> tuple[float, float, int]:
    """Mean and standard deviation of ``a - b`` over the seeds that both have, and their number."""
    differences = [a[s] - b[s] for s in sorted(set(a) & set(b))]
    return (*mean_std(differences), len(differences))


def _table(head: list[str], body: list[list[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in body]) + "\n"


def _methods_table(rows: list[Row]) -> str:
    tests, hards = by_seed(rows), by_seed(rows, "hard_test")
    recalibrated, rates = by_seed(rows, "hard_bn_test"), by_seed(rows, "compression_rate")
    body = []
    for key in sorted(tests, key=lambda k: (k[1], k[2], k[0], k[3], k[4])):
        method, rate, group, library, sharing = key
        body.append(
            [
                f"{rate}x",
                method,
                f"{group} {sharing}".strip() if method in PATTERN_METHODS else "",
                library if method in PATTERN_METHODS else "",
                f"{np.mean(list(rates[key].values())):.2f}x",
                _cell(hards.get(key)),
                _cell(recalibrated.get(key)),
                _cell(tests[key]),
                str(len(tests[key])),
            ]
        )
    head = [
        "asked", "method", "group", "library", "real rate", "before retraining",
        "same, BN recalibrated", "test accuracy (%)", "seeds",
    ]  # fmt: skip
    return _table(head, body)


def comparisons(rows: list[Row]) -> list[tuple[str, float, float, int]]:
    """Paired differences (name, mean, std, seeds) of the study's main questions."""
    tests = by_seed(rows)
    base = {key[3] for key in tests if key[0] == "oneshot"}
    found = []
    for method, reference, fixed in PAIRS:
        for key, values in sorted(tests.items(), key=lambda item: item[0][1]):
            if key[0] != method or key[2] != 1 or key[3] not in base:
                continue
            other = tests.get((reference, fixed or key[1], 1, key[3], ""))
            if other:
                found.append((f"{method} - {reference} at {key[1]}x", *paired(values, other)))
    for key, values in sorted(tests.items()):
        method, rate, group, library, sharing = key
        other = next((tests[k] for k in tests if k[:3] == (method, rate, 1) and k[3] in base), None)
        if other and method == "gradual" and (group != 1 or library not in base):
            what = f"group {group} {sharing}" if group != 1 else f"library {library}"
            found.append((f"gradual {rate}x, {what} - default", *paired(values, other)))
        neighbours = tests.get((*key[:4], "neighbours"))
        if sharing == "similar" and neighbours:
            name = f"gradual {rate}x, group {group}: similar - neighbours"
            found.append((name, *paired(values, neighbours)))
    return found


def to_markdown(study: dict[str, Any]) -> str:
    """The whole summary; differences within noise are called so."""
    body = []
    for name, mean, std, seeds in comparisons(study["rows"]):
        error = float("inf")
        if seeds > 1:
            error = float(student_t.ppf(0.975, seeds - 1)) * std / np.sqrt(seeds)
        verdict = "within noise" if abs(mean) <= error else ("higher" if mean > 0 else "lower")
        body.append([name, f"{mean:+.2f}", f"{std:.2f}", str(seeds), verdict])
    return (
        "# Accuracy of pruning methods on digits\n\n"
        "Augmented scikit-learn digits (12x12), a VGG-like network of six 3x3 convolutions"
        " (71,568 convolution weights). One trained network per seed is the start of every method;"
        " every method trains for the same number of further epochs. Mean ± standard deviation over"
        " seeds, in percent. The test images are the same for all seeds; settings were chosen by"
        " validation images of other seeds. (The search for the gradual and ADMM settings went on"
        " after the test results of one seed had been seen; no setting was picked by them.) This is"
        " one small data set: it ranks methods there and promises nothing about others.\n\n"
        + _methods_table(study["rows"])
        + "\n## Paired differences (percentage points, same seed)\n\n"
        + _table(["comparison", "mean", "std", "seeds", "verdict (95 % t interval)"], body)
        + "\nOf this many comparisons, one or two leave a 95 % interval by chance.\n"
        + f"\nDevice: {study['device']}. Settings: `{study['settings']}`.\n"
    )


def plot(study: dict[str, Any], path: Path) -> None:
    """Accuracy over rate per method, and over group and library at the sweep's rate."""
    tests = by_seed(study["rows"])
    base = next((k[3] for k in tests if k[0] == "oneshot"), "natural8")
    figure = Figure(figsize=(13, 4.2))
    left, middle, right = figure.subplots(1, 3, sharey=True)
    for method in sorted({k[0] for k in tests} - {"dense", "admm-separate"}):
        keys = sorted(k for k in tests if k[0] == method and k[2] == 1 and k[3] == base)
        stats = [mean_std(list(tests[k].values())) for k in keys]
        left.errorbar(
            [k[1] for k in keys],
            [m for m, _ in stats],
            [s for _, s in stats],
            marker="o",
            capsize=3,
            label=method,
        )
    dense = next((list(v.values()) for k, v in tests.items() if k[0] == "dense"), None)
    if dense:
        left.axhline(float(np.mean(dense)), color="black", linewidth=0.8, label="dense")
    left.set_xlabel("compression rate of all convolution weights")
    left.set_ylabel("test accuracy (%)")
    left.legend(fontsize=8)
    sweeps = [k for k in tests if k[0] == "gradual"]
    swept = {k[1] for k in sweeps if k[2] != 1 or k[3] != base}
    for axes, column, other, name in ((middle, 2, 3, "group"), (right, 3, 2, "library")):
        normal = base if other == 3 else 1
        keys = [k for k in sweeps if k[1] in swept and k[other] == normal]
        keys.sort(key=lambda k: (len(str(k[column])), str(k[column])))
        for sharing in sorted({k[4] for k in keys}):
            own = [k for k in keys if k[4] == sharing]
            stats = [mean_std(list(tests[k].values())) for k in own]
            axes.errorbar(
                [str(k[column]) for k in own],
                [m for m, _ in stats],
                [s for _, s in stats],
                marker="o",
                linestyle="",
                capsize=3,
                label=sharing,
            )
        if name == "group":
            axes.legend(fontsize=8)
        axes.set_xlabel(f"{name} (gradual, {', '.join(f'{r}x' for r in sorted(swept))})")
        axes.tick_params(axis="x", rotation=30)
    FigureCanvasAgg(figure)
    figure.savefig(path, dpi=120, bbox_inches="tight")


def write_summary(study: dict[str, Any], path: Path) -> None:
    """Markdown and PNG beside the JSON file."""
    path.with_suffix(".md").write_text(to_markdown(study), encoding="utf-8")
    plot(study, path.with_suffix(".png"))
