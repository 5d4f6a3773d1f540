"""The pattern-sparse convolution on interleaved lanes, against torch."""

from __future__ import annotations

import dataclasses
import re

import numpy as np
import pytest
import tvm
from conv_cases import ConvCase, assert_case, pattern_weights, run_case
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.assembly import inner_loops
from relay_passes.targets import resolve
from topi_kernels.backend import Backend
from topi_kernels.geometry import ConvGeometry
from topi_kernels.layout import band_choices
from topi_kernels.layout_choice import (
    ConvNeed,
    LaneOrder,
    choose_lane_order,
    default_layout,
)
from topi_kernels.operator import plan_conv
from topi_kernels.schedules.config import ConvConfig
from topi_kernels.schedules.legality import illegal_for
from topi_kernels.schedules.search_space import search_space
from topi_kernels.structure import determine

SAME_3X3 = ConvGeometry((3, 3), padding=(1, 1))
ACTIVATIONS = ["none", "relu", "relu6", "hardswish", "silu"]
LANES = {"x86-avx512": 16, "x86-avx2": 8, "arm-neon": 4, "arm-neon-in-order": 4}


@settings(max_examples=20, deadline=None)
@given(data=st.data(), group=st.sampled_from([1, 2, 4]), seed=st.integers(0, 99))
def test_any_order_of_lanes_matches_torch(data, group, seed) -> None:
    rng = np.random.default_rng(seed)
    family = data.draw(st.sampled_from(["x86-avx512", "x86-avx2", "arm-neon"]))
    lanes = LANES[family]
    reach = data.draw(st.sampled_from([0, 1, 1, 2]))
    kernel = 3 if reach == 2 else 2 * reach + 1
    dilation = 2 if reach == 2 else 1
    height, width = data.draw(st.integers(1, 30)), data.draw(st.integers(1, 130))
    bands = data.draw(st.sampled_from(list(band_choices(height, width, 2, lanes))))
    columns = -(-width // (lanes // bands))
    # A tile of a whole long row does not fit the registers.
    border = reach if columns > 4 else data.draw(st.sampled_from([0, reach]))
    if border > columns:
        return
    in_channels, out_channels = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 9))
    density = data.draw(st.sampled_from([0.0, 0.3, 1.0]))
    weight = rng.standard_normal((out_channels, in_channels, kernel, kernel)).astype(np.float32)
    if density < 1 and kernel == 3:
        weight = pattern_weights(
            out_channels, in_channels, group=group, connectivity=2, seed=seed
        ) * (density > 0)
    case = ConvCase(
        height,
        width,
        batch=data.draw(st.integers(1, 2)),
        padding=(reach, reach),
        dilation=(dilation, dilation),
        bias=data.draw(st.booleans()),
        residual=data.draw(st.booleans()),
        activation=data.draw(st.sampled_from(ACTIVATIONS)),
        family=family,
        threads=data.draw(st.sampled_from([1, 2])),
        out_pad=data.draw(st.integers(0, 2)),
        lanes=LaneOrder(lanes, bands, border),
    )
    assert_case(case, weight.astype(np.float32))


ORDERS = [
    (56, 56, LaneOrder(16, 2)),
    (28, 28, LaneOrder(16, 1)),
    (28, 28, LaneOrder(16, 4)),
    (14, 14, LaneOrder(16, 1)),
    (7, 7, LaneOrder(16, 2)),
    (13, 19, LaneOrder(16, 2, 1)),
    (6, 224, LaneOrder(16, 1, 1)),
    (28, 28, LaneOrder(8, 2, 1)),
]


@pytest.mark.parametrize(("height", "width", "order"), ORDERS)
def test_every_configuration_matches_torch(height: int, width: int, order: LaneOrder) -> None:
    family = "x86-avx512" if order.lanes == 16 else "x86-avx2"
    weight = pattern_weights(4, 6, group=2, connectivity=2)
    case = ConvCase(height, width, family=family, lanes=order, activation="relu", residual=True)
    plan = case.plan(weight)
    task = plan.task
    configs = list(search_space(task.shape, task.machine))
    rng = np.random.default_rng(0)
    for number in rng.choice(len(configs), min(4, len(configs)), replace=False):
        assert_case(dataclasses.replace(case, config=configs[number]), weight)


