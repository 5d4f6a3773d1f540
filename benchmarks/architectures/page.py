"""The table as a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

PAGE = Path(__file__).resolve().parents[2] / "docs" / "architectures.md"

_INTRODUCTION = """\
# Public architectures

Written by `python -m benchmarks.architectures --write` from `{file}`: networks of torchvision and
timm (the extra `zoo`), of `transformers` (narrow and shallow, see
`benchmarks/architectures/hugging_face.py`) and of `ultralytics` (as its own export prepares them)
where those are installed, with random weights and batch norm statistics, batch 1, one thread. Each
is compiled as it is (*dense*) and after `oneshot(connectivity={connectivity},
connectivity_1x1={connectivity})` (*pruned*), and held against torch on the example and on random
inputs by `compile` itself: *equal* is within the tolerance of [verification](verification.md).
*Taken* counts convolutions on the operator. ONNX Runtime runs torch's own export of the dense
network, and the four are timed in turns in one process.

{machine}

**{rows} architectures: {equal} dense and {pruned} pruned equal torch; {refused} are refused or
failed, for the reason below; {differ} differ.**
"""

_TIMES = """
The pruned ones take {ratio} of ONNX Runtime's time (geometric mean of p10), the dense ones
{dense_ratio}.
"""

_HEAD = (
    "| architecture | image | dense | pruned | taken | error | torch ms | ONNX Runtime ms |"
    " dense ms | pruned ms | pruned / ONNX Runtime |\n|---|---|---|---|---|---|---|---|---|---|---|"
)


def render(rows: Sequence[Mapping[str, Any]], machine: str, file: str, connectivity: float) -> str:
    """The page for some rows.

    Parameters
    ----------
    rows : sequence of mapping
        As :func:`benchmarks.architectures.row.row_of` gives them, or with an ``error`` alone.
    machine : str
        A line about where they were measured.
    file : str
        Name of the file that holds them.
    connectivity : float
        Kernels before / after of the pruned ones.
    """
    ordered = sorted(rows, key=lambda row: row["key"])
    counts = {
        "rows": len(ordered),
        "equal": _count(ordered, "dense", "equal"),
        "pruned": _count(ordered, "pruned", "equal"),
        "refused": sum(_status(row, "dense") in ("refused", "failed") for row in ordered),
        "differ": sum("differs" in (_status(r, "dense"), _status(r, "pruned")) for r in ordered),
        "ratio": _mean_ratio(ordered, "pruned"),
        "dense_ratio": _mean_ratio(ordered, "dense"),
    }
    head = _INTRODUCTION.format(machine=machine, file=file, connectivity=connectivity, **counts)
    if counts["ratio"] != "-":
        head += _TIMES.format(**counts)
    lines = [head, _HEAD, *map(_line, ordered)]
    notes = [_note(row) for row in ordered]
    text = "\n".join(lines) + "\n"
    if any(notes):
        text += "\n## What is not taken, or refused\n\n" + "\n".join(filter(None, notes)) + "\n"
    return text


def _status(row: Mapping[str, Any], kind: str) -> str:
    return str(row.get(kind, {}).get("status", "failed"))


def _count(rows: Sequence[Mapping[str, Any]], kind: str, status: str) -> int:
    return sum(_status(row, kind) == status for row in rows)


def _ratio(row: Mapping[str, Any], kind: str) -> float | None:
    ours, other = (row.get(engine, {}).get("p10_ms") for engine in (kind, "onnxruntime"))
    return ours / other if ours and other else None


def _mean_ratio(rows: Sequence[Mapping[str, Any]], kind: str) -> str:
    import numpy as np

    found = [ratio for row in rows if (ratio := _ratio(row, kind)) is not None]
    return f"{float(np.exp(np.mean(np.log(found)))):.2f}" if found else "-"


def _line(row: Mapping[str, Any]) -> str:
    dense = row.get("dense", {})
    taken = f"{dense['taken']} of {dense['convolutions']}" if "taken" in dense else ""
    error = f"{dense['error']:.1e}" if dense.get("error") is not None else ""
    engines = ("torch", "onnxruntime", "dense", "pruned")
    times = [row.get(engine, {}).get("median_ms") for engine in engines]
    ratio = _ratio(row, "pruned")
    cells = [
        f"`{row['key']}`",
        row.get("size", ""),
        _status(row, "dense"),
        _status(row, "pruned"),
        taken,
        error,
        *("" if ms is None else f"{ms:.2f}" for ms in times),
        "" if ratio is None else f"{ratio:.2f}",
    ]
    return "| " + " | ".join(map(str, cells)) + " |"


def _note(row: Mapping[str, Any]) -> str:
    if "error" in row:
        return f"- `{row['key']}`: {row['error']}"
    dense, pruned = row.get("dense", {}), row.get("pruned", {})
    texts = [*dense.get("left", ())]
    texts += [f"{k['status']}: {k['detail']}" for k in (dense, pruned) if k.get("detail")]
    return f"- `{row['key']}`: {'; '.join(dict.fromkeys(texts))}" if texts else ""
