"""How many threads a compiled library runs on.

TVM gives each calling thread a pool of its own, created at the first parallel loop with a size that
never changes, and by default binds the caller to a core. :func:`use_threads` sizes that pool before
it exists, chooses how many of its workers take part, and leaves every thread free to run on all
cores that the process may use.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path

import tvm

# Cores the process may use, read before any pool can have narrowed the mask of this thread.
_CPUS = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None

_current = threading.local()


def available_cpus() -> list[int]:
    """Logical CPUs this process may run on."""
    return list(_CPUS if _CPUS is not None else range(os.cpu_count() or 1))


def default_num_threads() -> int:
    """``TVM_NUM_THREADS``, else ``OMP_NUM_THREADS``, else one per physical core we may use."""
    for variable in ("TVM_NUM_THREADS", "OMP_NUM_THREADS"):
        text = os.environ.get(variable, "").strip()
        if text:
            if not text.isdigit() or int(text) < 1:
                raise ValueError(f"{variable}={text!r}: expected a number of threads >= 1")
            return int(text)
    return len({_core_of(cpu) for cpu in available_cpus()})


def check_num_threads(num_threads: int | None) -> int:
    """``num_threads`` validated, or the default for None.

    Raises
    ------
    ValueError
        If it is no integer >= 1.
    """
    if num_threads is None:
        return default_num_threads()
    if isinstance(num_threads, bool) or not isinstance(num_threads, int) or num_threads < 1:
        raise ValueError(f"num_threads={num_threads!r}: expected an integer >= 1, or None")
    return num_threads


def use_threads(num_threads: int) -> None:
    """Let the next TVM calls of this thread use ``num_threads`` workers, the caller included.

    Raises
    ------
    RuntimeError
        If this thread's pool exists already and is too small.
    """
    if getattr(_current, "num_threads", None) == num_threads:
        return
    cpus = available_cpus()
    # The length of the list is the size of a pool that does not exist yet: enough for any later
    # request up to the number of cores.
    slots = (cpus * -(-num_threads // len(cpus)))[: max(num_threads, len(cpus))]
    share_all_cpus = -3
    tvm.get_global_func("runtime.config_threadpool")(
        share_all_cpus, num_threads, [str(cpu) for cpu in slots]
    )
    got = tvm.get_global_func("runtime.NumThreads")()
    if got != num_threads:
        _current.num_threads = None
        raise RuntimeError(
            f"TVM's thread pool of this thread was created with {got} workers, expected"
            f" {num_threads}; set TVM_NUM_THREADS={num_threads} before the first use of TVM, or"
            " call from a new thread"
        )
    _current.num_threads = num_threads


def _core_of(cpu: int) -> tuple[str, str]:
    """Package and core of a logical CPU; hardware threads of one core share them."""
    topology = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology")
    try:
        package = (topology / "physical_package_id").read_text().strip()
        return package, (topology / "core_id").read_text().strip()
    except OSError:
        return "", str(cpu)
