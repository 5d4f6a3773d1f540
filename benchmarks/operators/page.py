"""The table as a page: written from outcomes, and read back as what a test expects."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from .case import Case
from .trial import REFUSED, Outcome

PAGE = Path(__file__).resolve().parents[2] / "docs" / "operators.md"

_INTRODUCTION = """\
# Operators: right, or refused by name

Written by `python -m benchmarks.operators --write`; `make test` tries a part of it again.

Every line is compiled as a network of its own kind through the same door as any model, by the
passes of `tvm_pattern.compile`, and held against torch (the first table) or ONNX Runtime (the
second) on ordinary, tied and large inputs: 1e-4 of the value, or 1e-5 of the largest one where
terms cancel; integers, truth values, shapes and dtypes exactly. *Right* means that, on every input.
*Refused* means that `compile` raises an error that names the operator; the table gives its reason.
There is no third answer: a line that is wrong fails the command and the test.

What is refused of torch may be left to torch where the library runs beside it:
`compile(..., host_operators=True)`, `--host-operators`. The library then calls the operators by
name, and report and manifest say which. Random numbers and shapes that depend on the data stay
refused. This table is without that.

Among equal values `topk` and an unstable `argsort` may name another position than torch, which
promises none either; the values are compared there.

`x`, `y` and `z` are inputs. A module is in evaluation mode, its weights and statistics are random.
"""


def render(torch: Mapping[Case, Outcome], onnx: Mapping[Case, Outcome]) -> str:
    """The page for the outcomes of both tables."""
    parts = [_INTRODUCTION]
    for title, outcomes in (("torch", torch), ("ONNX", onnx)):
        refused = sum(outcome.status == REFUSED for outcome in outcomes.values())
        right = len(outcomes) - refused
        parts.append(f"## {title}: {len(outcomes)} lines, {right} right, {refused} refused\n")
        for group in dict.fromkeys(case.group for case in outcomes):
            parts.append(f"### {title}: {group}\n\n| operator | result |\n|---|---|")
            rows = (c for c in outcomes if c.group == group)
            parts.append("\n".join(_row(case, outcomes[case]) for case in rows) + "\n")
    return "\n".join(parts)


def _row(case: Case, outcome: Outcome) -> str:
    code = case.code.replace("|", "\\|")
    detail = f": {reason(outcome.detail)}" if outcome.detail else ""
    return f"| `{code}` | {outcome.status}{detail} |"


def reason(message: str) -> str:
    """An error as a cell of a table: one line without names of this table's own layers."""
    text = re.sub(r" in (layer|node) '[^']*'", "", message)
    text = re.sub(
        r"^this model cannot be compiled: |^TVM's (torch|ONNX) importer [^:]*: ", "", text
    )
    text = re.split(r"\. Replace what is named|; replace the operator|; change the node", text)[0]
    text = " ".join(text.replace("|", "/").replace("`", "'").split())
    return text if len(text) <= 140 else text[:137] + "..."


def statuses(page: Path = PAGE) -> dict[tuple[str, str, str], str]:
    """(table, group, operator) -> result as the page has it."""
    found: dict[tuple[str, str, str], str] = {}
    title = group = ""
    for line in page.read_text(encoding="utf-8").splitlines():
        if line.startswith("### "):
            title, _, group = line[4:].partition(": ")
        row = re.match(r"\| `(.*)` \| (\w+)", line)
        if row:
            found[title, group, row[1].replace("\\|", "|")] = row[2]
    return found


def keys(title: str, cases: Iterable[Case]) -> list[tuple[str, str, str]]:
    """The cases as :func:`statuses` names them."""
    return [(title, case.group, case.code) for case in cases]
