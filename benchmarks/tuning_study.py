"""Compare tuners on a table of measured configurations, over many seeds.

Every tuner sees the same recorded times, so the comparison has no noise of its own and needs no
device: ``python -m benchmarks.tuning_study benchmarks/results/tuning/table.jsonl``.
"""

from __future__ import annotations

import json
import time
from collections import defaultdict
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from relay_passes.conv_task import ConvTask
from tvm_pattern.tuning.lookup import config_from_dict
from tvm_pattern.tuning.records import Record, TuningLog
from tvm_pattern.tuning.session import warm_start_sets
from tvm_pattern.tuning.space import Space
from tvm_pattern.tuning.tuners import Tuner, make_tuner

TUNERS = ("xgb", "genetic", "random")
BATCH = 8
CLOSE = 0.95


def read_table(path: Path) -> list[tuple[ConvTask, dict[Any, float], list[Record]]]:
    """Task, time of every measured configuration, and its records, per layer."""
    layers: dict[str, list[Record]] = defaultdict(list)
    for record in TuningLog(path).records():
        layers[record.task_key].append(record)
    return [
        (
            ConvTask.from_dict(records[0].task),
            {config_from_dict(r.config): r.seconds for r in records},
            records,
        )
        for records in layers.values()
    ]


def replay(tuner: Tuner, times: np.ndarray, trials: int) -> np.ndarray:
    """Best time after each trial, ``[trials]``."""
    best: list[float] = []
    while len(best) < trials:
        picked = tuner.propose(min(BATCH, trials - len(best)))
        if not picked:
            break
        tuner.update(picked, times[picked].tolist())
        for value in times[picked]:
            best.append(min(value, best[-1] if best else np.inf))
    return np.array(best + [best[-1]] * (trials - len(best)))


def trials_to_reach(curve: np.ndarray, best: float, share: float = CLOSE) -> int:
    """First trial whose best reaches ``share`` of the exhaustive best's speed."""
    reached = np.flatnonzero(best / curve >= share)
    return int(reached[0]) + 1 if len(reached) else len(curve)


def study_layer(
    task: ConvTask, measured: dict[Any, float], seeds: int, trials: int, warm: list[Any]
) -> dict[str, Any]:
    """Curves and figures of one layer."""
    space = Space(task, configs=measured)
    times = np.array([measured[c] for c in space.configs])
    best = float(times.min())
    tuners: dict[str, dict[str, Any]] = {name: {} for name in TUNERS}
    tuners["xgb, no prior"] = {"prior": False}
    if warm:
        tuners["xgb, warm start"] = {"warm_start": warm}
    row: dict[str, Any] = {
        "layer": f"{task.label}, group {task.max_group}, {task.family}",
        "space": len(space),
        "best_ms": best * 1e3,
        "level0_share": best / times[space.default] if space.default is not None else None,
        "tuners": {},
    }
    for name, extra in tuners.items():
        kind = name.partition(",")[0]
        start = time.process_time()
        curves = [
            replay(make_tuner(kind, space, seed, **extra), times, trials) for seed in range(seeds)
        ]
        seconds = time.process_time() - start
        row["tuners"][name] = {
            "share_at_end": [float(best / c[-1]) for c in curves],
            "trials_to_95": [trials_to_reach(c, best) for c in curves],
            "seconds_per_trial": seconds / (seeds * trials),
            "mean_share": np.mean([best / c for c in curves], axis=0).round(4).tolist(),
        }
    return row


def markdown(rows: list[dict[str, Any]], seeds: int, trials: int) -> str:
    """The study as a table."""
    lines = [
        f"Replays of {seeds} seeds on measured tables; share is the speed relative to the"
        " exhaustive best of the space.",
        "",
        "| layer | space | level 0 share | tuner | share after"
        f" {trials} trials (median, worst) | trials to {CLOSE:.0%} (median) | CPU ms per trial |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        level0 = row["level0_share"]
        for name, result in row["tuners"].items():
            shares = result["share_at_end"]
            lines.append(
                f"| {row['layer']} | {row['space']} |"
                f" {f'{level0:.3f}' if level0 is not None else '-'} | {name} |"
                f" {np.median(shares):.3f}, {min(shares):.3f} |"
                f" {np.median(result['trials_to_95']):.0f} |"
                f" {1e3 * result['seconds_per_trial']:.1f} |"
            )
    for name in ("xgb", "xgb, no prior", "genetic"):
        ratios = [
            np.median(row["tuners"][name]["trials_to_95"])
            / np.median(row["tuners"]["random"]["trials_to_95"])
            for row in rows
        ]
        lines += ["", f"Trials to {CLOSE:.0%}, {name} to random: {np.median(ratios):.2f} (median)."]
    return "\n".join(lines) + "\n"


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Mean search curves of every layer."""
    from matplotlib.figure import Figure

    columns = min(3, len(rows))
    lines = -(-len(rows) // columns)
    figure = Figure(figsize=(4.2 * columns, 3.0 * lines), layout="constrained")
    axes = np.atleast_1d(figure.subplots(lines, columns, squeeze=False)).ravel()
    for axis, row in zip(axes, rows, strict=False):
        for name, result in row["tuners"].items():
            axis.plot(range(1, len(result["mean_share"]) + 1), result["mean_share"], label=name)
        axis.axhline(CLOSE, color="grey", linewidth=0.5)
        axis.set_title(row["layer"], fontsize="small")
        axis.set_xlabel("trial")
        axis.set_ylabel("share of the best")
        axis.set_ylim(0.4, 1.01)
    axes[0].legend(fontsize="x-small")
    for axis in axes[len(rows) :]:
        axis.set_visible(False)
    figure.savefig(path, dpi=110)


def main(
    table: Annotated[Path, typer.Argument(help="Log of benchmarks.tuning_table.")],
    warm_start: Annotated[Path | None, typer.Option(help="Table of another target.")] = None,
    out: Annotated[Path, typer.Option(help="Folder to write to.")] = Path(
        "benchmarks/results/tuning"
    ),
    seeds: Annotated[int, typer.Option(help="Searches per tuner and layer.")] = 5,
    trials: Annotated[int, typer.Option(help="Trials of a search.")] = 100,
    smallest: Annotated[int, typer.Option(help="Leave out layers with fewer points.")] = 40,
) -> None:
    """Replay every tuner on every layer of the table."""
    warm = warm_start_sets(TuningLog(warm_start).records()) if warm_start else []
    rows = [
        study_layer(task, measured, seeds, trials, warm)
        for task, measured, _ in read_table(table)
        if len(measured) >= smallest
    ]
    out.mkdir(parents=True, exist_ok=True)
    text = markdown(rows, seeds, trials)
    (out / "study.md").write_text(text)
    (out / "study.json").write_text(json.dumps(rows, indent=1))
    plot(rows, out / "study.png")
    typer.echo(text)


if __name__ == "__main__":
    typer.run(main)
