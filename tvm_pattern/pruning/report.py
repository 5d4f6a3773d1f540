"""What pruning did to every layer: rows, totals, and terminal, JSON, Markdown, HTML forms."""

from __future__ import annotations

import html
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from ..atomic import write_file
from .assignment import Assignment
from .kernels import kernel_shape
from .layers import LayerPlan, SkippedLayer
from .modules import layer_kind, layers_of

_STR_WIDTH = 160

REPORT_SCHEMA = 1


@dataclass(frozen=True)
class LayerRow:
    """One layer of the report.

    ``energy_kept`` is the squared norm that the hard prune left of the weights just before it;
    None when they are not known. ``reason`` is empty for pruned layers; ``note`` says what was done
    otherwise than asked.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    library: str
    group: int
    kernels: int
    kernels_kept: int
    weights: int
    weights_kept: int
    energy_kept: float | None
    reason: str = ""
    note: str = ""

    @property
    def compression_rate(self) -> float:
        """Weights before / after."""
        return self.weights / max(1, self.weights_kept)

    @property
    def connectivity(self) -> float:
        """Kernels before / after."""
        return self.kernels / max(1, self.kernels_kept)


@dataclass
class PruneReport:
    """Per-layer result of pruning.

    Attributes
    ----------
    rows : list of LayerRow
        Every convolution of the model in order, pruned or not; linear layers too where the
        configuration speaks of them.
    assignment : dict
        Layer name to :class:`~tvm_pattern.pruning.assignment.LayerAssignment`.
    method : str
    history : list of dict
        One entry per update of the pruner.
    """

    rows: list[LayerRow]
    assignment: Assignment = field(repr=False)
    method: str = "oneshot"
    history: list[dict[str, Any]] = field(default_factory=list, repr=False)

    @property
    def pruned(self) -> list[LayerRow]:
        """Rows of the pruned layers."""
        return [r for r in self.rows if not r.reason]

    @property
    def compression_rate(self) -> float:
        """Dense / kept weights over all layers of the report, the skipped ones included."""
        return sum(r.weights for r in self.rows) / max(1, sum(r.weights_kept for r in self.rows))

    @property
    def compression_rate_pruned(self) -> float:
        """Dense / kept weights over the pruned layers only."""
        rows = self.pruned
        return sum(r.weights for r in rows) / max(1, sum(r.weights_kept for r in rows))

    @property
    def sparsity(self) -> float:
        """Fraction of zero weights over all layers of the report."""
        return 1.0 - 1.0 / self.compression_rate

    def pattern_counts(self) -> dict[str, dict[str, int]]:
        """Per library: pattern drawing (rows of ``x`` and ``.``) to number of kernels."""
        counts: dict[str, dict[str, int]] = {}
        for layer in self.assignment.values():
            table = counts.setdefault(layer.pattern_set.name, {})
            used = torch.bincount(layer.pattern_id.flatten().cpu().long(), minlength=256)
            for index, pattern in enumerate(layer.pattern_set):
                table[str(pattern)] = table.get(str(pattern), 0) + int(used[index])
        return counts

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready content."""
        rates = ("compression_rate", "connectivity")
        return {
            "schema": REPORT_SCHEMA,
            "method": self.method,
            "compression_rate": self.compression_rate,
            "compression_rate_pruned": self.compression_rate_pruned,
            "sparsity": self.sparsity,
            "layers": [asdict(r) | {k: getattr(r, k) for k in rates} for r in self.rows],
            "pattern_counts": self.pattern_counts(),
            "history": self.history,
        }

    def to_json(self) -> str:
        """JSON text of :meth:`to_dict`."""
        return json.dumps(self.to_dict(), indent=2)

    def _cells(self) -> list[list[str]]:
        return [
            [
                r.name,
                r.kind,
                "x".join(map(str, r.shape)),
                r.library or "-",
                str(r.group) if not r.reason else "-",
                f"{r.kernels_kept}/{r.kernels}",
                f"{r.compression_rate:.2f}x",
                "-" if r.energy_kept is None else f"{100 * r.energy_kept:.1f} %",
                r.reason or r.note,
            ]
            for r in self.rows
        ]

    _HEAD = ("layer", "kind", "shape", "library", "group", "kernels", "rate", "energy", "note")

    def _kinds(self) -> str:
        linear = any(row.kind == "linear" for row in self.rows)
        return "convolutions and linear layers" if linear else "convolutions"

    def _summary(self) -> str:
        return (
            f"{self.compression_rate:.2f}x over all {self._kinds()},"
            f" {self.compression_rate_pruned:.2f}x over the {len(self.pruned)} pruned ones"
            f" ({self.method})"
        )

    def table(self) -> Table:
        """Rich table for a terminal."""
        table = Table(title=self._summary())
        for head in self._HEAD:
            table.add_column(head, overflow="fold")
        for row in self._cells():
            table.add_row(*row)
        return table

    def print(self, console: Console | None = None) -> None:
        """Show :meth:`table` in a terminal."""
        (console or Console()).print(self.table())

    def __str__(self) -> str:
        console = Console(width=_STR_WIDTH, force_terminal=False)
        with console.capture() as capture:
            console.print(self.table())
        return capture.get().rstrip()

    def to_markdown(self) -> str:
        """Summary line and table as Markdown."""
        lines = ["| " + " | ".join(self._HEAD) + " |", "|" + "---|" * len(self._HEAD)]
        lines += ["| " + " | ".join(c.replace("|", "\\|") for c in r) + " |" for r in self._cells()]
        return f"{self._summary()}\n\n" + "\n".join(lines) + "\n"

    def to_html(self) -> str:
        """A self-contained HTML page."""
        head = "".join(f"<th>{html.escape(h)}</th>" for h in self._HEAD)
        body = "\n".join(
            "<tr>" + "".join(f"<td>{html.escape(c)}</td>" for c in row) + "</tr>"
            for row in self._cells()
        )
        return (
            '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Pruning report'
            "</title><style>body{font-family:sans-serif}table{border-collapse:collapse}"
            "td,th{border:1px solid #ccc;padding:.2em .5em;text-align:left}</style></head><body>"
            f"<h1>Pruning report</h1><p>{html.escape(self._summary())}</p>"
            f"<table><tr>{head}</tr>\n{body}</table></body></html>\n"
        )

    def save(self, path: str | Path) -> None:
        """Write the report by suffix: ``.json``, ``.md`` or ``.html``.

        Raises
        ------
        ValueError
            For any other suffix.
        """
        path = Path(path)
        forms = {".json": self.to_json, ".md": self.to_markdown, ".html": self.to_html}
        if path.suffix not in forms:
            raise ValueError(f"{path}: expected one of {sorted(forms)}, got {path.suffix!r}")
        write_file(path, forms[path.suffix]().encode())


