"""Interleaved timing of many engines in one process, and the rows that come out of it.

Engines take turns: a round times every engine of a workload once, in an order drawn anew, so that
drifting clocks and neighbours hit all of them alike and nobody always runs after the same
predecessor. A turn of a short workload is several calls, the first of them untimed, so that the
figure is that of a network's steady state and not of refilling the caches a competitor emptied.
"""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import numpy as np

OURS = "tvm-pattern"

# An output is wrong if it is further from torch's than these parts of the largest value: ours at
# any pixel; a peer's at one pixel (large-tile float32 Winograd, as MNN uses it, errs by 2e-3 there
# and is still a fair opponent), or on average (which shows reduced precision: float16 comes to
# about 1e-4, float32 Winograd stays near 1e-5).
OUR_WORST = 1e-4
PEER_WORST = 1e-2
PEER_MEAN = 5e-5
# Engines round where the network of bytes says, but sums of floats decide now and then between two
# bytes, and some keep more places than others: the length of the error vector, in parts of that of
# the result.
INT8_ERROR = 0.15

# An engine that had a processor for less of its time than this shared its cores with other
# programs: its figures, and every comparison with them, mean nothing.
BUSY_ENOUGH = 0.9
CONTENDED = "contended"


class Runner(Protocol):
    """A workload built for one engine, its input already in the engine's own buffer."""

    def run(self) -> None:
        """One inference, complete when the call returns."""

    def output(self) -> np.ndarray:
        """The last output, float32, in torch's layout (NCHW)."""


@dataclass(frozen=True)
class Row:
    """One line of a result file; times in milliseconds, rates in GFLOP/s.

    ``effective_gflops`` counts multiplications by non-zero weights, ``dense_equivalent_gflops`` all
    that the dense workload has (the same for a dense engine, whatever its algorithm: Winograd can
    exceed the peak). ``peak_fraction`` is effective rate / (FMA peak x threads). ``peak_memory_mb``
    is what :mod:`benchmarks.resident` measures, in 10^6 bytes. Figures are None where nothing was
    measured; ``note`` says why.
    """

    workload: str
    engine: str
    threads: int
    median_ms: float | None = None
    p10_ms: float | None = None
    p90_ms: float | None = None
    runs: int = 0
    sparsity: float | None = None
    group: int | None = None
    effective_gflops: float | None = None
    dense_equivalent_gflops: float | None = None
    peak_fraction: float | None = None
    max_abs_error: float | None = None
    note: str = ""
    dtype: str = "float32"
    images_per_second: float | None = None
    peak_memory_mb: float | None = None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass
class Contender:
    """An engine on a workload: what to call, and the facts its row needs."""

    workload: str
    engine: str
    runner: Runner | None
    dense_flops: int = 0
    effective_flops: int = 0
    sparsity: float = 0.0
    group: int | None = None
    reference: np.ndarray | None = None
    note: str = ""
    dtype: str = "float32"
    max_abs_error: float | None = None
    samples_ms: list[float] = field(default_factory=list)
    busy: float = 1.0
    batch: int = 1
    peak_memory_mb: float | None = None

    def check(self) -> None:
        """Run once and compare with ``reference``; a wrong output takes the runner away."""
        if self.runner is None or self.reference is None:
            return
        self.runner.run()
        got = np.asarray(self.runner.output(), np.float32)
        if got.size != self.reference.size:
            self._drop(f"output shape {got.shape}, expected {self.reference.shape}")
            return
        difference = np.abs(got.reshape(self.reference.shape) - self.reference)
        self.max_abs_error, mean = float(difference.max()), float(difference.mean())
        scale = float(np.abs(self.reference).max())
        if self.dtype == "int8":
            error = float(np.linalg.norm(difference) / max(np.linalg.norm(self.reference), 1e-30))
            if not error <= INT8_ERROR:
                self._drop(f"an error of {error:.0%} of the result's length")
            return
        worst_allowed = OUR_WORST if self.engine == OURS else PEER_WORST
        within = self.max_abs_error <= worst_allowed * scale and mean <= PEER_MEAN * scale
        if not within:  # also when they are NaN
            self._drop(
                f"differs from torch by up to {self.max_abs_error:.3g}, {mean:.3g} on average, at"
                f" values up to {scale:.3g}"
            )

    def _contention(self) -> str:
        return f"{CONTENDED}: on a core {self.busy:.0%} of its time" if self.contended else ""

    def _drop(self, reason: str) -> None:
        self.runner = None
        self.note = "; ".join(filter(None, [self.note, f"wrong output, not timed: {reason}"]))

    @property
    def contended(self) -> bool:
        """Whether other programs took the cores during the measurement."""
        return self.busy < BUSY_ENOUGH

    def row(self, threads: int, peak_gflops: float) -> Row:
        facts: dict[str, Any] = {
            "workload": self.workload,
            "engine": self.engine,
            "threads": threads,
            "group": self.group,
            "max_abs_error": self.max_abs_error,
            "note": "; ".join(filter(None, [self._contention(), self.note])),
            "dtype": self.dtype,
        }
        if not self.samples_ms:
            return Row(**facts)
        p10, median, p90 = (float(v) for v in np.percentile(self.samples_ms, (10, 50, 90)))
        effective = self.effective_flops / median / 1e6
        return Row(
            **facts,
            median_ms=median,
            p10_ms=p10,
            p90_ms=p90,
            runs=len(self.samples_ms),
            sparsity=self.sparsity,
            effective_gflops=effective,
            dense_equivalent_gflops=self.dense_flops / median / 1e6,
            peak_fraction=effective / (peak_gflops * threads),
            images_per_second=self.batch * 1e3 / median,
            peak_memory_mb=self.peak_memory_mb,
        )


