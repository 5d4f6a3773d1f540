"""``python -m benchmarks.operators``: try every operator; ``--write`` renews docs/operators.md."""

from __future__ import annotations

import argparse
import json
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from .case import Case
from .onnx_cases import onnx_cases
from .onnx_trial import try_onnx
from .page import PAGE, keys, render, statuses
from .torch_cases import torch_cases
from .trial import REFUSED, RIGHT, Outcome, try_torch

# So many cases make one network: building takes most of the time.
_TOGETHER = 12


def batches(cases: Sequence[Case], expected: Sequence[str]) -> Iterator[list[int]]:
    """Positions of cases that are tried together: same inputs; those not right one by one."""
    alike: dict[tuple, list[int]] = {}
    for i, case in enumerate(cases):
        if expected[i] != RIGHT:
            yield [i]
        else:
            alike.setdefault(tuple(case.inputs.items()), []).append(i)
    for members in alike.values():
        for start in range(0, len(members), _TOGETHER):
            yield members[start : start + _TOGETHER]


def _run(
    title: str,
    cases: Sequence[Case],
    attempt: Callable[[Sequence[Case]], list[Outcome]],
    stored: Path | None,
) -> dict[Case, Outcome]:
    """Outcomes of all cases; those in the file ``stored`` are not tried again."""
    known = _stored(stored)
    missing = [c for c in cases if (title, c.name) not in known]
    page = statuses() if PAGE.is_file() else {}
    expected = [page.get(key, RIGHT) for key in keys(title, missing)]
    for members in batches(missing, expected):
        chosen = [missing[i] for i in members]
        for case, outcome in zip(chosen, attempt(chosen), strict=True):
            known[title, case.name] = outcome
            if outcome.status != RIGHT:
                print(f"{outcome.status}: {title}, {case.name}: {outcome.detail}", flush=True)
            if stored is not None:
                row = [title, case.name, outcome.status, outcome.detail]
                with stored.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(row) + "\n")
    return {case: known[title, case.name] for case in cases}


def _stored(path: Path | None) -> dict[tuple[str, str], Outcome]:
    if path is None or not path.is_file():
        return {}
    rows = (json.loads(line) for line in path.read_text(encoding="utf-8").splitlines())
    return {(title, name): Outcome(status, detail) for title, name, status, detail in rows}


def main(arguments: Sequence[str] | None = None) -> int:
    """Try the tables; 1 if a line is neither right nor refused."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.operators", description=__doc__)
    parser.add_argument("--only", default="", help="regular expression: lines to try")
    parser.add_argument("--write", action="store_true", help=f"renew {PAGE.name}")
    parser.add_argument("--resume", type=Path, help="JSON lines of outcomes, read and continued")
    given = parser.parse_args(arguments)
    if given.write and given.only:
        parser.error("--write needs the whole table; leave out --only")
    warnings.simplefilter("ignore")
    tables = []
    for title, cases, attempt in (
        ("torch", torch_cases(), try_torch),
        ("ONNX", onnx_cases(), try_onnx),
    ):
        chosen = [case for case in cases if re.search(given.only, f"{title}, {case.name}")]
        tables.append(_run(title, chosen, attempt, given.resume))
    if given.write:
        PAGE.write_text(render(*tables), encoding="utf-8")
    outcomes = [outcome.status for table in tables for outcome in table.values()]
    bad = [status for status in outcomes if status not in (RIGHT, REFUSED)]
    print(
        f"{len(outcomes)} lines: {outcomes.count(RIGHT)} right, {outcomes.count(REFUSED)} refused"
    )
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