@pytest.mark.parametrize(
    ("height", "width", "order"),
    [
        (16, 28, LaneOrder(16, 2, 1)),  # 7 of 8 lanes' columns, whole rows of the bands
        (11, 13, LaneOrder(8, 1, 1)),  # odd sizes: the last row and column have no neighbour
        (28, 56, LaneOrder(8, 2)),  # no vectors beside a row: the first one's lanes are moved
    ],
)
@pytest.mark.parametrize("body", ["patterns", "taps"])
def test_stride_2_finds_its_inputs_in_its_own_lanes(
    height: int, width: int, order: LaneOrder, body: str
) -> None:
    family = "x86-avx512" if order.lanes == 16 else "x86-avx2"
    rows = 2 if order.border else 1  # the row of 7 vectors fills the registers of AVX2
    config = ConvConfig(order.lanes, 1, 1, rows, 1, shift="lanes", even_rows=True)
    case = ConvCase(height, width, batch=2, stride=(2, 2), family=family, lanes=order)
    weight = pattern_weights(5, 9, connectivity=2)
    columns = case_columns(case, weight)
    if body == "taps":
        if not order.border:
            return
        knobs = {"body": "taps", "taps_per_step": 1, "prefetch": 0, "channel_block": 4}
        config = dataclasses.replace(config, **knobs)
    config = dataclasses.replace(config, tile_cols=columns)
    assert_case(dataclasses.replace(case, config=config, activation="relu"), weight)


def case_columns(case: ConvCase, weight: np.ndarray) -> int:
    """Vectors of an output row of interleaved lanes."""
    _, width = case.out_size(weight.shape[2:])
    assert case.lanes is not None
    return -(-width // (case.lanes.lanes // case.lanes.bands))


@pytest.mark.parametrize(
    ("size", "bands", "fits"), [(56, 4, True), (28, 2, True), (28, 4, False), (14, 2, False)]
)
def test_stride_2_wants_twice_the_rows_and_columns_of_a_band(
    size: int, bands: int, fits: bool
) -> None:
    """28 rows in 4 bands are 7, which 14 rows in 4 bands, 4 each, have no half of."""
    source, out = (LaneOrder(16, bands).layout(n, n, 1, 0) for n in (size, size // 2))
    assert out.keeps_lanes_of(source, (2, 2)) is fits
    assert not out.keeps_lanes_of(source)
    assert source.keeps_lanes_of(source)


def test_the_naive_operator_writes_the_same_planes() -> None:
    weight = pattern_weights(4, 5, connectivity=2)
    for order in (LaneOrder(16, 2), LaneOrder(8, 2, 1)):
        case = ConvCase(9, 11, residual=True, lanes=order)
        assert_case(case, weight, naive=True)


def test_thread_counts_agree_bit_for_bit() -> None:
    weight = pattern_weights(16, 12, group=2)
    case = ConvCase(28, 28, batch=2, lanes=LaneOrder(16, 4))
    one, two = (run_case(dataclasses.replace(case, threads=n), weight)[0] for n in (1, 2))
    np.testing.assert_array_equal(one, two)


def _need(height: int, channels: int, group: int = 1) -> tuple[ConvNeed, np.ndarray]:
    weight = pattern_weights(channels, channels, group=group)
    return ConvNeed(SAME_3X3, (channels, channels), determine(weight), 1), weight


@pytest.mark.parametrize("size", [28, 56, 112])
def test_the_papers_sparsity_gets_interleaved_lanes(size: int) -> None:
    need, _ = _need(size, 64)
    order = choose_lane_order([need], (size, size), 1, 0, "x86-avx512")
    assert order is not None
    assert order.lanes == 16


#: Orders of VGG-16's sizes at F = 1 and 2: a change of one is a change of every network.
CHOSEN = {
    ("x86-avx512", 224, 64): (LaneOrder(16, 1, 1), LaneOrder(16, 1, 1)),
    ("x86-avx512", 112, 128): (LaneOrder(16, 1, 0), LaneOrder(16, 1, 0)),
    ("x86-avx512", 56, 256): (LaneOrder(16, 2, 0), LaneOrder(16, 2, 0)),
    ("x86-avx512", 28, 512): (LaneOrder(16, 4, 0), LaneOrder(16, 4, 0)),
    ("x86-avx512", 14, 512): (LaneOrder(16, 2, 0), LaneOrder(16, 2, 0)),
    ("x86-avx2", 224, 64): (LaneOrder(8, 1, 1), LaneOrder(8, 1, 1)),
    ("x86-avx2", 112, 128): (LaneOrder(8, 2, 1), LaneOrder(8, 1, 1)),
    ("x86-avx2", 56, 256): (LaneOrder(8, 2, 1), LaneOrder(8, 2, 1)),
    ("x86-avx2", 28, 512): (LaneOrder(8, 2, 1), LaneOrder(8, 4, 1)),
    ("x86-avx2", 14, 512): (LaneOrder(8, 1, 0), LaneOrder(8, 2, 1)),
    ("arm-neon", 56, 256): (LaneOrder(4, 1, 1), LaneOrder(4, 1, 1)),
    ("arm-neon", 14, 512): (LaneOrder(4, 2, 1), LaneOrder(4, 2, 1)),
    ("arm-neon-wide", 28, 512): (LaneOrder(4, 1, 1), LaneOrder(4, 2, 1)),
    ("arm-neon-in-order", 56, 256): (LaneOrder(4, 2, 1), LaneOrder(4, 2, 1)),
    ("arm-neon-in-order", 28, 512): (LaneOrder(4, 4, 1), LaneOrder(4, 2, 1)),
}


@pytest.mark.parametrize(("family", "size", "channels"), CHOSEN)
def test_the_chosen_orders_are_as_pinned(family: str, size: int, channels: int) -> None:
    for group, expected in zip((1, 2), CHOSEN[family, size, channels], strict=True):
        need, _ = _need(size, channels, group)
        assert choose_lane_order([need], (size, size), 1, 0, family) == expected


@pytest.mark.parametrize(
    ("target", "asked", "expected"),
    [
        ("x86-avx512", None, True),
        ("x86-avx512", False, False),
        ("x86-avx2", None, True),
        ("x86-avx2", False, False),
        ("cortex-a53", None, True),
        ("cortex-a76", None, True),
        ("cortex-x1", None, True),
        ("armv7", True, True),
        ("armv7", None, False),
    ],
)
def test_interleaved_lanes_are_the_default_where_measured(
    target: str, asked: bool | None, expected: bool
) -> None:
    backend = Backend.of(resolve(f"pattern/{target}"), 1, interleaved_lanes=asked)
    need, _ = _need(56, 64)
    order = backend.lane_order_for([need], (56, 56), 1, 0)
    assert backend.interleaved_lanes is expected
    assert expected or order is None
    assert target == "armv7" or (order is not None) is expected


def test_changing_the_order_for_others_can_cost_too_much() -> None:
    need, _ = _need(56, 4)
    assert choose_lane_order([need], (56, 56), 1, 0, "x86-avx512") is not None
    assert choose_lane_order([need], (56, 56), 1, 10_000, "x86-avx512") is None


def test_pointwise_convolutions_alone_stay_in_plain_rows() -> None:
    weight = np.random.default_rng(0).standard_normal((8, 8, 1, 1)).astype(np.float32)
    need = ConvNeed(ConvGeometry((1, 1)), (8, 8), determine(weight), 0)
    assert choose_lane_order([need], (56, 56), 0, 0, "x86-avx512") is None


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"shift": "load"}, "shift lanes and vectors of 16"),
        ({"vector_width": 8}, "shift lanes and vectors of 16"),
        ({"tile_cols": 1}, "1 vectors stored beside the row"),
    ],
)
def test_impossible_configurations_are_refused(change: dict, why: str) -> None:
    need, _ = _need(56, 16)
    order = LaneOrder(16, 2)
    layout = order.layout(56, 56, 1, 0)
    config = ConvConfig(16, 1, 1, 2, 7, shift="lanes")
    task = need.task(layout, layout, "x86-avx512")
    shape, family = task.shape, task.machine
    assert illegal_for(shape, config, family) is None
    reason = illegal_for(shape, dataclasses.replace(config, **change), family)
    assert reason is not None
    assert re.search(why, reason)


