"""The rows of a report, collected while the passes run."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import tvm

from topi_kernels.report import LayerRow, RewriteReport

from .dataflow import bindings_of, relax_functions


class ReportBuilder:
    """Collects rows while the passes of one ``lower`` run."""

    def __init__(self) -> None:
        self._rows: dict[str, LayerRow] = {}
        self._notes: list[str] = []

    def add(self, row: LayerRow) -> str:
        """Append a row and return its name, made unique if it is taken already."""
        name, count = row.layer, 1
        while name in self._rows:
            name, count = f"{row.layer}.{count}", count + 1
        self._rows[name] = replace(row, layer=name)
        return name

    def row(self, layer: str) -> LayerRow:
        """The row of that name.

        Raises
        ------
        KeyError
            If there is none.
        """
        return self._rows[layer]

    def update(self, layer: str, **changes: Any) -> None:
        """Change fields of an existing row.

        Raises
        ------
        KeyError
            If no row has that name.
        """
        self._rows[layer] = replace(self._rows[layer], **changes)

    def order(self, mod: tvm.IRModule) -> None:
        """Sort the rows as the variables that they are named by are bound in a module."""
        variables = (
            str(binding.var.name)
            for _, func in relax_functions(mod)
            for block in bindings_of(func)
            for binding in block
        )
        place = {name: n for n, name in enumerate(variables)}

        def position(layer: str) -> int:
            return place.get(layer, place.get(layer.rpartition(".")[0], len(place)))

        self._rows = dict(sorted(self._rows.items(), key=lambda item: position(item[0])))

    def note(self, line: str) -> None:
        """Add a line about the whole module."""
        self._notes.append(line)

    def build(self) -> RewriteReport:
        return RewriteReport(tuple(self._rows.values()), tuple(self._notes))
