"""The rows of a report, collected while the passes run."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from topi_kernels.report import LayerRow, RewriteReport


class ReportBuilder:
    """Collects rows while the passes of one ``lower`` run."""

    def __init__(self) -> None:
        self._rows: dict[str, LayerRow] = {}

    def add(self, row: LayerRow) -> str:
        """Append a row and return its name, made unique if it is taken already."""
        name, count = row.layer, 1
        while name in self._rows:
            name, count = f"{row.layer}.{count}", count + 1
        self._rows[name] = replace(row, layer=name)
        return name

    def update(self, layer: str, **changes: Any) -> None:
        """Change fields of an existing row.

        Raises
        ------
        KeyError
            If no row has that name.
        """
        self._rows[layer] = replace(self._rows[layer], **changes)

    def build(self) -> RewriteReport:
        return RewriteReport(tuple(self._rows.values()))
