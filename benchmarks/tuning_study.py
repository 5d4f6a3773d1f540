"""Compare tuners on tables of measured configurations, over many seeds.

Every tuner sees the same recorded times, so the comparison has no noise of its own and needs no
device: ``python -m benchmarks.tuning_study`` replays them on all tables of
``benchmarks/results/tuning``.
"""

from __future__ import annotations

import gzip
import json
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from topi_kernels.conv_task import ConvTask
from topi_kernels.schedules.config import knobs_of
from tvm_pattern.tuning import arguments as args
from tvm_pattern.tuning.cost_model import MeasuredSet
from tvm_pattern.tuning.lookup import config_of
from tvm_pattern.tuning.records import LogError, Record, TuningLog
from tvm_pattern.tuning.session import TuneOptions, warm_start_sets
from tvm_pattern.tuning.space import EmptySpaceError, Space
from tvm_pattern.tuning.tuners import Tuner, make_tuner

from .tuning_table import MOST, RESULTS, sample

CLOSE = 0.95
GOOD = 0.97
XGB, BLIND, GENETIC, RANDOM = "xgb", "xgb, no prior", "genetic", "random"
FROM_LAYERS = "xgb, no prior, log of other layers"
FROM_TARGET = "xgb, no prior, log of the other target"
_PANELS = 12


@dataclass
class Layer:
    """A layer with the measured times of its whole space."""

    task: ConvTask
    space: Space
    times: np.ndarray
    sets: list[MeasuredSet]

    @property
    def name(self) -> str:
        return f"{self.task.label}, group {self.task.max_group}, {self.task.family}"

    @property
    def best(self) -> float:
        return float(self.times.min())

    def same_shape(self, other: Layer) -> bool:
        """Whether the other is this convolution, in whatever group."""
        a, b = self.task, other.task
        return (a.weight_shape, a.geometry.stride, a.out_layout.height, a.out_layout.width) == (
            b.weight_shape,
            b.geometry.stride,
            b.out_layout.height,
            b.out_layout.width,
        )


def read_table(path: Path) -> list[Record]:
    """The records of a table, compressed or not."""
    if path.suffix != ".gz":
        return TuningLog(path).records(skip_bad=True)
    with tempfile.TemporaryDirectory() as folder:
        plain = Path(folder, path.stem)
        plain.write_bytes(gzip.decompress(path.read_bytes()))
        return TuningLog(plain).records(skip_bad=True)


def read_layers(paths: Iterable[Path], width: str, most: int) -> tuple[list[Layer], list[str]]:
    """The layers that were measured completely, and why others are left out.

    Complete is what :func:`benchmarks.tuning_table.sample` asks for, and what could not be measured
    at all is not a point of the space.
    """
    grouped: dict[str, list[Record]] = defaultdict(list)
    for path in paths:
        for record in read_table(path):
            grouped[record.task_key].append(record)
    layers, left_out = [], []
    for records in grouped.values():
        task = ConvTask.from_dict(records[0].task)
        name = f"{task.label}, group {task.max_group}, {task.family}"
        try:
            measured = {config_of(r): r.seconds for r in records}
            space = Space(task, configs=measured)
            wanted = sample(Space(task, knobs_of(width)), most)
        except (EmptySpaceError, LogError) as error:
            left_out.append(f"{name}: {error}")
            continue
        missing = sum(c not in measured for c in wanted)
        if missing:
            left_out.append(f"{name}: {missing} of {len(wanted)} configurations are not measured")
            continue
        times = np.array([measured[c] for c in space.configs])
        layers.append(Layer(task, space, times, warm_start_sets(records)))
    return layers, left_out


def replay(tuner: Tuner, times: np.ndarray, trials: int, batch: int) -> tuple[np.ndarray, int]:
    """Best time after each trial, ``[trials]``, and how many it took to find the very best."""
    best: list[float] = []
    fastest = times.min()
    while len(best) < trials and (not best or best[-1] > fastest):
        picked = tuner.propose(min(batch, trials - len(best)))
        if not picked:
            break
        tuner.update(picked, times[picked].tolist())
        for value in times[picked]:
            best.append(min(value, best[-1] if best else np.inf))
    return np.array(best + [best[-1]] * (trials - len(best))), len(best)


def trials_to_reach(curve: np.ndarray, best: float, share: float = CLOSE) -> int:
    """First trial whose best reaches ``share`` of the exhaustive best's speed."""
    reached = np.flatnonzero(best / curve >= share)
    return int(reached[0]) + 1 if len(reached) else len(curve)


