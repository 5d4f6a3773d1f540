"""One library, many threads: right answers, no threads left over, no crash."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch import nn

import tvm_pattern as tp

from .conftest import amount

INPUTS = [np.random.default_rng(seed).standard_normal((1, 3, 12, 14), "f4") for seed in range(8)]


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 8, 3)).eval()
    tp.pruning.oneshot(model, connectivity=2.0)
    return model


@pytest.fixture(scope="module")
def library(model):
    return tp.compile(model, INPUTS[0], num_threads=2)


@pytest.fixture(scope="module")
def expected(model):
    with torch.no_grad():
        return [model(torch.from_numpy(image)).numpy() for image in INPUTS]


def os_threads() -> int:
    return len(os.listdir("/proc/self/task"))


def settled_threads() -> int:
    """OS threads once those that ended are gone; the system takes a moment."""
    count = os_threads()
    for _ in range(50):
        time.sleep(0.02)
        count, before = os_threads(), count
        if count == before:
            break
    return count


def check(library, expected, number: int) -> None:
    number %= len(INPUTS)
    np.testing.assert_allclose(library(INPUTS[number]), expected[number], rtol=0, atol=1e-5)


def in_threads(count: int, work) -> None:
    """``work(number)`` in ``count`` threads that start together; the first error is raised."""
    start = threading.Barrier(count)

    def run(number: int) -> None:
        start.wait()
        work(number)

    with ThreadPoolExecutor(count) as pool:
        list(pool.map(run, range(count)))


@pytest.mark.parametrize("num_threads", [1, 2])
@pytest.mark.parametrize("callers", [2, 16])
def test_many_callers_get_their_own_answers(library, expected, callers, num_threads):
    calls = amount(320, 100_000) // callers
    library.num_threads = num_threads

    def work(number: int) -> None:
        for step in range(calls):
            check(library, expected, number + step)

    in_threads(callers, work)


def test_the_number_of_threads_changes_between_calls(library, expected):
    def work(number: int) -> None:
        for step in range(amount(20, 2000)):
            library.num_threads = 1 + (number + step) % 2
            check(library, expected, number + step)

    in_threads(4, work)


@pytest.mark.parametrize("num_threads", [1, 2])
def test_living_callers_own_no_threads_of_tvm(library, expected, num_threads):
    """TVM would give each of them a pool of its own that lives as long as they do."""
    library.num_threads = num_threads
    check(library, expected, 0)
    callers = amount(60, 400)
    counts = []
    barrier = threading.Barrier(callers + 1)

    def work(number: int) -> None:
        check(library, expected, number)
        barrier.wait()
        barrier.wait()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(callers)]
    # Every machine and every thread of ours is there after this.
    in_threads(8, lambda number: check(library, expected, number))
    before = settled_threads()
    for thread in threads:
        thread.start()
    barrier.wait(timeout=200)
    counts.append(os_threads())
    barrier.wait()
    for thread in threads:
        thread.join()
    assert counts == [before + callers]
    assert settled_threads() == before


def test_an_asyncio_server(library, expected):
    async def serve() -> list[np.ndarray]:
        calls = (asyncio.to_thread(library, INPUTS[n % len(INPUTS)]) for n in range(64))
        return await asyncio.gather(*calls)

    library.num_threads = 2
    for number, result in enumerate(asyncio.run(serve())):
        np.testing.assert_allclose(result, expected[number % len(INPUTS)], rtol=0, atol=1e-5)


def test_loads_and_calls_at_the_same_time(library, expected, tmp_path):
    path = library.export(tmp_path / "net.so")

    def work(number: int) -> None:
        for step in range(amount(3, 100)):
            check(tp.load(path, num_threads=1 + step % 2), expected, number)

    in_threads(4, work)


def test_timing_beside_calls(library, expected):
    """A benchmark has its own machine: calls beside it are right and not in its way."""

    def work(number: int) -> None:
        if number == 0:
            assert len(library.benchmark(INPUTS[0], repeat=5).results) == 5
            library.profile(repeat=1, min_repeat_ms=0)
        for step in range(20):
            check(library, expected, number + step)

    library.num_threads = 1
    in_threads(4, work)


def test_errors_reach_their_caller(library, expected):
    library.num_threads = 2

    def work(number: int) -> None:
        for _ in range(20):
            if number % 2:
                with pytest.raises(ValueError, match="got 0 inputs"):
                    library()
            else:
                check(library, expected, number)

    in_threads(4, work)


@pytest.mark.parametrize("num_threads", [1, 2])
def test_a_call_inside_a_call(library, expected, tmp_path, num_threads):
    """An instrument that calls the library does not wait for itself."""
    fresh = tp.load(library.export(tmp_path / "net.so"), num_threads=num_threads)
    inner = []

    def instrument(_function, _name, before, _result, *_arguments):
        if before and not inner:
            inner.append(fresh(INPUTS[1]))
        return 0

    fresh.vm.set_instrument(instrument)
    check(fresh, expected, 0)
    np.testing.assert_allclose(inner[0], expected[1], rtol=0, atol=1e-5)