def test_lanes_need_interleaved_planes() -> None:
    need, _ = _need(14, 16)
    plain = default_layout(14, 14, 1, "x86-avx512")
    task = need.task(plain, plain, "x86-avx512")
    reason = task.illegal_reason(ConvConfig(16, 1, 1, 2, 1, shift="lanes"))
    assert reason == "shift lanes needs planes of interleaved lanes"


def test_input_and_output_share_their_order() -> None:
    need, weight = _need(14, 16)
    layouts = [LaneOrder(16, bands).layout(14, 14, 1, 0) for bands in (1, 2)]
    with pytest.raises(ValueError, match="no legal configuration"):
        plan_conv(need.task(layouts[0], layouts[1], "x86-avx512"), weight)


@pytest.mark.parametrize(
    ("size", "order", "shuffles"),
    [(56, LaneOrder(16, 2), 0.1), (28, LaneOrder(16, 4), 0.1), (14, LaneOrder(16, 1), 0.35)],
)
def test_the_inner_loop_keeps_its_accumulators_in_registers(
    size: int, order: LaneOrder, shuffles: float
) -> None:
    weight = pattern_weights(64, 64)
    plan = ConvCase(size, size, lanes=order, activation="relu").plan(weight)
    target = tvm.target.Target({"kind": "llvm", "mcpu": "znver4"})
    loops = inner_loops(tvm.compile(plan.primfunc(), target=target).mod.inspect_source("asm"))
    fma = sum(loop.fma for loop in loops)
    assert len(loops) == 8 * len(plan.config.row_tiles(plan.workload.out_layout.band_height))
    assert all(loop.stores == 0 for loop in loops)
    assert sum(loop.shuffles for loop in loops) <= shuffles * fma
