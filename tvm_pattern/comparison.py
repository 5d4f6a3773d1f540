"""Two libraries of one model against each other: outputs, and times taken in turns."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from .library import Library
from .random_inputs import random_array
from .timing import latency


@dataclass(frozen=True)
class Comparison:
    """What :func:`compare` found.

    Parameters
    ----------
    first, second : dict
        Figures of each, see :func:`tvm_pattern.timing.latency`.
    ratio, ratio_p10, ratio_p90 : float
        Time of the second over that of the first, round by round: median and spread. Below 1 the
        second is faster.
    max_abs_error, scale : float
        Largest difference of the outputs, and the largest magnitude of the first's.
    """

    first: dict[str, Any]
    second: dict[str, Any]
    ratio: float
    ratio_p10: float
    ratio_p90: float
    max_abs_error: float
    scale: float

    @property
    def verdict(self) -> str:
        """One line; says that nothing can be told where the spread holds 1."""
        if self.ratio_p10 <= 1 <= self.ratio_p90:
            return "no difference beyond the spread"
        if self.ratio < 1:
            return f"the second is {1 / self.ratio:.2f}x as fast"
        return f"the first is {self.ratio:.2f}x as fast"


def compare(
    first: Library,
    second: Library,
    *,
    repeat: int = 30,
    seed: int = 0,
    clock: Callable[[], float] = time.perf_counter,
) -> Comparison:
    """Run two libraries on the same random inputs in turns.

    A round runs each once, the order changing from round to round, so that what disturbs the
    machine disturbs both.

    Parameters
    ----------
    first, second : Library
        Of the same inputs and outputs.
    repeat : int
        Rounds, after one to warm up; at least 2.
    seed : int
        Of the inputs.
    clock : callable
        Seconds.

    Raises
    ------
    ValueError
        If inputs or outputs differ in number, shape or dtype, or ``repeat`` is below 2.
    """
    if repeat < 2:
        raise ValueError(f"got repeat={repeat}, expected at least 2 rounds")
    for what in ("inputs", "outputs"):
        one, other = (
            [(s.shape, s.dtype) for s in getattr(library, what)] for library in (first, second)
        )
        if one != other:
            raise ValueError(
                f"the libraries have different {what}: {one} and {other}; expected two builds of"
                " one model"
            )
    rng = np.random.default_rng(seed)
    inputs = [random_array(rng, s.shape, s.dtype) for s in first.inputs]
    error, scale = _difference(_run(first, inputs), _run(second, inputs))
    times: tuple[list[float], list[float]] = ([], [])
    for number in range(repeat):
        for place in (0, 1) if number % 2 == 0 else (1, 0):
            start = clock()
            (first, second)[place](*inputs)
            times[place].append(clock() - start)
    ratios = np.asarray(times[1]) / np.asarray(times[0])
    low, middle, high = (float(q) for q in np.quantile(ratios, (0.1, 0.5, 0.9)))
    return Comparison(latency(times[0]), latency(times[1]), middle, low, high, error, scale)


def _run(library: Library, inputs: list[np.ndarray]) -> list[np.ndarray]:
    result = library(*inputs)
    return list(result) if isinstance(result, tuple) else [result]


def _difference(one: list[np.ndarray], other: list[np.ndarray]) -> tuple[float, float]:
    """Largest difference and magnitude; NaN where either has one."""
    errors = [
        np.abs(a.astype(float) - b.astype(float)).max(initial=0)
        for a, b in zip(one, other, strict=True)
    ]
    return float(np.max(errors)), float(np.max([np.abs(a).max(initial=0) for a in one]))
