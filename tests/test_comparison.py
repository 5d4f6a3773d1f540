"""Two libraries in turns, with a clock that the test owns."""

from __future__ import annotations

import numpy as np
import pytest

from tvm_pattern.comparison import compare
from tvm_pattern.frontend import TensorSpec

SPEC = TensorSpec("x", (1, 2), "float32")


class Clock:
    """Seconds that pass only while a library runs."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Fake:
    """Stands for a library that takes ``seconds`` and adds ``offset``."""

    def __init__(self, clock, seconds, offset=0.0, spec=SPEC) -> None:
        self.clock, self.offset, self.inputs, self.outputs = clock, offset, (spec,), (SPEC,)
        self.seconds = iter(seconds) if isinstance(seconds, list) else None
        self.each = seconds
        self.turns: list[float] = []
        self.given: list[np.ndarray] = []

    def __call__(self, x):
        self.given.append(x)
        self.turns.append(self.clock.now)
        self.clock.now += next(self.seconds) if self.seconds else self.each
        return np.ones_like(x) + np.float32(self.offset)


def test_ratio_and_outputs():
    clock = Clock()
    first, second = Fake(clock, 2.0), Fake(clock, 1.0, offset=0.25)
    found = compare(first, second, repeat=4, clock=clock)
    assert (found.ratio, found.ratio_p10, found.ratio_p90) == (0.5, 0.5, 0.5)
    assert found.first["median_ms"] == 2000
    assert (found.max_abs_error, found.scale) == (0.25, 1.0)
    assert found.verdict == "the second is 2.00x as fast"
    assert compare(second, first, repeat=2, clock=clock).verdict == "the first is 2.00x as fast"


def test_integers_may_be_indices():
    library = Fake(Clock(), 1.0, spec=TensorSpec("x", (20, 20), "int64"))
    compare(library, library, repeat=2, clock=library.clock)
    assert {(str(x.dtype), x.min(), x.max()) for x in library.given} == {("int64", 0, 1)}


def test_the_order_changes_from_round_to_round():
    clock = Clock()
    first, second = Fake(clock, 1.0), Fake(clock, 1.0)
    compare(first, second, repeat=2, clock=clock)
    assert first.turns[1] < second.turns[1] < second.turns[2] < first.turns[2]


def test_a_spread_that_holds_one_tells_nothing():
    clock = Clock()
    second = Fake(clock, [1.0, 0.5, 2.0, 0.5, 2.0])
    found = compare(Fake(clock, 1.0), second, repeat=4, clock=clock)
    assert found.ratio_p10 <= 1 <= found.ratio_p90
    assert found.verdict == "no difference beyond the spread"


def test_wrong_arguments():
    clock = Clock()
    other = Fake(clock, 1.0, spec=TensorSpec("x", (1, 3), "float32"))
    with pytest.raises(ValueError, match="different inputs"):
        compare(Fake(clock, 1.0), other)
    with pytest.raises(ValueError, match="at least 2 rounds"):
        compare(other, other, repeat=1)
