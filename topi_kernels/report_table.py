"""One table of layers for reports and profiles: what a layer is, what it costs, what is to know.

Columns that do not fit the width are left out, the least telling first; a reason that many layers
share stands once below the table.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

    from .report import LayerRow

#: ``(layer, op, milliseconds, share)`` of every timed call.
Times = Sequence[tuple[str, str, float, float]]
# In the order in which they are given up, the last first. The layer and its times always stay.
_OPTIONAL = (
    "kind",
    "fewer",
    "expected",
    "note",
    "F",
    "share of FLOP",
    "eff. FLOP",
    "dense-eq. FLOP",
    "config",
)
_LEFT = ("layer", "kind", "note", "config")


@dataclass(frozen=True)
class _Line:
    cells: dict[str, str]
    weight: float


def reasons_of(rows: Iterable[LayerRow]) -> list[str]:
    """The distinct reasons of the rows, in order; a note's number is its place, from 1."""
    return list(dict.fromkeys(row.reason for row in rows if row.reason))


def flop_text(gflop: float) -> str:
    """A number of operations with three digits, in G, M or k."""
    for unit, scale in (("G", 1.0), ("M", 1e-3), ("k", 1e-6)):
        if gflop >= scale:
            return f"{gflop / scale:.3g} {unit}"
    return f"{gflop * 1e9:.0f}"


def layer_table(
    rows: Sequence[LayerRow],
    times: Mapping[str, Times] | None = None,
    *,
    width: int = 80,
    by_cost: bool = False,
    footers: Mapping[str, str] | None = None,
) -> Table:
    """The table of a report, with the times of one device or several.

    Parameters
    ----------
    rows : sequence of LayerRow
    times : mapping, optional
        Device -> its timed calls, of which there may be more than convolutions.
    width : int
        Characters; optional columns are left out to keep to it.
    by_cost : bool
        The dearest first: by time on the first device, or by effective FLOP without times.
    footers : mapping, optional
        Device -> text below its times.

    Returns
    -------
    rich.table.Table
        ``fewer`` is dense-equivalent over effective FLOP, ``expected`` the gain over the dense
        layer by the cost model; ``note`` counts from 1 in
        :func:`reasons_of`.
    """
    from rich.table import Table

    times, footers = times or {}, footers or {}
    lines = _timed_lines(rows, times) if times else _plain_lines(rows)
    if by_cost:
        lines.sort(key=lambda line: -line.weight)
    measured = [name for device in times for name in (f"{device}: ms", f"{device}: share")]
    columns = _fitting(lines, ["layer", *measured], width, footers)
    table = Table(title="Layers", show_footer=bool(footers))
    for name in columns:
        footer = footers.get(name.removesuffix(": ms"), "") if name.endswith(": ms") else ""
        table.add_column(
            name.rpartition(": ")[2] if len(times) == 1 else name,
            footer=footer or ("all / whole run" if name == "layer" and footers else ""),
            justify="left" if name in _LEFT else "right",
            no_wrap=name != "layer",
        )
    for line in lines:
        table.add_row(*(line.cells.get(name, "").replace("[", r"\[") for name in columns))
    return table


def _plain_lines(rows: Sequence[LayerRow]) -> list[_Line]:
    cells = _facts(rows)
    return [_Line(cells[row.layer], _work(row)) for row in rows]


def _timed_lines(rows: Sequence[LayerRow], times: Mapping[str, Times]) -> list[_Line]:
    facts = _facts(rows)
    lines = []
    for calls in zip(*times.values(), strict=True):
        layer, op, ms, _ = calls[0]
        cells = {"layer": layer, "kind": op}
        if "conv" in op or "matvec" in op:
            # A layer's other calls, such as its unpacking, are not the convolution.
            cells |= facts.get(layer, {})
        for device, (_, _, device_ms, share) in zip(times, calls, strict=True):
            cells[f"{device}: ms"] = f"{device_ms:.3f}"
            cells[f"{device}: share"] = f"{share:.1%}"
        lines.append(_Line(cells, ms))
    return lines


def _facts(rows: Sequence[LayerRow]) -> dict[str, dict[str, str]]:
    numbers = {reason: str(n) for n, reason in enumerate(reasons_of(rows), 1)}
    total = sum(map(_work, rows)) or 1.0
    return {row.layer: _cells(row, numbers, total) for row in rows}


def _work(row: LayerRow) -> float:
    return row.effective_gflop if row.taken else row.dense_equivalent_gflop


def _cells(row: LayerRow, numbers: Mapping[str, str], total: float) -> dict[str, str]:
    work = _work(row)
    return {
        "layer": row.layer,
        "kind": _kind(row),
        "fewer": f"{row.dense_equivalent_gflop / work:.2f}x" if work else "-",
        "expected": f"{row.expected_gain:.2f}x" if row.expected_gain else "",
        "note": " ".join([*(() if row.taken else ("dense",)), numbers.get(row.reason, "")]).strip(),
        "F": str(row.group or "-"),
        "share of FLOP": f"{work / total:.1%}",
        "eff. FLOP": flop_text(work),
        "dense-eq. FLOP": flop_text(row.dense_equivalent_gflop),
        "config": " ".join(f"{key}={value}" for key, value in row.config.items()),
    }


def _kind(row: LayerRow) -> str:
    size = "x".join(map(str, row.kernel_size)) or row.op
    strided = f" /{'x'.join(map(str, row.stride))}" if any(s > 1 for s in row.stride) else ""
    return size + strided


def _fitting(
    lines: Sequence[_Line], always: list[str], width: int, footers: Mapping[str, str]
) -> list[str]:
    """Columns in the order of the table, as many as fit."""

    def size(name: str) -> int:
        footer = footers.get(name.removesuffix(": ms"), "")
        longest = max((len(line.cells.get(name, "")) for line in lines), default=0)
        return 3 + max(longest, len(name), len(footer))

    columns, used = list(always), 1 + sum(map(size, always))
    for name in _OPTIONAL:
        is_empty = not any(line.cells.get(name) for line in lines)
        if is_empty or used + size(name) > width:
            continue
        columns.append(name)
        used += size(name)
    return columns
