"""What became of each convolution and pruned linear layer, as plain data: the report of a library.

Read without tvm, torch or rich; rich is imported when a table is asked for. The passes fill it
(:mod:`relay_passes.report`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from .report_table import layer_table, reasons_of
from .schedules.config import WINOGRAD_OUTPUTS
from .winograd import ERROR_GROWTH

if TYPE_CHECKING:
    from rich.table import Table

STR_WIDTH = 200


@dataclass(frozen=True)
class LayerRow:
    """One convolution, or pruned linear layer, of the input module.

    Parameters
    ----------
    layer : str
        Name of the variable that the convolution was bound to.
    op : str
        Operator of the input module, such as ``nn.conv2d``; ``linear``.
    taken : bool
        True if it runs through the project's operators.
    reason : str
        Why it was left dense to TVM, or what is worth knowing of one that was taken.
    in_shape, out_shape, kernel_size, stride : tuple of int
        Empty where the shape is not static.
    sparsity : float
        Fraction of removed weights.
    pattern_set : tuple of str
        The distinct patterns, as rows of taps (``xx./.x./...``).
    group : int
        Filters that share kernels and patterns; 0 where that does not apply.
    config : dict
        Chosen point of the search space.
    dense_equivalent_gflop, effective_gflop : float
        Work of the dense layer, and of its kept weights only.
    structure : str
        Where the kept weights are known from: the pruner's ``assignment``, ``zeros`` of the
        weights, or ``covering``; empty for a layer that was left dense.
    expected_gain : float
        Estimated time of the layer compiled dense over that of the layer as compiled, before
        anything is timed; 0 where there is no estimate.
    dtype : str
        What its inputs and weights are computed in, such as ``float32`` or ``int8``.
    expected_cost : float
        Estimated time of the layer as compiled, in a unit of which only ratios within one report
        count; 0 where there is no estimate.
    """

    layer: str
    op: str
    taken: bool
    reason: str = ""
    in_shape: tuple[int, ...] = ()
    out_shape: tuple[int, ...] = ()
    kernel_size: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    sparsity: float = 0.0
    pattern_set: tuple[str, ...] = ()
    group: int = 0
    config: dict[str, Any] = field(default_factory=dict)
    dense_equivalent_gflop: float = 0.0
    effective_gflop: float = 0.0
    structure: str = ""
    expected_gain: float = 0.0
    dtype: str = "float32"
    expected_cost: float = 0.0

    @property
    def winograd(self) -> int:
        """Outputs along a row of its tiles in Winograd's filtering; 0 for plain sums."""
        return WINOGRAD_OUTPUTS.get(self.config.get("body", ""), 0)


@dataclass(frozen=True)
class RewriteReport:
    """Rows in the order of the module; every convolution of the input has one.

    ``notes`` are lines about the whole module, printed below the table.
    """

    rows: tuple[LayerRow, ...]
    notes: tuple[str, ...] = ()

    def __iter__(self) -> Iterator[LayerRow]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def taken(self) -> tuple[LayerRow, ...]:
        """Rows that run through the project's operators."""
        return tuple(row for row in self.rows if row.taken)

    @property
    def skipped(self) -> tuple[LayerRow, ...]:
        """Rows left dense, each with its reason."""
        return tuple(row for row in self.rows if not row.taken)

    @property
    def error_growth(self) -> float:
        """How much larger rounding errors may be than those of plain sums."""
        return max((ERROR_GROWTH[row.winograd] for row in self.rows if row.winograd), default=1.0)

    def winograd_notes(self) -> tuple[str, ...]:
        """What is worth knowing of layers computed by Winograd's filtering."""
        layers = [row for row in self.rows if row.winograd]
        if not layers:
            return ()
        return (
            f"{len(layers)} dense 3x3 convolutions are computed by Winograd's filtering: rounding"
            f" errors up to {self.error_growth:g} times those of plain sums, a NaN or infinite"
            " input spreads over its tile, weights are stored transformed (F(4x4): four times the"
            " memory); winograd=False (--no-winograd) computes plain sums",
        )

    def to_json(self) -> str:
        """The rows as a JSON list."""
        return json.dumps([asdict(row) for row in self.rows])

    @classmethod
    def from_json(cls, text: str) -> RewriteReport:
        """Inverse of :meth:`to_json`."""
        rows = []
        for data in json.loads(text):
            for key in ("in_shape", "out_shape", "kernel_size", "stride", "pattern_set"):
                data[key] = tuple(data[key])
            rows.append(LayerRow(**data))
        return cls(tuple(rows))

    @property
    def expected_gain(self) -> float:
        """Estimated time of the layers compiled dense over that as compiled; 0 without estimates.

        Of the layers with an estimate: what is no convolution and no pruned linear layer is not
        counted, so a whole network gains less.
        """
        cost = sum(row.expected_cost for row in self.rows)
        dense = sum(row.expected_cost * row.expected_gain for row in self.rows)
        return dense / cost if cost else 0.0

    def _expectation(self) -> list[str]:
        known = [row for row in self.rows if row.expected_cost]
        if not known or all(row.expected_gain == 1.0 for row in known):
            return []
        slower = sum(row.expected_gain < 1.0 for row in known)
        worse = f"; {slower} of them are expected to lose" if slower else ""
        return [
            f"expected by the cost model, before any timing: {self.expected_gain:.2f}x of the same"
            f" {len(known)} layers compiled dense{worse}"
        ]

    @property
    def reasons(self) -> list[str]:
        """What the numbers in the table's column ``note`` stand for, from 1."""
        return reasons_of(self.rows)

    @property
    def warning(self) -> str:
        """One line if there are convolutions and none runs through the project; else empty."""
        if not self.rows or self.taken:
            return ""
        return (
            f"none of {len(self.rows)} convolutions runs through the pattern-sparse operator, so"
            f" pruning makes nothing faster here: {'; '.join(self.reasons)}"
        )

    def table(self, width: int = STR_WIDTH, *, by_cost: bool = False) -> Table:
        """The report as a rich table; see :func:`topi_kernels.report_table.layer_table`."""
        return layer_table(self.rows, width=width, by_cost=by_cost)

    def lines(self) -> list[str]:
        """What stands below the table: reasons by number, the warning, notes."""
        numbered = [f"{number}: {reason}" for number, reason in enumerate(self.reasons, 1)]
        warning = [f"warning: {self.warning}"] if self.warning else []
        return [*numbered, *warning, *self._expectation(), *self.notes]

    def __str__(self) -> str:
        from rich.console import Console

        console = Console(width=STR_WIDTH, force_terminal=False)
        with console.capture() as capture:
            console.print(self.table(80))
            for line in self.lines():
                console.print(line, markup=False, highlight=False)
        return capture.get().rstrip()
