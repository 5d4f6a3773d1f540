"""On which threads a compiled library runs.

TVM gives each calling thread a pool of its own, whose size is fixed when it is made, which lives as
long as the thread, and which a forked child cannot use. So no caller ever gets one with workers:

- on one thread, a call runs in its caller, whose pool is made without workers;
- on more, it runs in a thread of ours that owns a pool of exactly that size. There are as many of
  them as fit the cores, calls beyond that wait, and they serve every thread of the process.

A forked child starts with none and makes its own.
"""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import tvm

# Cores the process may use, read before any pool can have narrowed the mask of this thread.
_CPUS = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
# TVM's mode in which all workers share the listed cores, instead of having one each.
_SHARE_CORES = -3

#: More threads than any computer has CPUs: a larger number is a slip.
MOST_THREADS = 4096

_current = threading.local()


def available_cpus() -> list[int]:
    """Logical CPUs this process may run on."""
    return list(_CPUS if _CPUS is not None else range(os.cpu_count() or 1))


def default_num_threads() -> int:
    """``TVM_NUM_THREADS``, else ``OMP_NUM_THREADS``, else one per physical core we may use."""
    for variable in ("TVM_NUM_THREADS", "OMP_NUM_THREADS"):
        text = os.environ.get(variable, "").strip()
        if text:
            if not text.isdigit() or not 1 <= int(text) <= MOST_THREADS:
                raise ValueError(
                    f"{variable}={text!r}: expected a number of threads from 1 to {MOST_THREADS}"
                )
            return int(text)
    return len({_core_of(cpu) for cpu in available_cpus()})


def check_num_threads(num_threads: int | None) -> int:
    """``num_threads`` validated, or the default for None.

    Raises
    ------
    ValueError
        If it is no integer from 1 to :data:`MOST_THREADS`.
    """
    if num_threads is None:
        return default_num_threads()
    is_number = isinstance(num_threads, int) and not isinstance(num_threads, bool)
    if not is_number or not 1 <= num_threads <= MOST_THREADS:
        raise ValueError(
            f"num_threads={num_threads!r}: expected an integer from 1 to {MOST_THREADS}, or None"
        )
    return num_threads


class MoreThreadsThanCPUs(UserWarning):
    """A number of threads that the CPUs of this process cannot run at a time."""


def threads_here(num_threads: int) -> int:
    """How many of ``num_threads`` threads a run uses here: no more than there are CPUs.

    What a run computes does not depend on it.
    """
    return min(num_threads, len(available_cpus()))


def warn_of_threads(num_threads: int, stacklevel: int = 3) -> None:
    """Say so where :func:`threads_here` lowers a number that somebody asked for."""
    here = threads_here(num_threads)
    if here < num_threads:
        warnings.warn(
            f"num_threads={num_threads}: this process may use {here} CPUs, so runs use {here}"
            f" threads here; more would take turns. Pass num_threads={here}, or free CPUs for the"
            " process",
            MoreThreadsThanCPUs,
            stacklevel=stacklevel,
        )


def calls_at_once(num_threads: int) -> int:
    """How many calls on ``num_threads`` threads each the cores of this process can run."""
    return max(1, len(available_cpus()) // num_threads)


def run_on(num_threads: int, function: Callable[..., Any], *arguments: Any) -> Any:
    """``function(*arguments)`` with ``num_threads`` threads for TVM's parallel loops.

    Safe from any thread. An exception of ``function`` is raised here.
    """
    if num_threads == 1:
        stay_alone()
        return function(*arguments)
    if getattr(_current, "num_threads", None) == num_threads:
        return function(*arguments)
    return _crew(num_threads).run(function, arguments)


def stay_alone() -> None:
    """Let TVM's parallel loops in the calling thread run in that thread, bound to no core."""
    if getattr(_current, "num_threads", None) == 1:
        return
    mask = os.sched_getaffinity(0) if _CPUS is not None else None
    _size_pool(1)
    if mask is not None:
        os.sched_setaffinity(0, mask)
    _current.num_threads = 1


def _size_pool(num_threads: int) -> None:
    """Give the calling thread a pool of ``num_threads``, the caller included, on all cores."""
    cpus = available_cpus()
    configure = tvm.get_global_func("runtime.config_threadpool")
    # The length of the first list is the size of a pool that does not exist yet; the second sets
    # where its threads may run.
    slots = (cpus * -(-num_threads // len(cpus)))[:num_threads]
    for cores in (slots, slots if num_threads > len(cpus) else cpus):
        configure(_SHARE_CORES, num_threads, [str(cpu) for cpu in cores])


class _Job:
    """A call and its outcome."""

    __slots__ = ("arguments", "done", "error", "function", "result")

    def __init__(self, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
        self.function, self.arguments = function, arguments
        self.result: Any = None
        self.error: BaseException | None = None
        self.done = threading.Lock()
        self.done.acquire()

    def run(self) -> None:
        try:
            self.result = self.function(*self.arguments)
        except BaseException as error:  # noqa: BLE001  raised again in the caller
            self.error = error


class _Crew:
    """Threads that own pools of one size."""

    def __init__(self, num_threads: int) -> None:
        self._num_threads = num_threads
        self._limit = calls_at_once(num_threads)
        self._jobs: SimpleQueue[_Job] = SimpleQueue()
        self._lock = threading.Lock()
        self._size = self._unfinished = 0

    def run(self, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        job = _Job(function, arguments)
        with self._lock:
            self._unfinished += 1
            if self._unfinished > self._size and self._size < self._limit:
                self._start()
        self._jobs.put(job)
        job.done.acquire()  # a signal may interrupt it; the call runs to its end then
        if job.error is not None:
            try:
                raise job.error
            finally:
                del job  # the traceback holds this frame: no cycle
        return job.result

    def _start(self) -> None:
        name = f"tvm-pattern-{self._num_threads}-{self._size}"
        try:
            threading.Thread(target=self._serve, name=name, daemon=True).start()
        except RuntimeError:
            # The system gives no more threads; those that there are serve on.
            if self._size == 0:
                self._unfinished -= 1
                raise
        else:
            self._size += 1

    def _serve(self) -> None:
        _size_pool(self._num_threads)
        _current.num_threads = self._num_threads
        while True:
            job = self._jobs.get()
            job.run()
            with self._lock:
                self._unfinished -= 1
            job.done.release()
            del job


_crews: dict[int, _Crew] = {}
_crews_lock = threading.Lock()


def _crew(num_threads: int) -> _Crew:
    crew = _crews.get(num_threads)
    if crew is None:
        with _crews_lock:
            crew = _crews.setdefault(num_threads, _Crew(num_threads))
    return crew


def _forget_crews() -> None:
    """In a forked child, which has none of its parent's threads."""
    global _crews_lock
    _crews_lock = threading.Lock()
    _crews.clear()
    if getattr(_current, "num_threads", 1) > 1:
        _current.num_threads = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_crews)


def _core_of(cpu: int) -> tuple[str, str]:
    """Package and core of a logical CPU; hardware threads of one core share them."""
    topology = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology")
    try:
        package = (topology / "physical_package_id").read_text().strip()
        return package, (topology / "core_id").read_text().strip()
    except OSError:
        return "", str(cpu)
