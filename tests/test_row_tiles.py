"""Tiles of even rows, and several sums per output."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from conv_cases import ConvCase, assert_case, pattern_weights, run_case
from hypothesis import given
from hypothesis import strategies as st

from topi_kernels.geometry import ConvGeometry
from topi_kernels.layout_choice import ConvNeed, LaneOrder
from topi_kernels.operator import wasted_share
from topi_kernels.schedules.config import ConvConfig
from topi_kernels.structure import determine

ROWS = ConvConfig(16, 1, 1, 3, 1, even_rows=True)
LANES = replace(ROWS, shift="lanes", tile_cols=2)
CHAINS = ConvConfig(8, 1, 1, 7, 1, chains=2)


@given(height=st.integers(1, 200), rows=st.integers(1, 30))
def test_even_tiles_cover_every_row_once(height: int, rows: int) -> None:
    rows = min(rows, height)
    moved_back = ConvConfig(16, 1, 1, rows, 1)
    tiles = replace(moved_back, even_rows=True).row_tiles(height)
    heights = [r for r, number in tiles for _ in range(number)]
    assert sum(heights) == height
    assert rows >= max(heights) >= min(heights) >= max(heights) - 1
    assert heights == sorted(heights, reverse=True)
    # As many tiles as without, so none is taller than need be.
    assert moved_back.row_tiles(height) == ((rows, len(heights)),)


@pytest.mark.parametrize(
    ("case", "group"),
    [
        (ConvCase(7, 11, batch=2, config=ROWS, activation="relu", residual=True), 1),
        (ConvCase(8, 13, config=replace(ROWS, loop_order="filter_outer"), threads=2), 1),
        (ConvCase(15, 30, stride=(2, 2), config=replace(ROWS, filter_vectors=2)), 2),
        (ConvCase(28, 28, batch=2, config=LANES, lanes=LaneOrder(16, 4, 1), threads=2), 1),
        (ConvCase(11, 30, config=replace(LANES, filter_vectors=2), lanes=LaneOrder(16, 1)), 2),
    ],
    ids=["rows", "filter outer", "stride 2", "bands", "one band"],
)
def test_tiles_of_two_heights_match_torch(case: ConvCase, group: int) -> None:
    assert_case(case, pattern_weights(6, 9, group=group, connectivity=2))


@pytest.mark.parametrize("kernel", [1, 3])
def test_blocks_of_channels_in_tiles_of_two_heights_match_torch(kernel: int) -> None:
    """Partial sums wait in a workspace of each height's size; 10 rows are 4, 3 and 3."""
    weight = np.random.default_rng(0).standard_normal((5, 10, kernel, kernel)).astype(np.float32)
    weight[:, ::3] = 0
    config = replace(ROWS, tile_rows=4, channel_block=4, prefetch=0)
    lists = replace(config, taps_per_step=1, body="taps")
    pad = kernel // 2
    for knobs in (config, lists):
        case = ConvCase(10, 17, padding=(pad, pad), config=knobs, batch=2)
        assert_case(case, weight)


def test_no_row_is_computed_twice() -> None:
    weight = pattern_weights(4, 8)
    even, moved = (
        ConvCase(7, 16, config=replace(ROWS, even_rows=value)).plan(weight)
        for value in (True, False)
    )
    assert wasted_share(even) == 0
    assert wasted_share(moved) == pytest.approx(1 - 7 / 9)


@pytest.mark.parametrize("chains", [2, 3])
def test_several_sums_per_output_match_torch(chains: int) -> None:
    config = replace(CHAINS, chains=chains)
    weight = pattern_weights(6, 40, connectivity=2)
    case = ConvCase(7, 7, config=config, activation="relu", residual=True)
    assert_case(case, weight)
    dense = np.random.default_rng(1).standard_normal((3, 5, 3, 3)).astype(np.float32)
    assert_case(replace(case, config=replace(config, taps_per_step=3)), dense)


def test_several_sums_are_one_order_whatever_the_threads() -> None:
    weight = pattern_weights(16, 12)
    case = ConvCase(7, 7, batch=2, config=CHAINS)
    one, two = (run_case(replace(case, threads=n), weight)[0] for n in (1, 2))
    np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"chains": 0}, "chains 0 is not in 1..4"),
        ({"chains": 5}, "chains 5 is not in 1..4"),
        ({"chains": 4}, "28 accumulators exceed the budget of 24"),
        ({"channel_block": 4, "prefetch": 0}, "chains must be 1"),
        ({"body": "taps", "taps_per_step": 1, "prefetch": 0}, "one sum per output"),
    ],
)
def test_impossible_chains_are_refused(change: dict, why: str) -> None:
    task = ConvCase(7, 7, config=CHAINS).plan(pattern_weights(4, 8)).task
    assert task.illegal_reason(CHAINS) is None
    assert why in str(task.illegal_reason(replace(CHAINS, **change)))


def test_small_maps_have_enough_sums_in_flight() -> None:
    """7 sums or 4 per output would wait for the multiply-adds of two ports."""
    weight = pattern_weights(64, 256)
    need = ConvNeed(ConvGeometry((3, 3), padding=(1, 1)), (64, 256), determine(weight), 1)
    layout = LaneOrder(16, 2).layout(7, 7, 1, 0)
    task = need.task(layout, layout, "x86-avx512")
    config = task.default_config()
    assert config.chains == 2
    assert config.accumulators >= task.machine.fma_ports * task.machine.fma_latency
    assert task.cost(config) < task.cost(replace(config, chains=1))


def test_odd_bands_get_tiles_of_even_rows() -> None:
    """28 rows in 4 bands are 7: a tile of two rows would compute the last one twice."""
    weight = pattern_weights(128, 128)
    need = ConvNeed(ConvGeometry((3, 3), padding=(1, 1)), (128, 128), determine(weight), 1)
    layout = LaneOrder(16, 4).layout(28, 28, 1, 0)
    task = need.task(layout, layout, "x86-avx512")
    config = task.default_config()
    assert config.even_rows
    assert config.computed_rows(7) == 7
    assert task.cost(config) < task.cost(replace(config, even_rows=False))
