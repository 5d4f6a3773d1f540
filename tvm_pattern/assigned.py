"""What the pruner assigned to the layers of a live model, and whether it reached the compiler."""

from __future__ import annotations

import sys
import warnings
from typing import Any

from relay_passes.report import RewriteReport


class LostPruningWarning(UserWarning):
    """A layer that was pruned is compiled as if it were dense."""


def assigned_sparsity(model: Any) -> dict[str, float]:
    """Fraction of pruned weights by layer name, of a torch module that carries its patterns.

    Raises
    ------
    ValueError
        If the weights contradict the patterns: a pruned position is not zero.
    """
    torch = sys.modules.get("torch")
    if torch is None or not isinstance(model, torch.nn.Module):
        return {}
    from .pruning.carried import carried_assignment

    return {
        name: 1.0 - layer.nonzeros() / layer.removed().numel()
        for name, layer in carried_assignment(model).items()
    }


def lost_pruning(report: RewriteReport, assigned: dict[str, float]) -> list[str]:
    """A line for every layer that was pruned and that the compiler finds dense.

    Parameters
    ----------
    report : RewriteReport
        With the model's own layer names.
    assigned : dict
        Of :func:`assigned_sparsity`.
    """
    rows = {row.layer: row for row in report.rows}
    lines = []
    for name, sparsity in assigned.items():
        row = rows.get(name)
        if row is None:
            lines.append(f"{name}: no convolution of that name arrived")
        elif not row.taken:
            lines.append(f"{name}: compiled dense: {row.reason}")
        elif row.sparsity < sparsity - 0.005:
            lines.append(
                f"{name}: {row.sparsity:.0%} of the weights are zero, {sparsity:.0%} were pruned;"
                " its forward computes the weight (see tvm_pattern.pruning.bake_weights)"
            )
    return lines


def warn_of_lost_pruning(report: RewriteReport, assigned: dict[str, float]) -> None:
    """Warn, once for the whole model, of the layers that :func:`lost_pruning` names."""
    lines = lost_pruning(report, assigned)
    if lines:
        shown = "; ".join(lines[:8]) + (f"; and {len(lines) - 8} more" if len(lines) > 8 else "")
        warnings.warn(
            f"the pruning of {len(lines)} layers is lost in the compiled model: {shown}",
            LostPruningWarning,
            stacklevel=3,
        )
