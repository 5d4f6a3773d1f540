"""What is fetched before its use: every kind of prefetch is there, and only where it is asked for.

Results say nothing of prefetches, so the generated code is read.
"""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import tvm
from conv_cases import HOST_TARGET, ConvCase, pattern_weights

from topi_kernels.operator import ConvPlan
from topi_kernels.schedules.config import ConvConfig
from topi_kernels.vector import CACHE_LINE_FLOATS

POINT = np.ones((1, 1, 1), bool)
PREFETCH = r'"llvm\.prefetch", T\.address_of\((\w+)\[.*\]\), (\d), (\d), 1\)'


def in_the_code(plan: ConvPlan) -> list[tuple[str, str, str]]:
    """(buffer, rw, locality) of every prefetch of the PrimFunc."""
    return re.findall(PREFETCH, plan.primfunc().script())


def with_knobs(plan: ConvPlan, **knobs: int) -> ConvPlan:
    return replace(plan, config=replace(plan.config, **knobs))


def input_lines(plan: ConvPlan) -> int:
    """Cache lines of input of one kernel of each pattern, counted output by output."""
    config, geometry = plan.config, plan.workload.geometry
    total = 0
    for pattern in plan.workload.patterns:
        lines = set()
        tile = product(range(config.tile_rows), range(config.tile_cols), pattern.taps)
        for r, c, (kh, kw) in tile:
            row = r * geometry.stride[0] + kh - geometry.padding[0]
            column = c * config.pixel_lanes * geometry.stride[1] + kw - geometry.padding[1]
            lines.add((row, column // CACHE_LINE_FLOATS))
        total += len(lines)
    return total


@pytest.mark.parametrize(
    ("config", "case"),
    [
        (ConvConfig(16, 1, 1, 2, 1), ConvCase()),
        (ConvConfig(16, 4, 1, 3, 2), ConvCase()),
        (ConvConfig(16, 16, 1, 2, 4), ConvCase(stride=(2, 2))),
        (ConvConfig(16, 1, 2, 2, 2), ConvCase(28, 28)),
    ],
    ids=["pixels", "mixed", "filters", "wide"],
)
def test_a_kernel_fetches_each_line_of_another_once(config: ConvConfig, case: ConvCase) -> None:
    weight = pattern_weights(32, 16, group=config.group)
    plan = with_knobs(replace(case, config=config).plan(weight), fetch_ahead=False)
    found = in_the_code(plan)
    assert len(found) == input_lines(plan) > 0
    assert {place[1:] for place in found} == {("0", "3")}
    assert in_the_code(with_knobs(plan, prefetch=0)) == []


@pytest.mark.parametrize(("in_channels", "ahead"), [(16, 4), (300, 1)])
def test_as_many_kernels_ahead_as_the_knob_says(in_channels: int, ahead: int) -> None:
    """Differences of in_channels add up along the list: there only the next is known."""
    config = ConvConfig(16, 1, 1, 2, 1, prefetch=4)
    text = ConvCase(config=config).plan(pattern_weights(8, in_channels)).primfunc().script()
    assert set(re.findall(r"in_channel\[\w+ \+ (\d+)\]", text)) == {str(ahead)}


def test_outputs_and_the_next_tile_are_fetched_ahead() -> None:
    plan = ConvCase(56, 56).plan(pattern_weights(32, 16, group=4))
    assert plan.config.fetch_ahead
    ahead = [("0", "2"), ("1", "3")]  # the next tile's input into L2; outputs, for writing
    found = {place[1:] for place in in_the_code(plan)}
    assert found.issuperset(ahead)
    quiet = {place[1:] for place in in_the_code(with_knobs(plan, fetch_ahead=False))}
    assert quiet.isdisjoint(ahead)


def test_residuals_are_fetched_for_reading() -> None:
    config = ConvConfig(16, 1, 2, 3, 1, prefetch=0)
    weight = pattern_weights(32, 16, group=2)
    plans = [ConvCase(residual=r, config=config).plan(weight) for r in (False, True)]
    counts = [[place[1:] for place in in_the_code(p)].count(("0", "3")) for p in plans]
    lines = config.group * config.tile_rows  # one of 16 pixels per output row
    assert counts == [0, lines]


def test_one_tile_has_no_next_one() -> None:
    config = ConvConfig(16, 16, 1, 3, 7)
    plan = ConvCase(3, 7, config=config).plan(pattern_weights(32, 16, group=16))
    assert plan.config.fetch_ahead
    found = {place[1:] for place in in_the_code(plan)}
    assert ("1", "3") in found
    assert ("0", "2") not in found


def test_lists_of_a_block_are_fetched() -> None:
    """Weights of a list of the mean length, with the line it may begin in, and its in_channels."""
    config = ConvConfig(16, 1, 1, 2, 1, 1, prefetch=0, channel_block=16)
    weight = pattern_weights(64, 256, masks=POINT, connectivity=2.0)
    plan = ConvCase(padding=(0, 0), config=config).plan(weight)
    buffers = [name for name, *_ in in_the_code(plan)]
    per_block = 256 // 2 // (256 // 16)
    assert buffers.count("weights") == -(-(per_block + CACHE_LINE_FLOATS) // CACHE_LINE_FLOATS)
    assert buffers.count("in_channel") == 1
    whole = [name for name, *_ in in_the_code(with_knobs(plan, channel_block=0))]
    assert "weights" not in whole


def test_prefetches_reach_the_machine_code() -> None:
    plan = ConvCase(56, 56).plan(pattern_weights(32, 16, group=4))
    text = tvm.compile(plan.primfunc(), target=HOST_TARGET).mod.inspect_source("ll")
    found = re.findall(r"call void @llvm\.prefetch[^(]*\(ptr[^,]*, i32 (\d), i32 (\d)", text)
    assert set(found) == {("0", "3"), ("0", "2"), ("1", "3")}
