"""A line of the operator table and the inputs that it is tried with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

# What the inputs of one try look like; every line is tried with each.
SAMPLES = ("ordinary", "ties", "large")


@dataclass(frozen=True, eq=False)
class Case:
    """One operator with its options.

    ``inputs`` maps a name to a shape, ``"2,3,9,11"``, that may carry a kind: ``positive``,
    ``unit`` (within -1 and 1), ``grid`` (sampling positions), ``index`` (integers 0 to 9).
    """

    group: str
    code: str
    inputs: Mapping[str, str]

    @property
    def name(self) -> str:
        return f"{self.group}: {self.code}"


def cases_of(group: str, lines: str, inputs: Mapping[str, str]) -> list[Case]:
    """The cases of a text that separates them by semicolons or line breaks."""
    codes = [c.strip() for line in lines.splitlines() for c in line.split(";")]
    return [Case(group, code, inputs) for code in codes if code]


def sample_arrays(case: Case, sample: str) -> dict[str, np.ndarray]:
    """Repeatable inputs of a case: ordinary numbers, many equal ones, or large ones."""
    rng = np.random.default_rng(SAMPLES.index(sample))
    return {name: _array(spec, sample, rng) for name, spec in case.inputs.items()}


def _array(spec: str, sample: str, rng: np.random.Generator) -> np.ndarray:
    kind, _, dims = spec.rpartition(" ")
    shape = tuple(int(d) for d in dims.split(","))
    if kind == "index":
        return rng.integers(0, 10, shape, dtype=np.int64)
    values = rng.standard_normal(shape)
    if kind == "unit":
        values = np.clip(values / 3, -0.99, 0.99)
    elif kind == "positive":
        values = np.abs(values) + 0.01
    if sample == "ties":
        values = np.round(values * 2) / 2 if kind != "positive" else np.ceil(values)
    elif sample == "large" and kind != "unit":
        values = values * (3 if kind == "grid" else 25)
    return values.astype(np.float32)