def build_report(
    model: nn.Module,
    assignment: Assignment,
    skipped: list[SkippedLayer],
    *,
    energy_kept: dict[str, float] | None = None,
    method: str = "oneshot",
    history: list[dict[str, Any]] | None = None,
    plans: list[LayerPlan] | None = None,
) -> PruneReport:
    """Report of every convolution of ``model``.

    Parameters
    ----------
    model : nn.Module
    assignment : dict
        Patterns of the pruned layers.
    skipped : list of SkippedLayer
        The layers left dense, with reasons.
    energy_kept : dict, optional
        Layer name to the fraction of energy that the hard prune kept.
    plans : list of LayerPlan, optional
        Where the notes of the pruned layers are taken from.
    """
    reasons = {s.name: s.reason for s in skipped if not s.tied_to}
    ties = {s.name: s.tied_to for s in skipped if s.tied_to}
    notes = {p.name: "; ".join(p.notes) for p in plans or ()}
    notes |= {s.name: s.reason for s in skipped if s.tied_to}
    rows = []
    known = {*assignment, *reasons, *ties}
    for name, conv in layers_of(model).items():
        if isinstance(conv, nn.Linear) and name not in known:
            continue  # the configuration did not speak of linear layers
        shape = tuple(conv.weight.shape)
        grid = kernel_shape(conv)
        layer = assignment.get(ties.get(name, name))
        kernels = grid[0] * grid[1]
        weights = conv.weight.numel()
        if layer is None and name not in reasons:
            reasons[name] = "not part of this assignment"
        rows.append(
            LayerRow(
                name=name,
                kind=layer_kind(conv),
                shape=shape,
                library="" if layer is None else layer.pattern_set.name,
                group=1 if layer is None else layer.group,
                kernels=kernels,
                kernels_kept=kernels if layer is None else layer.kept,
                weights=weights,
                weights_kept=weights if layer is None else layer.nonzeros(),
                energy_kept=(energy_kept or {}).get(name),
                reason="" if layer is not None else reasons[name],
                note=notes.get(name, ""),
            )
        )
    return PruneReport(rows, assignment, method, list(history or []))
