"""One library from many threads, forks and spawned processes: right answers, no hang, no leak."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import tvm_pattern as tp
from tvm_pattern import vm_pool
from tvm_pattern.vm_pool import VMPool

from . import processes
from .conftest import LONG, amount

CALLS = amount(400, 100_000)


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 3)).eval()


def images(count: int) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.standard_normal((1, 3, 9, 9)).astype(np.float32) for _ in range(count)]


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> Path:
    library = tp.compile(network(), torch.from_numpy(images(1)[0]), num_threads=2)
    return library.export(tmp_path_factory.mktemp("threads") / "net.so")


@pytest.fixture(scope="module")
def expected(exported) -> list[tuple[np.ndarray, np.ndarray]]:
    """Inputs and answers, from one thread; torch gives the same."""
    library = tp.load(exported)
    pairs = [(x, library(x)) for x in images(16)]
    with torch.no_grad():
        for x, y in pairs:
            np.testing.assert_allclose(network()(torch.from_numpy(x)).numpy(), y, atol=1e-5)
    return pairs


def os_threads() -> int:
    return len(os.listdir("/proc/self/task"))


@pytest.mark.parametrize("threads", [2, 3, 4, 8, 16])
def test_one_library_from_threads(exported, expected, threads):
    library = tp.load(exported)
    wrong: list[int] = []

    def work(number: int) -> None:
        x, y = expected[number]
        for _ in range(CALLS // threads // (10 if LONG and threads != 4 else 1)):
            if not np.array_equal(library(x), y):
                wrong.append(number)

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(work, range(threads)))
    assert not wrong


def test_threads_that_come_and_go(exported, expected):
    """A server that starts a thread for each request leaves no threads behind."""
    library = tp.load(exported)
    x, y = expected[0]
    library(x)
    right: list[bool] = []
    before = os_threads()
    for _ in range(amount(100, 2000)):
        thread = threading.Thread(target=lambda: right.append(np.array_equal(library(x), y)))
        thread.start()
        thread.join()
    assert all(right)
    assert len(right) == amount(100, 2000)
    assert os_threads() <= before + 8


def test_libraries_are_unmapped(exported, expected):
    x, y = expected[0]

    def mappings() -> int:
        return len(Path("/proc/self/maps").read_text().splitlines())

    for _ in range(3):
        tp.load(exported)(x)
    before = mappings()
    for _ in range(amount(20, 300)):
        np.testing.assert_array_equal(tp.load(exported)(x), y)
    assert mappings() <= before + 30


def test_replaced_file_gives_the_new_network(tmp_path, expected):
    x, _ = expected[0]
    path = tmp_path / "net.so"
    for seed in range(amount(3, 10)):
        compiled = tp.compile(network(seed), torch.from_numpy(x), num_threads=1)
        compiled.export(path)
        loaded = tp.load(path)
        np.testing.assert_array_equal(loaded(x), compiled(x))
        with torch.no_grad():
            right = network(seed)(torch.from_numpy(x)).numpy()
        np.testing.assert_allclose(loaded(x), right, atol=1e-5)


def _answer(path: str, x: np.ndarray) -> np.ndarray:
    return tp.load(path)(x)


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_worker_processes(exported, expected, method):
    with multiprocessing.get_context(method).Pool(2) as pool:
        jobs = [pool.apply_async(_answer, (str(exported), x)) for x, _ in expected[:4]]
        for job, (_, y) in zip(jobs, expected, strict=False):
            np.testing.assert_array_equal(job.get(processes.PATIENCE), y)


class _Answers(torch.utils.data.Dataset):
    """A data set whose items come out of a library, as in a distillation."""

    def __init__(self, library: tp.Library, inputs: list[np.ndarray]) -> None:
        self.library, self.inputs = library, inputs

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: int) -> np.ndarray:
        return np.asarray(self.library(self.inputs[index]))[0]


def test_data_loader_workers(exported, expected):
    """Forked workers of torch's DataLoader, after the parent has called the library."""
    library = tp.load(exported)
    library(expected[0][0])
    loader = torch.utils.data.DataLoader(
        _Answers(library, [x for x, _ in expected]),
        num_workers=2,
        batch_size=1,
        timeout=120,
        multiprocessing_context="fork",
    )
    for answer, (_, y) in zip(loader, expected, strict=True):
        np.testing.assert_array_equal(answer.numpy(), y)


def _call(pool: VMPool, seconds: float) -> None:
    machine = pool.borrow(limit=1)
    time.sleep(seconds)
    pool.give_back(machine)


def _code_of_child(pool: VMPool) -> int:
    """Exit code of a forked child, and of its own one: 0 if it gets a machine, 7 if refused."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            inner = os.fork()
            if inner:
                code = os.waitstatus_to_exitcode(os.waitpid(inner, 0)[1])
            else:
                _call(pool, 0)
                code = 0
        except RuntimeError as error:
            code = 7 if "forked while its parent ran the library" in str(error) else 1
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.mark.parametrize("callers", [1, 3])
def test_a_fork_comes_between_calls_that_leave_no_gap(callers):
    """Whoever calls again at once waits for the fork, instead of taking the machine each time."""
    pool: VMPool[object] = VMPool(object)
    stop, calls, meanwhile, pauses = threading.Event(), itertools.count(), 0, amount(20, 500)

    def caller() -> None:
        while not stop.is_set():
            _call(pool, 0.001)
            next(calls)

    threads = [threading.Thread(target=caller) for _ in range(callers)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(pauses):
            before = next(calls)
            assert pool.pause(time.monotonic() + processes.PATIENCE)
            meanwhile += next(calls) - before
            pool.resume()
        assert _code_of_child(pool) == 0
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert meanwhile < 20 * pauses  # without a place in the queue, a pause took thousands


def test_a_child_of_a_call_that_goes_on_raises_at_once(monkeypatch):
    """It would wait for ever where the call held a lock of TVM; the parent goes on."""
    monkeypatch.setattr(vm_pool, "_FORK_WAIT", 0.05)
    pool: VMPool[object] = VMPool(object)
    machine = pool.borrow(limit=1)
    assert _code_of_child(pool) == 7
    pool.give_back(machine)
    assert _code_of_child(pool) == 0
    assert pool.borrow(limit=1) is machine
