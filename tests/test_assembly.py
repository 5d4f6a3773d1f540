"""What LLVM really makes of the register_tiles: read off the generated assembly."""

from __future__ import annotations

import re
from dataclasses import dataclass

import pytest
import tvm
from conv_cases import ConvCase, pattern_weights
from topi_kernels.operator import ConvPlan

TARGETS = {
    "x86-avx512": tvm.target.Target({"kind": "llvm", "mcpu": "sapphirerapids"}),
    "x86-avx2": tvm.target.Target({"kind": "llvm", "mcpu": "haswell"}),
}


@dataclass(frozen=True)
class InnerLoop:
    """Counts over one innermost loop that multiplies and adds."""

    fma: int
    loads: int
    stores: int
    stack: int


def inner_loops(plan: ConvPlan, family: str) -> list[InnerLoop]:
    """Innermost loops with FMAs of the operator's assembly (AT&T syntax)."""
    library = tvm.compile(plan.primfunc(), target=TARGETS[family])
    lines = library.mod.inspect_source("asm").splitlines()
    labels = {line.split(":")[0]: n for n, line in enumerate(lines) if re.match(r"\.L\w+:", line)}
    loops = []
    for end, line in enumerate(lines):
        jump = re.match(r"\s+j\w+\s+(\.L\w+)", line)
        start = labels.get(jump.group(1)) if jump else None
        if start is None or start >= end:
            continue
        body = [t for t in lines[start:end] if t.startswith("\t") and not t.startswith("\t.")]
        if any(re.match(r"\tj\w+\s+\.L", t) for t in body):
            continue
        fma = [t for t in body if "vfmadd" in t]
        if not fma:
            continue
        vector = [t for t in body if re.search(r"%[xyz]mm", t)]
        reads = [t for t in vector if re.search(r"\(%\w+.*\).*,\s*%[xyz]mm", t)]
        stores = [t for t in vector if re.search(r"%[xyz]mm\d+,\s*[^,]*\(%[^)]*\)$", t)]
        stack = [t for t in vector if "(%rsp" in t or "(%rbp)" in t]
        loops.append(InnerLoop(len(fma), len(reads), len(stores), len(stack)))
    return loops


CASES = [
    ("x86-avx512", 1, 56),
    ("x86-avx512", 1, 28),
    ("x86-avx512", 1, 14),
    ("x86-avx512", 2, 28),
    ("x86-avx512", 4, 56),
    ("x86-avx512", 4, 28),
    ("x86-avx512", 8, 28),
    ("x86-avx512", 16, 14),
    ("x86-avx512", 16, 7),
    ("x86-avx2", 1, 28),
    ("x86-avx2", 4, 28),
    ("x86-avx2", 8, 14),
]


@pytest.mark.parametrize(("family", "group", "size"), CASES)
def test_accumulators_stay_in_registers(family: str, group: int, size: int) -> None:
    """One loop per pattern; in none of them a store, a spill, or an FMA too many."""
    plan = ConvCase(size, size, family=family).plan(pattern_weights(64, 64, group=group))
    loops = inner_loops(plan, family)
    expected = plan.config.accumulators * 4
    assert len(loops) == 8
    for loop in loops:
        assert loop.fma == expected
        assert loop.stores == 0
        assert loop.stack == 0


@pytest.mark.parametrize(
    ("family", "group", "size"), [c for c in CASES if c[0] == "x86-avx512" or c[1] > 1]
)
def test_loads_are_shared_by_taps_and_filters(family: str, group: int, size: int) -> None:
    """Fewer loads than FMAs in every loop; without sharing there would be one per FMA."""
    plan = ConvCase(size, size, family=family).plan(pattern_weights(64, 64, group=group))
    for loop in inner_loops(plan, family):
        assert loop.loads < loop.fma


def test_dense_goes_through_the_same_loop() -> None:
    import numpy as np

    weight = np.random.default_rng(0).standard_normal((64, 64, 3, 3)).astype(np.float32)
    plan = ConvCase(56, 56).plan(weight)
    loops = inner_loops(plan, "x86-avx512")
    assert len(loops) == 1
    assert loops[0].fma == 9 * plan.config.accumulators
    assert loops[0].stores == 0 and loops[0].stack == 0


def test_no_workspace_is_allocated() -> None:
    plan = ConvCase(28, 28).plan(pattern_weights(16, 16))
    library = tvm.compile(plan.primfunc(), target=TARGETS["x86-avx512"])
    assert "call ptr @TVMBackendAllocWorkspace" not in library.mod.inspect_source("ll")
    assert not re.search(r"call.*AllocWorkspace", library.mod.inspect_source("ll"))