@dataclass(frozen=True)
class Budget:
    """How long to measure one workload.

    ``seconds`` for all engines together, but never fewer than ``min_rounds``; a turn makes so many
    calls as fit in ``turn_seconds``.
    """

    seconds: float
    min_rounds: int = 5
    turn_seconds: float = 0.006
    max_calls: int = 32

    @classmethod
    def quick(cls) -> Budget:
        return cls(seconds=1.5, min_rounds=3, turn_seconds=0.003)


@dataclass
class Timing:
    """Samples of one engine in the order taken, and processor seconds per second of them."""

    samples_ms: list[float] = field(default_factory=list)
    wall: float = 0.0
    processor: float = 0.0

    @property
    def busy(self) -> float:
        """Part of the measured time in which at least one thread's worth of processor was had."""
        return min(1.0, self.processor / self.wall) if self.wall else 1.0


def interleave(
    calls: Mapping[str, Callable[[], object]],
    budget: Budget,
    *,
    each_round: Callable[[], object] | None = None,
    seed: int = 0,
    clock: Callable[[], float] = time.perf_counter,
    processor_clock: Callable[[], float] = time.process_time,
) -> dict[str, Timing]:
    """Time every call in turns.

    Every call is made twice first, untimed as far as results go; the second decides how many calls
    fit in a turn. ``each_round`` runs once a round (the peak sample). The clocks return seconds;
    ``processor_clock`` those of all threads of the process.
    """
    estimates = {}
    for name, call in calls.items():
        call()
        start = clock()
        call()
        estimates[name] = clock() - start
    repeats = {
        name: max(1, min(budget.max_calls, int(budget.turn_seconds / max(seconds, 1e-9))))
        for name, seconds in estimates.items()
    }
    timings = {name: Timing() for name in calls}
    order = list(calls)
    shuffle = random.Random(seed).shuffle
    start_all = clock()
    rounds = 0
    while rounds < budget.min_rounds or clock() - start_all < budget.seconds:
        if each_round is not None:
            each_round()
        shuffle(order)
        for name in order:
            call, timing = calls[name], timings[name]
            if repeats[name] > 1:
                call()
            turn, processor = clock(), processor_clock()
            for _ in range(repeats[name]):
                start = clock()
                call()
                timing.samples_ms.append((clock() - start) * 1e3)
            timing.processor += processor_clock() - processor
            timing.wall += clock() - turn
        rounds += 1
    return timings


def measure(
    contenders: Sequence[Contender],
    budget: Budget,
    each_round: Callable[[], object] | None = None,
) -> None:
    """Check every contender of one workload, then time those that are right."""
    for contender in contenders:
        contender.check()
    calls = {
        str(index): contender.runner.run
        for index, contender in enumerate(contenders)
        if contender.runner is not None
    }
    if not calls:
        return
    for index, timing in interleave(calls, budget, each_round=each_round).items():
        contenders[int(index)].samples_ms = timing.samples_ms
        contenders[int(index)].busy = timing.busy


class Selection:
    """``--only``: which engines on which workloads to run.

    The expression is searched in ``workload/engine``, and for our engine also in
    ``workload/engine/F<group>`` (``.../dense`` for the dense one).

    Raises
    ------
    ValueError
        If it is no regular expression.
    """

    def __init__(self, expression: str | None) -> None:
        try:
            self._regex = re.compile(expression or "")
        except re.error as error:
            raise ValueError(
                f"--only {expression!r} is no regular expression ({error}); it is searched in"
                " 'workload/engine', for instance '56x56x256/(ncnn|tvm-pattern)'"
            ) from error

    def __call__(self, workload: str, engine: str, group: int | None = None) -> bool:
        names = [f"{workload}/{engine}"]
        if engine == OURS:
            names.append(f"{names[0]}/{'dense' if group is None else f'F{group}'}")
        return any(self._regex.search(name) for name in names)
