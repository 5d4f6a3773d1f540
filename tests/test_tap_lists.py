"""Layers as flat lists of (offset, weight): the lists, and the operator that works them off."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import tvm
from conv_cases import ConvCase, assert_case, pattern_weights, run_case
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from benchmarks.assembly import inner_loops
from topi_kernels.geometry import ConvGeometry
from topi_kernels.layout import PlaneLayout, band_choices
from topi_kernels.layout_choice import LaneOrder
from topi_kernels.schedules.config import ConvConfig
from topi_kernels.tap_lists import (
    TapCode,
    TapLists,
    pack_taps,
    unpack_taps,
    validate_taps,
    why_no_tap_lists,
)

SAME_3X3 = ConvGeometry((3, 3), padding=(1, 1))
LAYOUT = PlaneLayout.make(6, 9, 1)
LANES = {"x86-avx512": 16, "x86-avx2": 8, "arm-neon": 4}


def taps_config(lanes: int, rows: int, cols: int, **knobs: object) -> ConvConfig:
    base = ConvConfig(lanes, 1, 1, rows, cols, taps_per_step=1, shift="lanes", prefetch=0)
    return dataclasses.replace(base, body="taps", **knobs)


# -- the lists -----------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    group=st.sampled_from([1, 2, 4]),
    block=st.integers(0, 9),
    in_channels=st.integers(1, 8),
    density=st.sampled_from([0.0, 0.3, 1.0]),
    dense=st.booleans(),
    seed=st.integers(0, 99),
)
def test_unpacking_gives_the_weights_back(group, block, in_channels, density, dense, seed) -> None:
    rng = np.random.default_rng(seed)
    weight = rng.standard_normal((6, in_channels, 3, 3)).astype(np.float32)
    weight *= np.repeat(rng.random((3, in_channels, 3, 3)) < density, 2, axis=0)
    code = TapCode.of(SAME_3X3, LAYOUT, in_channels, block)
    lists = pack_taps(weight, group, code, weight != 0, share_all=dense)
    validate_taps(lists)
    np.testing.assert_array_equal(unpack_taps(lists), weight)
    if group <= 2:
        stored = weight.size if dense else np.count_nonzero(weight)
        assert lists.num_entries * group == stored


def test_zero_weights_that_are_kept_are_stored() -> None:
    weight = np.zeros((2, 3, 3, 3), np.float32)
    kept = np.zeros(weight.shape, bool)
    kept[:, 1, 1, 1:] = True
    lists = pack_taps(weight, 2, TapCode.of(SAME_3X3, LAYOUT, 3), kept)
    assert lists.num_entries == 2
    with pytest.raises(ValueError, match="kept leaves out weights"):
        pack_taps(weight + 1, 2, lists.code, kept)
    with pytest.raises(ValueError, match=r"expected \[out_channels, 3, 3, 3\]"):
        pack_taps(weight[:, :2], 2, lists.code, kept[:, :2])


def test_offsets_are_as_narrow_as_the_block_allows() -> None:
    layout = PlaneLayout.interleave(56, 56, 1, 8, 1, 1)
    assert TapCode.of(SAME_3X3, layout, 256).unit == 8
    assert TapCode.of(SAME_3X3, layout, 256).dtype == "int32"
    assert TapCode.of(SAME_3X3, layout, 256, 24).dtype == "uint16"
    assert TapCode.of(SAME_3X3, LAYOUT, 4).unit == 1


def test_what_has_no_fixed_distance_has_no_lists() -> None:
    lanes = PlaneLayout.interleave(6, 9, 1, 8, 1)
    assert "reaches 1 vectors beyond a row that stores 0" in str(why_no_tap_lists(SAME_3X3, lanes))
    with pytest.raises(ValueError, match="take the body 'patterns'"):
        TapCode.of(SAME_3X3, lanes, 4)
    wide = ConvGeometry((9, 9), padding=(4, 4))
    assert "share an element" in str(why_no_tap_lists(wide, PlaneLayout.make(1, 1, 4, 1)))


def _damaged(lists: TapLists, **change: np.ndarray) -> TapLists:
    return dataclasses.replace(lists, **change)


def test_every_damage_is_named() -> None:
    weight = pattern_weights(4, 6, connectivity=2)
    lists = pack_taps(weight, 1, TapCode.of(SAME_3X3, LAYOUT, 6, 4), weight != 0)
    validate_taps(lists)
    first = np.arange(len(lists.offset)) == 0
    last = np.arange(len(lists.offset)) == lists.num_entries - 1
    cases = {
        "permutation": {"filter_order": lists.filter_order[[0, 0, 1, 2]]},
        "does not rise": {"list_start": lists.list_start[::-1]},
        "expected": {"offset": lists.offset[:-1]},
        "weights holds": {"weights": lists.weights[:-1]},
        "names no tap": {"offset": np.where(first, 1, lists.offset)},
        "lies outside": {"offset": np.where(last, lists.offset + 2 * LAYOUT.size, lists.offset)},
    }
    for message, change in cases.items():
        with pytest.raises(ValueError, match=message):
            validate_taps(_damaged(lists, **change))


# -- the operator --------------------------------------------------------------------------------


@settings(max_examples=15, deadline=None)
@given(data=st.data(), group=st.sampled_from([1, 2, 4]), seed=st.integers(0, 99))
def test_any_layer_matches_torch(data, group, seed) -> None:
    """Widths, dilation, batch, threads, blocks, empty and full layers, plain and interleaved."""
    rng = np.random.default_rng(seed)
    family = data.draw(st.sampled_from(sorted(LANES)))
    lanes = LANES[family]
    kernel, dilation = data.draw(st.sampled_from([(1, 1), (3, 1), (3, 2), (5, 1)]))
    reach = kernel // 2 * dilation
    height, width = data.draw(st.integers(1, 20)), data.draw(st.integers(1, 130))
    interleaved = data.draw(st.booleans())
    order = None
    if interleaved:
        bands = data.draw(st.sampled_from(list(band_choices(height, width, max(reach, 2), lanes))))
        order = LaneOrder(lanes, bands, reach)
        columns = -(-width // (lanes // bands))
        assume(reach <= min(columns, 2))
        rows = data.draw(st.integers(1, min(3, -(-height // bands))))
    else:
        columns = -(-width // lanes)
        rows = data.draw(st.integers(1, min(3, height)))
    cols = data.draw(st.integers(1, min(columns, 2)))
    assume(group * rows * cols + min(group, rows * cols) < 16)
    in_channels, out_channels = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 9))
    density = data.draw(st.sampled_from([0.0, 0.3, 1.0]))
    weight = rng.standard_normal((out_channels, in_channels, kernel, kernel)).astype(np.float32)
    kept = rng.random((-(-out_channels // group), in_channels, kernel, kernel)) < density
    weight *= np.repeat(kept, group, axis=0)[:out_channels]
    config = taps_config(
        lanes,
        rows,
        cols,
        filter_vectors=group,
        shift="lanes" if interleaved else "load",
        channel_block=data.draw(st.sampled_from([0, 1, 3, 100])),
    )
    case = ConvCase(
        height,
        width,
        batch=data.draw(st.integers(1, 2)),
        padding=(reach, reach),
        dilation=(dilation, dilation),
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
    weight = pattern_weights(4, 5, connectivity=2)
    config = taps_config(8, 2, 1, channel_block=2)
    case = ConvCase(9, 11, residual=True, lanes=LaneOrder(8, 2, 1), family="x86-avx2")
    assert_case(dataclasses.replace(case, config=config), weight, naive=True)


@pytest.mark.parametrize(("block", "fetch"), [(1, False), (5, True), (64, False), (64, True)])
def test_neither_blocks_nor_threads_nor_fetches_change_a_bit(block: int, fetch: bool) -> None:
    weight = pattern_weights(32, 40, connectivity=2.0)
    config = taps_config(8, 2, 3)
    case = ConvCase(12, 14, batch=2, family="x86-avx2", lanes=LaneOrder(8, 2, 1), config=config)
    whole, _, _ = run_case(case, weight)
    blocked = dataclasses.replace(config, channel_block=block, fetch_ahead=fetch)
    for threads in (1, 2):
        other = dataclasses.replace(case, config=blocked, threads=threads)
        np.testing.assert_array_equal(whole, run_case(other, weight)[0])


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"body": "other"}, r"body 'other' is not one of \('patterns', 'taps', "),
        ({"prefetch": 1}, "works off one tap at a time"),
        ({"taps_per_step": 4}, "works off one tap at a time"),
        ({"filter_lanes": 2, "filter_vectors": 1}, "shift lanes and vectors of 8"),
        ({"tile_rows": 4, "tile_cols": 4}, "16 accumulators exceed the budget of 15"),
    ],
)
def test_illegal_configurations_say_why(change: dict, match: str) -> None:
    config = dataclasses.replace(taps_config(8, 2, 3), **change)
    case = ConvCase(14, 28, family="x86-avx2", lanes=LaneOrder(8, 1, 1), config=config)
    with pytest.raises(ValueError, match=match):
        case.plan(pattern_weights(8, 8, group=2))


def test_stride_2_is_refused() -> None:
    config = taps_config(8, 2, 1, shift="load")
    with pytest.raises(ValueError, match="needs lanes over pixels, and stride 1 or shift lanes"):
        ConvCase(stride=(2, 2), family="x86-avx2", config=config).plan(pattern_weights(8, 8))


AVX2 = tvm.target.Target({"kind": "llvm", "mcpu": "x86-64-v3"})
AVX512 = tvm.target.Target({"kind": "llvm", "mcpu": "x86-64-v4"})
TILES = [
    (AVX2, LaneOrder(8, 1, 1), (2, 7, 1)),
    (AVX2, LaneOrder(8, 1, 1), (1, 4, 2)),
    (AVX2, LaneOrder(8, 1, 1), (1, 3, 4)),
    (AVX512, LaneOrder(16, 2, 1), (3, 7, 1)),
    (AVX512, LaneOrder(16, 2, 1), (2, 5, 2)),
]


@pytest.mark.parametrize(("target", "order", "tile"), TILES)
def test_the_loop_is_multiply_adds_alone(target, order, tile) -> None:
    """No store, no stack, no shuffle; every input is loaded once, every weight broadcast once."""
    rows, cols, filters = tile
    family = "x86-avx2" if order.lanes == 8 else "x86-avx512"
    config = taps_config(order.lanes, rows, cols, filter_vectors=filters, channel_block=16)
    case = ConvCase(56, 56, family=family, lanes=order, config=config)
    plan = case.plan(pattern_weights(32, 64, group=filters))
    loops = inner_loops(tvm.compile(plan.primfunc(), target).mod.inspect_source("asm"))
    entries, rest = divmod(loops[0].fma, rows * cols * filters)  # LLVM may take two at once
    assert rest == 0
    assert loops[0].loads == entries * (rows * cols + filters)
    assert loops[0].stores == loops[0].stack == loops[0].shuffles == 0
