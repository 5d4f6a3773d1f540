"""What LLVM really makes of the register_tiles: read off the generated assembly."""

from __future__ import annotations

import numpy as np
import pytest
import tvm
from conv_cases import ConvCase, pattern_weights

from benchmarks.assembly import InnerLoop, inner_loops
from topi_kernels.operator import ConvPlan
from topi_kernels.schedules.config import ConvConfig

TARGETS = {
    "x86-avx512": tvm.target.Target({"kind": "llvm", "mcpu": "sapphirerapids"}),
    "x86-avx2": tvm.target.Target({"kind": "llvm", "mcpu": "haswell"}),
}


def loops_of(plan: ConvPlan, family: str) -> list[InnerLoop]:
    library = tvm.compile(plan.primfunc(), target=TARGETS[family])
    return inner_loops(library.mod.inspect_source("asm"))


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
    loops = loops_of(plan, family)
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
    for loop in loops_of(plan, family):
        assert loop.loads < loop.fma


def blocked_loops(config: ConvConfig | None, group: int) -> tuple[ConvConfig, list[InnerLoop]]:
    """Loops with multiply-adds of a pruned 1x1 layer in blocks of in_channels."""
    one = np.ones((1, 1, 1), bool)
    case = ConvCase(28, 28, padding=(0, 0), config=config)
    plan = case.plan(pattern_weights(64, 512, group=group, masks=one))
    assert plan.config.channel_block
    return plan.config, [loop for loop in loops_of(plan, "x86-avx512") if loop.fma]


@pytest.mark.parametrize(("filters", "rows", "cols"), [(1, 7, 1), (2, 4, 2)])
def test_blocks_of_in_channels_keep_the_inner_loop(filters: int, rows: int, cols: int) -> None:
    """The loop over a block's kernels ends by its in_channel; its body is the same."""
    tile = ConvConfig(16, 1, filters, rows, cols, taps_per_step=1, channel_block=64)
    config, loops = blocked_loops(tile, filters)
    assert [loop.fma for loop in loops] == [config.accumulators]
    assert loops[0].stores == loops[0].stack == 0


@pytest.mark.parametrize(("group", "turns"), [(1, [2, 1]), (4, [2])])
def test_lists_over_blocks_take_two_entries_a_turn(group: int, turns: list[int]) -> None:
    """Level 0's lists; a last single entry may stand in the loop over filters, with its stores."""
    config, loops = blocked_loops(None, group)
    assert config.body == "taps"
    assert [loop.fma for loop in loops] == [n * config.accumulators for n in turns]
    assert loops[0].stores == 0
    assert all(loop.stack == 0 for loop in loops)


@pytest.mark.parametrize("group", [1, 4])
def test_stride_2_keeps_accumulators_in_registers(group: int) -> None:
    plan = ConvCase(56, 56, stride=(2, 2)).plan(pattern_weights(64, 64, group=group))
    loops = [loop for loop in loops_of(plan, "x86-avx512") if loop.fma]
    assert [loop.fma for loop in loops] == [4 * plan.config.accumulators] * 8
    assert not [loop for loop in loops if loop.stores or loop.stack]


def test_dense_goes_through_the_same_loop() -> None:
    weight = np.random.default_rng(0).standard_normal((64, 64, 3, 3)).astype(np.float32)
    plan = ConvCase(56, 56, winograd=False).plan(weight)
    loops = loops_of(plan, "x86-avx512")
    assert len(loops) == 1
    assert loops[0].fma == 9 * plan.config.accumulators
    assert loops[0].stores == 0
    assert loops[0].stack == 0


def test_no_workspace_is_allocated() -> None:
    plan = ConvCase(28, 28).plan(pattern_weights(16, 16))
    library = tvm.compile(plan.primfunc(), target=TARGETS["x86-avx512"])
    calls = [t for t in library.mod.inspect_source("ll").splitlines() if " call " in t]
    assert calls
    assert not [t for t in calls if "Workspace" in t]


def test_the_parser_reads_an_innermost_loop() -> None:
    text = """
.LBB0_1:
\tvmovups\t(%rax), %zmm0
.LBB0_2:
\tvbroadcastss\t4(%rcx), %zmm1
\tvfmadd231ps\t(%rdx){1to16}, %zmm1, %zmm2
\tvpermps\t%zmm3, %zmm4, %zmm5
\tvmovups\t%zmm2, 64(%rsp)
\tjne\t.LBB0_2
\tjne\t.LBB0_1
"""
    assert inner_loops(text) == [InnerLoop(fma=1, loads=2, stores=1, shuffles=1, stack=1)]