def random_median(times: np.ndarray, trials: int) -> int:
    """Exact median of :func:`trials_to_reach` of a random order, at most ``trials``."""
    good = int((times <= times.min() / CLOSE).sum())
    missed = 1.0
    for trial in range(1, trials + 1):
        left = len(times) - trial + 1
        missed *= max(0, left - good) / left
        if missed <= 0.5:
            return trial
    return trials


def variants(layer: Layer, layers: Sequence[Layer]) -> dict[str, tuple[str, dict[str, Any]]]:
    """Name -> (tuner, options) of what is compared on a layer."""
    blind = {"prior": False}
    found: dict[str, tuple[str, dict[str, Any]]] = {
        XGB: ("xgb", {}),
        BLIND: ("xgb", blind),
        GENETIC: ("genetic", {}),
        RANDOM: ("random", {}),
    }
    family = layer.task.family
    others = {
        FROM_LAYERS: [o for o in layers if o.task.family == family and not o.same_shape(layer)],
        FROM_TARGET: [o for o in layers if o.task.family != family],
    }
    for name, sources in others.items():
        if sources:
            found[name] = ("xgb", {**blind, "warm_start": [s for o in sources for s in o.sets]})
    return found


def study_layer(
    layer: Layer, layers: Sequence[Layer], seeds: int, trials: int, batch: int
) -> dict[str, Any]:
    """Curves and figures of one layer."""
    best, default = layer.best, layer.space.default
    row: dict[str, Any] = {
        "layer": layer.name,
        "space": len(layer.space),
        "best_ms": best * 1e3,
        "level0_share": best / layer.times[default] if default is not None else None,
        "random_median": random_median(layer.times, trials),
        "tuners": {},
    }
    for name, (kind, options) in variants(layer, layers).items():
        start = time.process_time()
        runs = [
            replay(make_tuner(kind, layer.space, seed, **options), layer.times, trials, batch)
            for seed in range(seeds)
        ]
        seconds = time.process_time() - start
        curves = [curve for curve, _ in runs]
        row["tuners"][name] = {
            "share_at_end": [float(best / c[-1]) for c in curves],
            "trials_to_95": [trials_to_reach(c, best) for c in curves],
            "seconds_per_trial": seconds / sum(tried for _, tried in runs),
            "mean_share": np.mean([best / c for c in curves], axis=0).round(4).tolist(),
        }
    return row


def _median_trials(row: dict[str, Any], name: str) -> float | None:
    if name == RANDOM:
        return float(row["random_median"])
    result = row["tuners"].get(name)
    return float(np.median(result["trials_to_95"])) if result else None


def summary(rows: Sequence[dict[str, Any]], trials: int) -> list[str]:
    """The figures over all layers, one sentence each."""
    lines = []

    def compare(name: str, base: str) -> None:
        pairs = [(_median_trials(r, name), _median_trials(r, base)) for r in rows]
        ratios = [a / b for a, b in pairs if a is not None and b is not None]
        if ratios:
            lines.append(
                f"Trials to {CLOSE:.0%}, {name} : {base} = {np.median(ratios):.2f} (median of"
                f" {len(ratios)} layers, worst {max(ratios):.2f})."
            )

    for name in (XGB, BLIND, GENETIC):
        compare(name, RANDOM)
    for name in (FROM_LAYERS, FROM_TARGET):
        compare(name, BLIND)
    for name in (XGB, BLIND):
        shares = [float(np.median(r["tuners"][name]["share_at_end"])) for r in rows]
        reached = sum(s >= GOOD for s in shares)
        lines.append(
            f"After {trials} trials {name} has {GOOD:.0%} of the exhaustive best (median over the"
            f" seeds) on {reached} of {len(rows)} layers; worst {min(shares):.3f}."
        )
    level0 = [r["level0_share"] for r in rows if r["level0_share"] is not None]
    if level0:
        near = sum(s >= 0.98 for s in level0)
        lines.append(
            f"Level 0 is within 2 % of the exhaustive best on {near} of {len(level0)} layers"
            f" (median {np.median(level0):.3f}, worst {min(level0):.3f})."
        )
    return lines


