"""In_channels in blocks: the same sums in the same order, whatever the block."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from conv_cases import ConvCase, assert_case, pattern_weights, run_case
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from topi_kernels.backend import default_layout
from topi_kernels.schedules.config import ConvConfig


@settings(max_examples=15, deadline=None)
@given(
    data=st.data(),
    kernel=st.sampled_from([(1, 1), (3, 3)]),
    lanes=st.sampled_from([(16, 1, 1), (16, 1, 2), (16, 4, 1), (16, 16, 1), (8, 1, 1)]),
    in_channels=st.sampled_from([1, 7, 40, 300, 600]),
    seed=st.integers(0, 99),
)
def test_blocks_match_torch(data, kernel, lanes, in_channels, seed) -> None:
    """Lists that end before, at and beyond a block; differences beyond 256 in_channels."""
    rng = np.random.default_rng(seed)
    vector_width, filter_lanes, filter_vectors = lanes
    group = filter_lanes * filter_vectors
    out_channels = group * data.draw(st.integers(1, 3)) + data.draw(st.integers(0, group - 1))
    case = ConvCase(
        data.draw(st.integers(3, 9)),
        data.draw(st.integers(3, 20)),
        batch=data.draw(st.integers(1, 2)),
        padding=(kernel[0] // 2, kernel[1] // 2),
        residual=data.draw(st.booleans()),
        activation="relu",
        threads=data.draw(st.sampled_from([1, 2])),
    )
    pixels = vector_width // filter_lanes
    columns = -(-case.width // pixels)
    row_stride = default_layout(case.height, case.width, case.out_pad, case.family).row_stride
    assume(columns * pixels <= row_stride)
    config = ConvConfig(
        vector_width,
        filter_lanes,
        filter_vectors,
        data.draw(st.integers(1, 3)),
        data.draw(st.integers(1, min(columns, 3))),
        taps_per_step=min(4, kernel[0] * kernel[1]),
        prefetch=data.draw(st.integers(0, 2)),
        channel_block=data.draw(st.sampled_from([1, 3, 16, 256, 1000])),
    )
    weight = rng.standard_normal((out_channels, in_channels, *kernel)).astype(np.float32)
    kept = rng.random((-(-out_channels // group), in_channels, 1, 1))
    kept = kept < data.draw(st.sampled_from([0.0, 0.05, 0.4]))
    weight *= np.repeat(kept, group, axis=0)[:out_channels]
    assert_case(dataclasses.replace(case, config=config), weight)


@pytest.mark.parametrize("block", [1, 5, 64])
def test_blocks_do_not_change_a_bit(block: int) -> None:
    """Partial sums wait in float32, so one pattern's sum has one order."""
    weight = pattern_weights(32, 40, masks=np.ones((1, 1, 1), bool), connectivity=2.0)
    config = ConvConfig(16, 1, 1, 3, 1, taps_per_step=1)
    case = ConvCase(9, 14, padding=(0, 0), config=config)
    whole, _, _ = run_case(case, weight)
    blocked = dataclasses.replace(case, config=dataclasses.replace(config, channel_block=block))
    assert np.array_equal(whole, run_case(blocked, weight)[0])


def test_wide_1x1_layers_are_blocked_by_default() -> None:
    weight = pattern_weights(64, 512, masks=np.ones((1, 1, 1), bool))
    plan = ConvCase(28, 28, padding=(0, 0)).plan(weight)
    assert 0 < plan.config.channel_block < 512
    assert ConvCase(28, 28).plan(pattern_weights(64, 64)).config.channel_block == 0
    generic = ConvCase(28, 28, padding=(0, 0), family="arm-neon").plan(weight)
    assert generic.config.channel_block == 0


def test_blocks_need_the_tile_loop_outside() -> None:
    config = ConvConfig(16, 1, 1, 2, 1, loop_order="filter_outer", channel_block=8)
    with pytest.raises(ValueError, match="channel_block 8 needs loop_order tile_outer"):
        ConvCase(14, 14, config=config).plan(pattern_weights(16, 16))


def test_older_records_have_no_blocks() -> None:
    config = ConvConfig(16, 1, 1, 2, 1)
    data = config.as_dict()
    del data["channel_block"]
    assert ConvConfig.from_dict(data) == config
    del data["tile_cols"]
    with pytest.raises(ValueError, match=r"lacks \['tile_cols'\]"):
        ConvConfig.from_dict(data)
