"""What runs in the builder's and runner's worker processes.

MetaSchedule hands these functions to its workers as they are. A directory holds, per token, the
arguments of the operator and the right answer; a last argument description, which describes no
argument, carries the token.
"""

from __future__ import annotations

import os
import tempfile
import time
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import tvm

ENTRY = "main"
WRONG_RESULT = "WrongResult"


class WrongResultError(ValueError):
    """A candidate computed something else than the naive operator."""


def prepare(cpu: int | None, device_kind: str) -> None:
    """Bind this process to one core if asked to, and load what its device needs."""
    if cpu is not None:
        os.sched_setaffinity(0, {cpu})
    if device_kind == "opencl":
        from tvm_pattern.opencl import load_runtime

        load_runtime()


def build_library(folder: str, compiler: str, job: Any) -> str:
    """Compile and link a MetaSchedule ``BuilderInput``; returns the path of the library.

    MetaSchedule's own build function imports intrinsics for most of a minute, and its export leaves
    linking to the device, which may have no linker.
    """
    module = tvm.compile(job.mod, job.target)
    handle, path = tempfile.mkstemp(suffix=".so", dir=folder)
    os.close(handle)
    module.export_library(path, cc=compiler)
    return path


def input_path(folder: str | Path, token: int) -> Path:
    """File of the inputs that belong to a token."""
    return Path(folder, f"inputs-{token}.npz")


@lru_cache(maxsize=2)
def _load(path: str) -> dict[str, np.ndarray]:
    with np.load(path) as data:
        return {name: data[name] for name in data.files}


def allocate(folder: str, *where: Any) -> list[dict[str, Any]]:
    """Arguments on the device; ``where`` is ``([session,] device, args_info, repeat)``."""
    device, args_info, repeat = where[-3:]
    *described, token = args_info
    path = input_path(folder, int(token[2][0]))
    data = {**_load(str(path)), **_load(str(path.with_name(str(_answer_name(path)))))}
    arrays = [data[f"a{i}"] for i in range(len(described))]
    for info, array in zip(described, arrays, strict=True):
        if [int(n) for n in info[2]] != list(array.shape):
            raise ValueError(f"argument of shape {list(info[2])}, prepared {list(array.shape)}")
    return [
        {
            "args": [tvm.runtime.tensor(a, device) for a in arrays],
            "answer": data["answer"],
            "tolerance": float(data["tolerance"]),
        }
        for _ in range(repeat)
    ]


def _answer_name(path: Path) -> str:
    return str(_load(str(path))["answer_file"])


#: What bytes are before a candidate writes them.
UNSET_BYTE = 0xA5


def unset(shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """An output that nobody has written: NaN, and of bytes one that a row seldom holds."""
    value = np.nan if np.issubdtype(np.dtype(dtype), np.floating) else UNSET_BYTE
    return np.full(shape, value, dtype)


def clear_output(case: dict[str, Any]) -> None:
    """Overwrite the answer of an earlier candidate, so that gaps are seen."""
    out = case["args"][-1]
    out.copyfrom(unset(tuple(map(int, out.shape)), str(out.dtype)))


def size_of(case: dict[str, Any]) -> int:
    """Bytes of a case's arguments on the device."""
    return sum(int(np.prod(a.shape)) * np.dtype(a.dtype).itemsize for a in case["args"])


def check(case: dict[str, Any]) -> None:
    """Compare the output with the right answer, which is NaN where anything may stand.

    Raises
    ------
    WrongResultError
        If they differ by more than the tolerance, or the output holds a NaN.
    """
    got, answer = case["args"][-1].numpy().astype(np.float32), case["answer"].astype(np.float32)
    error = np.abs(got - answer)[~np.isnan(answer)].max()
    if not error <= case["tolerance"]:
        raise WrongResultError(
            f"{WRONG_RESULT}: the output differs from the naive operator by {error:.3g}, allowed"
            f" are {case['tolerance']:.3g}"
        )


def evaluate(*call: Any) -> list[float]:
    """Verify, then time on the wall clock.

    ``call`` is ``([session,] module, device, config, cases)``.

    Returns
    -------
    list of float
        Seconds of one call, per repeat.
    """
    module, device, config, cases = call[-4:]
    times: list[float] = []
    for case in cases:
        module[ENTRY](*case["args"])
        device.sync()
        check(case)
        evaluator = module.time_evaluator(
            ENTRY,
            device,
            number=config.number,
            repeat=config.repeat,
            min_repeat_ms=config.min_repeat_ms,
        )
        times += [float(t) for t in evaluator(*case["args"]).results]
    return times


def evaluate_cpu_clock(*call: Any) -> list[float]:
    """Like :func:`evaluate`, counting only the time this process computed.

    For a machine that is shared with other work; local, single-threaded operators only.
    """
    module, _device, config, cases = call[-4:]
    times: list[float] = []
    for case in cases:
        function = module[ENTRY]
        arguments = case["args"]
        function(*arguments)
        check(case)
        start = time.process_time()
        function(*arguments)
        once = max(1e-7, time.process_time() - start)
        number = max(config.number, int(config.min_repeat_ms * 1e-3 / once))
        for _ in range(config.repeat):
            start = time.process_time()
            for _ in range(number):
                function(*arguments)
            times.append((time.process_time() - start) / number)
    return times
