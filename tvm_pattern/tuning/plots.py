"""Plots of searches."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..atomic import write_figure
from .scheduler import TaskState

#: Of pictures that can be written; matplotlib would refuse others after the search.
SUFFIXES = (".pdf", ".png", ".svg")


def check_plot_path(path: Path) -> None:
    """Refuse a name that is no picture's, before anything is measured.

    Raises
    ------
    ValueError
        On another suffix, or if the name is a folder's.
    """
    if path.suffix not in SUFFIXES or path.is_dir():
        raise ValueError(f"got {path}, expected a picture's name ending in {', '.join(SUFFIXES)}")


def plot_search(path: Path, states: Sequence[TaskState]) -> None:
    """Speed of the best configuration over the trials, one curve per task.

    Parameters
    ----------
    path : pathlib.Path
        Image to write, see :func:`check_plot_path`; its suffix decides the format.
    states : sequence of TaskState
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for state in states:
        if not state.curve:
            continue
        flops = state.weighted.task.effective_flops
        trials = [trial for trial, _ in state.curve] + [state.trials]
        speeds = [flops / seconds / 1e9 for _, seconds in state.curve]
        axes.step(trials, [*speeds, speeds[-1]], where="post", label=state.weighted.task.label)
    axes.set_xlabel("trial of the task")
    axes.set_ylabel("effective GFLOP/s of the best so far")
    axes.set_ylim(bottom=0)
    axes.legend(fontsize="x-small", ncols=2)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_figure(figure, path, metadata={"Date": None} if path.suffix == ".svg" else None)
