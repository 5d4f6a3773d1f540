"""Kernels of one tap on copied tiles: the operator, what level 0 makes of it, its inner loop."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import tvm
from conv_cases import ConvCase, assert_case, run_case
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from benchmarks.assembly import inner_loops
from topi_kernels.conv_task import ConvTask
from topi_kernels.geometry import ConvGeometry
from topi_kernels.layout_choice import LaneOrder, default_layout
from topi_kernels.schedules.config import COPIED, TAPS, ConvConfig
from topi_kernels.schedules.tile_copy import why_not_copied
from topi_kernels.tap_lists import TapCode, pack_taps, unpack_taps, validate_taps

LANES = {"x86-avx512": 16, "x86-avx2": 8, "arm-neon": 4}


def config_of(lanes: int, rows: int, cols: int, filters: int = 1, **knobs: object) -> ConvConfig:
    base = ConvConfig(lanes, 1, filters, rows, cols, taps_per_step=1, prefetch=0, body=COPIED)
    return dataclasses.replace(base, **{"channel_block": 8, **knobs})


def weights_of(out_channels: int, in_channels: int, group: int, density: float) -> np.ndarray:
    rng = np.random.default_rng(0)
    kept = rng.random((-(-out_channels // group), in_channels)) < density
    weight = rng.standard_normal((out_channels, in_channels, 1, 1)).astype(np.float32)
    return weight * np.repeat(kept, group, axis=0)[:out_channels, :, None, None]


@pytest.mark.parametrize("block", [1, 3, 7, 9])
def test_offsets_count_in_channels_of_the_block(block: int) -> None:
    weight = weights_of(6, 7, 2, 0.5)
    lists = pack_taps(weight, 2, TapCode.of_copies(7, block, 96, 8), weight != 0)
    validate_taps(lists)
    np.testing.assert_array_equal(unpack_taps(lists), weight)
    assert lists.offset.dtype == np.uint16
    assert lists.offset.max(initial=0) <= (block - 1) * 96 // 8


@settings(max_examples=15, deadline=None)
@given(data=st.data(), group=st.sampled_from([1, 2, 4]))
def test_any_layer_matches_torch(data, group) -> None:
    """Widths, strides, batch, threads, blocks, empty and full layers, plain and interleaved."""
    family = data.draw(st.sampled_from(sorted(LANES)))
    lanes = LANES[family]
    interleaved = data.draw(st.booleans())
    stride = 1 if interleaved else data.draw(st.integers(1, 3))
    height, width = data.draw(st.integers(stride, 20)), data.draw(st.integers(stride, 130))
    order = LaneOrder(lanes, 1, 0) if interleaved else None
    out_width = -(-width // stride)
    columns = -(-out_width // lanes)
    rows = data.draw(st.integers(1, min(3, -(-height // stride))))
    cols = data.draw(st.integers(1, min(columns, 2)))
    shift = "lanes" if interleaved else "load"
    block = data.draw(st.sampled_from([1, 3, 100]))
    config = config_of(lanes, rows, cols, group, shift=shift, channel_block=block)
    out_channels, in_channels = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 9))
    weight = weights_of(out_channels, in_channels, group, data.draw(st.sampled_from([0, 0.3, 1])))
    case = ConvCase(
        height,
        width,
        batch=data.draw(st.integers(1, 2)),
        padding=(0, 0),
        stride=(stride, stride),
        bias=data.draw(st.booleans()),
        residual=data.draw(st.booleans()),
        activation=data.draw(st.sampled_from(["none", "relu", "silu"])),
        family=family,
        threads=data.draw(st.sampled_from([1, 2])),
        out_pad=data.draw(st.integers(0, 2)),
        lanes=order,
        config=config,
    )
    task = dataclasses.replace(case, config=None).plan(weight).task
    assume(task.unschedulable_reason(config) is None)
    assert_case(case, weight)


def test_the_naive_operator_reads_the_same_lists() -> None:
    case = ConvCase(9, 11, padding=(0, 0), stride=(2, 2), family="x86-avx2")
    case = dataclasses.replace(case, config=config_of(8, 2, 1, channel_block=3))
    assert_case(case, weights_of(4, 7, 1, 0.5), naive=True)


@pytest.mark.parametrize("block", [1, 5, 64])
def test_neither_blocks_nor_threads_change_a_bit(block: int) -> None:
    weight = weights_of(32, 40, 1, 0.4)
    case = ConvCase(12, 14, padding=(0, 0), batch=2, family="x86-avx2")
    whole = dataclasses.replace(case, config=config_of(8, 3, 2, channel_block=40))
    wanted, _, _ = run_case(whole, weight)
    for threads in (1, 2):
        config = config_of(8, 3, 2, channel_block=block)
        other = dataclasses.replace(case, config=config, threads=threads)
        np.testing.assert_array_equal(wanted, run_case(other, weight)[0])


@pytest.mark.parametrize("order", [None, LaneOrder(8, 2, 0)])
def test_tiles_read_in_place_give_the_same_bits(order: LaneOrder | None) -> None:
    """Tap lists of one tap, all in_channels at once and in blocks that do not divide them."""
    weight = weights_of(32, 40, 2, 0.4)
    shift = "lanes" if order else "load"
    copied = config_of(8, 3, 1, 2, channel_block=40, shift=shift)
    case = ConvCase(12, 14, padding=(0, 0), batch=2, family="x86-avx2", lanes=order, config=copied)
    assert_case(case, weight)
    wanted, _, _ = run_case(case, weight)
    for block in (0, 7, 40):
        config = dataclasses.replace(copied, body=TAPS, channel_block=block)
        other = dataclasses.replace(case, config=config)
        np.testing.assert_array_equal(wanted, run_case(other, weight)[0])


@pytest.mark.parametrize(
    ("knobs", "match"),
    [
        ({"channel_block": 0}, "body copied needs a channel_block"),
        ({"prefetch": 1}, "body copied works off one tap at a time"),
        ({"shift": "split"}, "needs lanes over pixels, and shift load or lanes"),
        ({"tile_rows": 8, "tile_cols": 2}, "16 accumulators exceed the budget of 15"),
    ],
)
def test_illegal_configurations_say_why(knobs: dict, match: str) -> None:
    config = config_of(8, 2, 2, **knobs)
    case = ConvCase(14, 14, padding=(0, 0), family="x86-avx2", config=config)
    with pytest.raises(ValueError, match=match):
        case.plan(weights_of(8, 8, 1, 0.5))


def test_more_taps_and_padding_are_not_copied() -> None:
    assert why_not_copied(ConvGeometry((1, 1), stride=(2, 2))) is None
    for geometry in (ConvGeometry((3, 3)), ConvGeometry((1, 1), padding=(1, 1))):
        assert "kernels of one tap without padding" in str(why_not_copied(geometry))
    config = config_of(8, 2, 1)
    case = ConvCase(8, 8, family="x86-avx2", config=config)
    with pytest.raises(ValueError, match="kernels of one tap without padding"):
        case.plan(np.ones((4, 4, 3, 3), np.float32))


def _task(out_channels: int, in_channels: int, size: int, density: float, stride: int = 1):
    weight = weights_of(out_channels, in_channels, 1, density)
    source = default_layout(size, size, 0, "x86-avx2")
    result = default_layout(size // stride, size // stride, 0, "x86-avx2")
    geometry = ConvGeometry((1, 1), stride=(stride, stride))
    return ConvTask.from_weight(weight, geometry, source, result, family="x86-avx2")


def test_level_0_copies_where_many_filters_read_a_tile() -> None:
    """The block of a tile stays in 32 KB; what few filters read is read in place."""
    config = _task(256, 1024, 14, 0.28).default_config()
    assert config.body == COPIED
    floats = config.tile_rows * config.tile_cols * config.vector_width
    assert 4 * config.channel_block * floats <= 32 * 1024
    assert _task(256, 512, 28, 0.28, stride=2).default_config().body == COPIED
    assert _task(16, 64, 56, 0.28).default_config().body == TAPS
    assert all(c.body != COPIED for c in _task(64, 64, 14, 1.0).configs())


@pytest.mark.parametrize(
    ("mcpu", "lanes", "tile"),
    [
        ("x86-64-v3", 8, (7, 2, 1)),
        ("x86-64-v3", 8, (3, 2, 2)),
        ("x86-64-v3", 8, (1, 2, 4)),
        ("x86-64-v4", 16, (14, 1, 1)),
        ("x86-64-v4", 16, (5, 1, 4)),
    ],
)
def test_the_loop_is_multiply_adds_alone(mcpu, lanes, tile) -> None:
    """No store, no stack, no shuffle; every input is loaded once, every weight broadcast once."""
    rows, cols, filters = tile
    family = "x86-avx2" if lanes == 8 else "x86-avx512"
    config = config_of(lanes, rows, cols, filters, channel_block=64)
    case = ConvCase(14, 14, padding=(0, 0), family=family, config=config)
    plan = case.plan(weights_of(32, 256, filters, 0.3))
    target = tvm.target.Target({"kind": "llvm", "mcpu": mcpu})
    loops = inner_loops(tvm.compile(plan.primfunc(), target).mod.inspect_source("asm"))
    entries, rest = divmod(loops[0].fma, rows * cols * filters)  # LLVM may take two at once
    assert rest == 0
    assert loops[0].loads == entries * (rows * cols + filters)
    assert loops[0].stores == loops[0].stack == loops[0].shuffles == 0
