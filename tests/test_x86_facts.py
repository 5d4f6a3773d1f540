"""What the cost model makes of a machine's facts: other facts, other choices, in the right way."""

from __future__ import annotations

from dataclasses import replace

import golden
import pytest

from topi_kernels.conv_task import ConvTask
from topi_kernels.devices import DEVICES
from topi_kernels.geometry import ConvGeometry
from topi_kernels.layout_choice import ConvNeed, LaneOrder, choose_lane_order, default_layout
from topi_kernels.schedules import search_space, x86
from topi_kernels.schedules.config import ConvConfig
from topi_kernels.schedules.cost import estimate_cost
from topi_kernels.schedules.family import SLOT_COSTS, Family
from topi_kernels.schedules.load_reuse import input_rows
from topi_kernels.schedules.tap_space import LEAST_PAIRS
from topi_kernels.structure import determine

ZEN_4, SERVER = x86.ZEN_4.facts, x86.SERVER.facts


def task_of(name: str, group: int = 1, family: str = ZEN_4.name) -> ConvTask:
    """A layer of the golden pins on plain rows."""
    layer = golden.LAYERS[name]
    pad = layer.padding
    geometry = ConvGeometry((layer.kernel,) * 2, (layer.stride,) * 2, (pad, pad))
    layouts = [default_layout(n, n, pad, family) for n in (layer.size, layer.out_size)]
    return ConvTask.from_weight(layer.weight(group, "float32"), geometry, *layouts, family=family)


def chosen(name: str, facts: Family, group: int = 1) -> ConvConfig:
    return search_space.default_config(task_of(name, group).shape, facts)


def loads_per_fma(task: ConvTask, config: ConvConfig) -> float:
    loads = fmas = 0
    for pattern in task.patterns:
        rows = input_rows(task.geometry, config, pattern.taps)
        loads += sum(map(len, rows.values())) + len(pattern) * config.filter_vectors
        fmas += len(pattern) * config.outputs
    return loads / fmas


def test_times_are_those_of_one_core_in_slots_of_the_other() -> None:
    """The cycles of everything but multiply-adds, L2's bandwidth and streams is the same."""
    own = {"far_line_cost", "line_bound"}
    for name in set(SLOT_COSTS) - own:
        assert getattr(SERVER, name) == pytest.approx(2 * getattr(ZEN_4, name))
    assert DEVICES.facts(ZEN_4.name) == ZEN_4


def test_narrow_vectors_cost_what_two_units_of_their_width_make_of_them() -> None:
    half, slots = ZEN_4.slots_of(8)
    assert slots == 2
    assert (half.fma_ports, half.load_ports) == (2, 2)
    assert half.line_cost == 2 * ZEN_4.line_cost
    assert ZEN_4.slots_of(16) == (ZEN_4, 1)
    assert SERVER.slots_of(8) == (SERVER, 1)
    shape = task_of("res-7").shape
    config = ConvConfig(8, 1, 1, 7, 1, shift="rotate")
    assert estimate_cost(shape, config, ZEN_4) == estimate_cost(shape, config, half) / 2
    wide = replace(config, vector_width=16)
    ratios = [
        estimate_cost(shape, wide, facts) / estimate_cost(shape, config, facts)
        for facts in (ZEN_4, SERVER)
    ]
    assert ratios[0] > 1.2 * ratios[1]  # a row of 7 pixels fills half of a wide vector


@pytest.mark.parametrize(
    ("family", "order"),
    [
        ("x86-avx512-zen4", LaneOrder(8, 1, 0)),
        ("x86-avx512-client", LaneOrder(8, 1, 0)),
        ("x86-avx512", LaneOrder(16, 2, 0)),
    ],
)
def test_maps_of_seven_pixels_take_the_vectors_that_are_faster_here(
    family: str, order: LaneOrder
) -> None:
    """Measured on a Zen 4: 75 % of the peak with 8 lanes, 61 % with 16."""
    weight = golden.LAYERS["res-7"].weight(1, "float32")
    need = ConvNeed(ConvGeometry((3, 3), padding=(1, 1)), (512, 512), determine(weight), 1)
    assert choose_lane_order([need], (7, 7), 1, 0, family) == order


def test_a_smaller_l1_holds_less_of_a_block() -> None:
    held = []
    for kib in (8, 16, 32):
        config = chosen("res-1x1-14", replace(x86.ZEN_4, l1_bytes=kib << 10).facts)
        tile = config.tile_rows * config.tile_cols * config.vector_width
        held.append(4 * config.channel_block * tile)
        assert 0 < held[-1] < 1.05 * (kib << 10)  # the last block may be shorter
    assert held == sorted(set(held))


def test_slower_loads_are_answered_by_tiles_that_load_less() -> None:
    task = task_of("vgg-28", 4)
    slow = replace(ZEN_4, load_ports=0.25, half_load_ports=0.5)
    few, many = (chosen("vgg-28", facts, 4) for facts in (slow, ZEN_4))
    assert loads_per_fma(task, few) < loads_per_fma(task, many)


def test_a_slower_l2_is_answered_by_tiles_that_fetch_less() -> None:
    """Of two tiles with as many sums, the one that shares each line among more filters."""
    shape = task_of("vgg-14", 4).shape
    shared = ConvConfig(16, 1, 4, 3, 1, shift="load")
    own = ConvConfig(16, 1, 1, 14, 1, shift="rotate")
    slow = replace(ZEN_4, line_cost=10 * ZEN_4.line_cost)
    ratios = [
        estimate_cost(shape, own, facts) / estimate_cost(shape, shared, facts)
        for facts in (slow, ZEN_4)
    ]
    assert ratios[0] > 1.2 * ratios[1]


def test_a_larger_l2_takes_larger_blocks_of_positions() -> None:
    large = replace(x86.ZEN_4, l2_bytes=4 << 20).facts
    few, many = (chosen("vgg-112-dense", facts).positions for facts in (ZEN_4, large))
    assert 0 < few < many


def on_lanes(name: str, group: int) -> ConvConfig:
    """Level 0 of a layer on AVX2, in two bands of interleaved lanes."""
    task = task_of(name, group, x86.AVX2.name)
    size = golden.LAYERS[name].size
    layout = LaneOrder(8, 2, 1).layout(size, size, 1, 1)
    return replace(task, in_layout=layout, out_layout=layout).default_config()


def test_pairs_of_filters_take_lists_where_many_share_a_block() -> None:
    """Zen 3, F = 2, share of the peak: 63 % (52) at 28x28x512, but 66 (72) at 56x56x64."""
    for name in ("vgg-28", "res-56"):
        config = on_lanes(name, 2)
        many = golden.LAYERS[name].out_channels >= 2 * LEAST_PAIRS
        assert (config.body == "taps") == many
        assert config.filter_vectors == 2


def test_lists_of_several_filters_fetch_what_is_more_than_l2() -> None:
    """One filter's loop is bound by its loads; planes that L2 holds are there."""
    assert on_lanes("vgg-28", 2).fetch_ahead
    assert not on_lanes("vgg-28", 1).fetch_ahead
    shape = task_of("res-1x1-14", 2, x86.AVX2.name).shape
    large = replace(x86.AVX2, l2_floats=1 << 20)
    for facts in (x86.AVX2, large):
        config = search_space.default_config(shape, facts)
        assert config.has_lists
        assert config.filter_vectors == 2
        assert config.fetch_ahead == (facts is x86.AVX2)
    assert not search_space.default_config(shape, x86.ZEN_4.facts).fetch_ahead
