"""Executed instructions of OpenCL kernels, counted by the simulator ``oclgrind``.

It runs LLVM's code of a kernel, work_item by work_item, before any GPU's own compiler has seen it:
counts are exact for that code, and tell two kernels apart; a GPU executes others. A statement on
vectors counts once.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tvm_pattern.opencl.bundle import RUNNER

_LINE = re.compile(r"^\s*(\d+) - (.+?)(?: \((\d+) bytes\))?$")
_MULTIPLY_ADD = re.compile(r"call llvm\.fmuladd\.(?:v(\d+))?f(?:16|32)\(\)")
_LIMIT_SECONDS = 500
#: What a simulator says of wrong programs, on lines of its log.
_COMPLAINTS = ("Invalid read", "Invalid write", "data race")


class OclgrindError(RuntimeError):
    """No simulator, or a kernel that does not run in it."""


@dataclass(frozen=True)
class Executed:
    """What one launch executed, all work_items together.

    Parameters
    ----------
    total : int
        LLVM instructions.
    multiply_adds : int
        Of single elements: those of a vector count for each lane.
    global_loads, local_loads : int
        Load instructions.
    global_load_bytes : int
    barriers : int
    """

    total: int
    multiply_adds: int
    global_loads: int
    local_loads: int
    global_load_bytes: int
    barriers: int


def parse(text: str) -> Executed:
    """The histogram that ``oclgrind --inst-counts`` prints."""
    total = fmas = loads = local = size = barriers = 0
    for line in text.splitlines():
        found = _LINE.match(line)
        if not found:
            continue
        count, name, moved = int(found[1]), found[2], int(found[3] or 0)
        total += count
        product = _MULTIPLY_ADD.fullmatch(name)
        if product:
            fmas += count * int(product[1] or 1)
        if name == "load global" or re.match(r"call _Z\d+vload\d", name):
            loads += count
            size += moved
        local += count if name == "load local" else 0
        barriers += count if "barrier" in name else 0
    if not total:
        raise OclgrindError(
            f"oclgrind printed no counts of instructions; it said: {text.strip()[-300:]!r}"
        )
    return Executed(total, fmas, loads, local, size, barriers)


def count(bundle: Path, *, races: bool = False) -> Executed:
    """Run the one kernel of a bundle in the simulator; its output is checked too.

    Parameters
    ----------
    bundle : Path
        See :func:`tvm_pattern.opencl.bundle.write_bundle`; with one kernel.
    races : bool
        Look for data races, which takes longer.

    Raises
    ------
    OclgrindError
        Without ``oclgrind`` or pyopencl, when the output is wrong, or when the simulator complains
        of a read or write outside a buffer or of a race.
    """
    if shutil.which("oclgrind") is None:
        raise OclgrindError("no oclgrind; install it by `make opencl-tools`")
    options = ["--inst-counts", *(("--data-races",) if races else ())]
    command = ["oclgrind", *options, sys.executable, str(RUNNER), str(bundle), "--once"]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=_LIMIT_SECONDS
        )
    except subprocess.TimeoutExpired:
        raise OclgrindError(
            f"{bundle} takes more than {_LIMIT_SECONDS} s in oclgrind; count a smaller layer"
        ) from None
    said = done.stdout + done.stderr
    complaint = next((line for line in said.splitlines() if _is_complaint(line)), None)
    if done.returncode or complaint:
        reason = complaint or (said.strip().splitlines() or ["nothing"])[-1]
        raise OclgrindError(f"{bundle} is not right in oclgrind, which said: {reason.strip()}")
    return parse(done.stdout)


def _is_complaint(line: str) -> bool:
    return any(what.lower() in line.lower() for what in _COMPLAINTS)