def markdown(
    rows: Sequence[dict[str, Any]], left_out: Sequence[str], seeds: int, trials: int, batch: int
) -> str:
    """The study as a table."""
    names = [XGB, BLIND, FROM_LAYERS, FROM_TARGET, GENETIC, RANDOM]
    lines = [
        f"Replays of {seeds} seeds on measured tables, batches of {batch}. Share is the speed"
        f" relative to the exhaustive best of the space; a search ends after {trials} trials, which"
        " then count as what it needed. The median of random is exact. *No prior*: the tuner knows"
        " neither level 0 nor the schedule's estimates. *Log of other layers* leaves out the"
        " layer's own shape.",
        "",
        *(f"- {line}" for line in summary(rows, trials)),
        "",
        f"Median trials to {CLOSE:.0%}:",
        "",
        "| layer | space | level 0 share | "
        + " | ".join(names)
        + " | CPU ms per trial, no prior |",
        "|---" * (len(names) + 4) + "|",
    ]
    for row in rows:
        level0 = row["level0_share"]
        trials_of = [_median_trials(row, name) for name in names]
        cells = ["-" if t is None else f"{t:g}" for t in trials_of]
        lines.append(
            f"| {row['layer']} | {row['space']} |"
            f" {'-' if level0 is None else f'{level0:.3f}'} | {' | '.join(cells)} |"
            f" {1e3 * row['tuners'][BLIND]['seconds_per_trial']:.1f} |"
        )
    if left_out:
        lines += ["", "Left out:", "", *(f"- {reason}" for reason in left_out)]
    return "\n".join(lines) + "\n"


def plot(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Mean search curves over all layers, and of the first layers."""
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(name for row in rows for name in row["tuners"]))
    panels = {
        f"mean of {len(rows)} layers": {
            name: np.mean(
                [r["tuners"][name]["mean_share"] for r in rows if name in r["tuners"]], axis=0
            )
            for name in names
        }
    }
    for row in rows[: _PANELS - 1]:
        panels[row["layer"]] = {n: t["mean_share"] for n, t in row["tuners"].items()}
    columns = min(3, len(panels))
    lines = -(-len(panels) // columns)
    figure = Figure(figsize=(4.2 * columns, 3.0 * lines), layout="constrained")
    axes = np.atleast_1d(figure.subplots(lines, columns, squeeze=False)).ravel()
    for axis, (title, curves) in zip(axes, panels.items(), strict=False):
        for name, curve in curves.items():
            axis.plot(range(1, len(curve) + 1), curve, label=name)
        axis.axhline(CLOSE, color="grey", linewidth=0.5)
        axis.set_title(title, fontsize="small")
        axis.set_xlabel("trial")
        axis.set_ylabel("share of the best")
        axis.set_ylim(0.4, 1.01)
    axes[0].legend(fontsize="x-small")
    for axis in axes[len(panels) :]:
        axis.set_visible(False)
    figure.savefig(path, dpi=110)


def main(
    tables: Annotated[
        list[Path] | None, typer.Argument(help="Default: all tables among the results.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder to write to.")] = RESULTS,
    seeds: Annotated[int, typer.Option(help="Searches per tuner and layer.")] = 10,
    trials: Annotated[int, typer.Option(help="Trials of a search.")] = 100,
    batch: Annotated[int, typer.Option(help="Trials per round.")] = TuneOptions.batch,
    space: args.Width = "schedule",
    most: Annotated[int, typer.Option(help="As for the table.")] = MOST,
    smallest: Annotated[int, typer.Option(help="Leave out layers with fewer points.")] = 30,
) -> None:
    """Replay every tuner on every layer of the tables; writes study.md, .json and .png."""
    layers, left_out = read_layers(tables or sorted(RESULTS.glob("table*.jsonl*")), space, most)
    kept = [layer for layer in layers if len(layer.space) >= smallest]
    left_out += [
        f"{layer.name}: only {len(layer.space)} points" for layer in layers if layer not in kept
    ]
    if not kept:
        raise typer.BadParameter("no table holds a layer that was measured completely")
    rows = []
    for layer in kept:
        rows.append(study_layer(layer, layers, seeds, trials, batch))
        typer.echo(f"{len(rows)}/{len(kept)} {layer.name}")
    out.mkdir(parents=True, exist_ok=True)
    text = markdown(rows, left_out, seeds, trials, batch)
    (out / "study.md").write_text(text)
    (out / "study.json").write_text(json.dumps(rows, indent=1) + "\n")
    plot(rows, out / "study.png")
    typer.echo(text)


if __name__ == "__main__":
    typer.run(main)
