"""What the pruner assigned to the layers of a live model, and whether it reached the compiler."""

from __future__ import annotations

import warnings
from typing import Any

from topi_kernels.report import RewriteReport
from topi_kernels.structure import ASSIGNMENT, Structure


class LostPruningWarning(UserWarning):
    """A layer that was pruned is compiled as if it were dense."""


def assigned_structures(model: Any) -> dict[str, Structure]:
    """Structures of the layers of a torch module that carries its patterns, by layer name.

    Raises
    ------
    ValueError
        If the weights contradict the patterns: a pruned position is not zero.
    """
    from .pruning.carried import carried_assignment, carried_layers

    carried_assignment(model)
    return {
        name: Structure.from_assignment(layer.pattern_id.cpu().numpy(), layer.pattern_set.patterns)
        for name, layer in carried_layers(model).items()
    }


def lost_pruning(report: RewriteReport, assigned: dict[str, Structure]) -> list[str]:
    """A line for every layer that was pruned and that the compiler finds dense.

    Parameters
    ----------
    report : RewriteReport
        With the model's own layer names.
    assigned : dict
        Of :func:`assigned_structures`.
    """
    rows = {row.layer: row for row in report.rows}
    lines = []
    for name, structure in assigned.items():
        row = rows.get(name)
        if row is None:
            lines.append(f"{name}: no convolution of that name arrived")
        elif not row.taken:
            lines.append(f"{name}: compiled dense: {row.reason}")
        elif row.structure != ASSIGNMENT:
            pruned = 1 - structure.kept_weights / structure.kept.size
            lines.append(
                f"{name}: {row.sparsity:.0%} of the weights that arrive are zero, {pruned:.0%} were"
                " pruned; its forward computes the weight (see tvm_pattern.pruning.bake_weights)"
            )
    return lines


def warn_of_lost_pruning(report: RewriteReport, assigned: dict[str, Structure]) -> None:
    """Warn, once for the whole model, of the layers that :func:`lost_pruning` names."""
    lines = lost_pruning(report, assigned)
    if lines:
        shown = "; ".join(lines[:8]) + (f"; and {len(lines) - 8} more" if len(lines) > 8 else "")
        warnings.warn(
            f"the pruning of {len(lines)} layers is lost in the compiled model: {shown}",
            LostPruningWarning,
            stacklevel=3,
        )
