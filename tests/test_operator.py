"""The pattern-sparse operator against torch: shapes, strides, groups, sparsities, tails."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import tvm
from conv_cases import ConvCase, assert_case, pattern_weights, run_case
from families import FAMILIES
from hypothesis import given, settings
from hypothesis import strategies as st
from tvm import relax
from tvm.s_tir.transform import DefaultGPUSchedule

from topi_kernels.backend import default_layout
from topi_kernels.conv_task import ConvTask
from topi_kernels.geometry import ConvGeometry
from topi_kernels.operator import plan_conv, wasted_share
from topi_kernels.pattern import builtin_pattern_set
from topi_kernels.primfunc import OPAQUE
from topi_kernels.schedules.config import ConvConfig, register_need
from topi_kernels.schedules.legality import illegal_reason
from topi_kernels.schedules.pattern_conv import schedule_pattern_conv
from topi_kernels.schedules.search_space import search_space
from topi_kernels.schedules.x86 import AVX512
from topi_kernels.structure import Structure
from topi_kernels.workload import Epilogue

RNG = np.random.default_rng(0)


def dense_weights(out_channels: int, in_channels: int, kh: int, kw: int) -> np.ndarray:
    return RNG.standard_normal((out_channels, in_channels, kh, kw)).astype(np.float32)


@settings(max_examples=40, deadline=None)
@given(
    data=st.data(),
    kernel=st.sampled_from([(1, 1), (3, 3), (5, 5), (1, 3), (2, 2)]),
    density=st.sampled_from([0.0, 0.1, 0.5, 1.0]),
    seed=st.integers(0, 99),
)
def test_any_convolution_matches_torch(data, kernel, density, seed) -> None:
    rng = np.random.default_rng(seed)
    out_channels, in_channels = data.draw(st.integers(1, 24)), data.draw(st.integers(1, 12))
    stride = data.draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    dilation = data.draw(st.tuples(st.integers(1, 2), st.integers(1, 2)))
    padding = tuple(data.draw(st.integers(0, k)) for k in kernel)
    spans = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
    height, width = (
        data.draw(st.integers(max(1, s - 2 * p), 34)) for s, p in zip(spans, padding, strict=True)
    )
    case = ConvCase(
        height,
        width,
        batch=data.draw(st.integers(1, 2)),
        stride=stride,
        padding=padding,
        dilation=dilation,
        bias=data.draw(st.booleans()),
        residual=data.draw(st.booleans()),
        activation=data.draw(st.sampled_from(["none", "relu", "relu6", "hardswish", "silu"])),
        family=data.draw(st.sampled_from(FAMILIES)),
        threads=data.draw(st.sampled_from([1, 2])),
    )
    weight = rng.standard_normal((out_channels, in_channels, *kernel)).astype(np.float32)
    weight *= rng.random(weight.shape) < density
    assert_case(case, weight)


@pytest.mark.parametrize("group", [1, 2, 4, 8, 16, 32])
@pytest.mark.parametrize("size", [(7, 7), (14, 14), (28, 28), (9, 33)])
def test_groups_use_their_lane_form(group: int, size: tuple[int, int]) -> None:
    weight = pattern_weights(64, 16, group=group)
    plan = assert_case(ConvCase(*size, activation="relu"), weight)
    assert plan.task.max_group == group
    assert group % plan.group == 0


@pytest.mark.parametrize("connectivity", [1.0, 2.0, 16.0, 1e9])
@pytest.mark.parametrize("group", [1, 4])
def test_connectivity_from_none_to_all(connectivity: float, group: int) -> None:
    assert_case(ConvCase(11, 19), pattern_weights(8, 16, group=group, connectivity=connectivity))


def test_empty_filters_are_only_bias() -> None:
    weight = pattern_weights(9, 8)
    weight[[0, 4, 8]] = 0
    assert_case(ConvCase(6, 6, activation="relu"), weight)


@pytest.mark.parametrize("group", [1, 4, 16])
def test_incomplete_groups_get_empty_slots(group: int) -> None:
    weight = pattern_weights(10 * group + 1, 4, group=group)
    assert Structure.from_zeros(weight).max_group == group
    assert_case(ConvCase(10, 10, residual=True), weight)
    assert_case(ConvCase(10, 10), dense_weights(19, 4, 3, 3))


@pytest.mark.parametrize("in_channels", [256, 257, 600])
def test_many_in_channels(in_channels: int) -> None:
    assert_case(ConvCase(5, 6), pattern_weights(6, in_channels))


@pytest.mark.parametrize("name", ["natural56", "fixed8", "pconv4"])
def test_pattern_sets(name: str) -> None:
    weight = pattern_weights(32, 24, masks=builtin_pattern_set(name).masks, connectivity=1.5)
    plan = assert_case(ConvCase(13, 9), weight)
    assert plan.task.structure == ("tap" if name == "natural56" else "pattern")


def test_patterns_of_different_length() -> None:
    weight = pattern_weights(8, 16, connectivity=2.0)
    weight[:, 3, 0, 0] = 0
    weight[2] = 0
    weight[2, 5, 1, 1] = 1.5
    plan = assert_case(ConvCase(9, 9), weight)
    assert len({len(p) for p in plan.workload.patterns}) > 1


@pytest.mark.parametrize("naive_case", ["sparse", "dense", "mixed", "wide"])
def test_naive_specification_matches_torch(naive_case: str) -> None:
    weight = {
        "sparse": pattern_weights(8, 16, group=4),
        "dense": dense_weights(6, 3, 5, 5),
        "mixed": pattern_weights(8, 16) * (RNG.random((8, 16, 3, 3)) < 0.7),
        "wide": pattern_weights(4, 300),
    }[naive_case].astype(np.float32)
    case = ConvCase(9, 8, stride=(2, 1), padding=(1, 1), residual=True, activation="silu", batch=2)
    assert_case(case, weight, naive=True)


def _tile_configs() -> list[ConvConfig]:
    configs = []
    for lanes in (1, 2, 4, 8, 16):
        for rows, cols in [(1, 1), (2, 1), (1, 2), (3, 2), (2, 5), (5, 4), (1, 7)]:
            configs.append(ConvConfig(16, lanes, 1, rows, cols))
    configs += [ConvConfig(16, 1, f, 3, 2) for f in (2, 4)]
    configs += [ConvConfig(16, 16, 2, 2, 3), ConvConfig(8, 4, 2, 3, 3), ConvConfig(8, 1, 1, 5, 2)]
    configs += [ConvConfig(16, 1, f, 4, c, shift="rotate") for f in (1, 2) for c in (1, 2, 3)]
    configs += [ConvConfig(16, 4, 1, 3, 3, loop_order="filter_outer", prefetch=False)]
    configs += [ConvConfig(16, 16, 1, 3, 5, taps_per_step=t) for t in (1, 2, 3)]
    return configs


@pytest.mark.parametrize("config", _tile_configs(), ids=str)
def test_every_register_tile_and_its_tails(config: ConvConfig) -> None:
    """One pixel more than whole tiles across, and 11 rows, leave a tail in both directions."""
    width = max(32, config.tile_cols * config.pixel_lanes) + 1
    case = ConvCase(11, width, config=config, activation="relu")
    assert_case(case, pattern_weights(32, 6, group=32, connectivity=1.5))


@pytest.mark.parametrize("shift", ["load", "rotate"])
@pytest.mark.parametrize("width", [12, 15, 16, 17, 30, 31, 32, 47])
def test_rotated_rows_at_vector_borders(shift: str, width: int) -> None:
    columns = -(-width // 16)
    config = ConvConfig(16, 1, 1, 2, columns, shift=shift)
    assert_case(ConvCase(6, width, config=config), pattern_weights(4, 6, connectivity=1.0))


@pytest.mark.parametrize("group", [1, 4, 16])
def test_threads_do_not_change_a_bit(group: int) -> None:
    weight = pattern_weights(32, 16, group=group)
    case = ConvCase(23, 29, residual=True, activation="silu")
    serial, _, _ = run_case(case, weight)
    parallel, _, _ = run_case(dataclasses.replace(case, threads=2), weight)
    assert np.array_equal(serial, parallel)


def test_level0_is_in_the_search_space_and_legal() -> None:
    weight = pattern_weights(64, 32, group=4)
    plan = ConvCase(28, 28).plan(weight)
    space = list(search_space(plan.task.shape, plan.task.machine))
    assert plan.config in space
    assert len(space) == len(set(space)) > 50
    assert all(register_need(c) <= plan.task.machine.vector_registers for c in space)
    assert 0 <= wasted_share(plan) < 0.2


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"vector_width": 32}, "exceeds the family"),
        ({"filter_lanes": 3}, "does not divide"),
        ({"tile_rows": 0}, "must be >= 1"),
        ({"shift": "slide"}, "not one of"),
        ({"loop_order": "random"}, "not one of"),
        ({"channel_block": 1 << 62}, "is not in 0"),
        ({"tile_rows": 9, "tile_cols": 4}, "budget"),
        ({"tile_rows": 15, "tile_cols": 1}, "output rows"),
        ({"tile_cols": 5}, "vectors of an output row"),
        ({"shift": "rotate"}, "lanes over pixels"),
        ({"shift": "rotate", "filter_lanes": 1, "tile_cols": 1}, "multiple of"),
        ({"filter_lanes": 1, "tile_cols": 1, "row_stride": 15}, "row stride 15"),
    ],
)
def test_illegal_configs_say_why(change, reason: str) -> None:
    change = dict(change)
    row_stride = change.pop("row_stride", 20)
    config = dataclasses.replace(ConvConfig(16, 4, 1, 2, 2), **change)
    why = illegal_reason(
        config,
        AVX512,
        out_height=14,
        out_width=14,
        in_row_stride=20,
        out_row_stride=row_stride,
        stride_w=1,
    )
    assert why is not None
    assert reason in why


def test_a_legal_config_has_no_reason_against_it() -> None:
    config = ConvConfig.from_dict(ConvConfig(16, 4, 1, 2, 2).as_dict())
    sizes = {"out_height": 14, "out_width": 14, "in_row_stride": 16, "out_row_stride": 16}
    assert illegal_reason(config, AVX512, **sizes, stride_w=1) is None
    with pytest.raises(ValueError, match="knobs"):
        ConvConfig.from_dict({"tile_rows": 1})


def test_bad_input_is_refused() -> None:
    layout = default_layout(8, 8, 1, "x86-avx512")
    weight, nan = pattern_weights(4, 4), np.full((4, 4, 3, 3), np.nan, np.float32)

    def task(values: np.ndarray, padding: int = 1, batch: int = 1) -> ConvTask:
        geometry = ConvGeometry((3, 3), padding=(padding, padding))
        return ConvTask.from_weight(
            values, geometry, layout, layout, family="x86-avx512", batch=batch
        )

    with pytest.raises(ValueError, match="NaN or Inf"):
        task(nan)
    with pytest.raises(ValueError, match="got shape"):
        task(np.zeros((3, 3), np.float32))
    with pytest.raises(ValueError, match=r"kernels of 1x1, the geometry of \(3, 3\)"):
        task(weight[:, :, :1, :1])
    with pytest.raises(ValueError, match="batch"):
        task(weight, batch=0)
    with pytest.raises(ValueError, match="32-bit"):
        task(weight, batch=10**8)
    with pytest.raises(ValueError, match="NaN or Inf"):
        plan_conv(task(weight), nan)
    with pytest.raises(ValueError, match=r"float32 weights of shape \(4, 4, 3, 3\), got float64"):
        plan_conv(task(weight), weight.astype(np.float64))
    with pytest.raises(ValueError, match="illegal here"):
        plan_conv(task(weight), weight, ConvConfig(16, 1, 1, 99, 1))
    with pytest.raises(ValueError, match="padded by"):
        plan_conv(task(weight, padding=2), weight)
    good = plan_conv(task(weight), weight)
    with pytest.raises(ValueError, match="pack again"):
        schedule_pattern_conv(good.workload, dataclasses.replace(good.config, filter_vectors=3))


def test_workloads_are_equal_or_refused() -> None:
    first = ConvCase(9, 9).plan(pattern_weights(4, 4)).workload
    again = ConvCase(9, 9).plan(pattern_weights(4, 4)).workload
    other = ConvCase(9, 10).plan(pattern_weights(4, 4)).workload
    assert first == again != other
    assert hash(first) == hash(again)
    with pytest.raises(ValueError, match="residual_layout"):
        dataclasses.replace(first, epilogue=Epilogue(residual=True), residual_layout=None)
    with pytest.raises(ValueError, match="dtype"):
        dataclasses.replace(first, dtype="float64")
    with pytest.raises(ValueError, match="activation"):
        Epilogue(activation="tanh")


def test_no_later_pass_schedules_or_fuses_the_operator() -> None:
    """TVM's rules take a PrimFunc that does not say so for one of their own, naive loops."""
    primfunc = ConvCase(9, 9).plan(pattern_weights(4, 4)).primfunc()
    assert bool(primfunc.attrs["tirx.is_scheduled"])
    assert int(primfunc.attrs["op_pattern"]) == OPAQUE
    mod = tvm.IRModule({"main": primfunc})
    tvm.ir.assert_structural_equal(relax.transform.AnnotateTIROpPattern()(mod), mod)
    with tvm.target.Target("cuda"):
        tvm.ir.assert_structural_equal(DefaultGPUSchedule()(mod), mod)
