"""Separated rows and columns of stride 2."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from conv_cases import ConvCase, assert_case, pattern_weights
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from topi_kernels.backend import default_layout
from topi_kernels.schedules.config import ConvConfig
from topi_kernels.schedules.input_geometry import plain_geometry, split_geometry
from topi_kernels.schedules.search_space import search_space


@settings(max_examples=20, deadline=None)
@given(
    data=st.data(),
    kernel=st.sampled_from([(1, 1), (3, 3), (5, 5), (1, 3), (2, 2)]),
    lanes=st.sampled_from([(16, 1), (16, 4), (8, 1), (4, 2)]),
    seed=st.integers(0, 99),
)
def test_split_matches_torch(data, kernel, lanes, seed) -> None:
    """Any kernel, padding, dilation and size; rows may have any stride, columns have 2."""
    rng = np.random.default_rng(seed)
    dilation = data.draw(st.tuples(st.integers(1, 2), st.integers(1, 2)))
    padding = tuple(data.draw(st.integers(0, k)) for k in kernel)
    spans = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
    height, width = (
        data.draw(st.integers(max(1, s - 2 * p), 45)) for s, p in zip(spans, padding, strict=True)
    )
    case = ConvCase(
        height,
        width,
        batch=data.draw(st.integers(1, 2)),
        stride=(data.draw(st.integers(1, 3)), 2),
        padding=padding,
        dilation=dilation,
        residual=data.draw(st.booleans()),
        activation="relu",
        threads=data.draw(st.sampled_from([1, 2])),
    )
    out_height, out_width = case.out_size(kernel)
    vector_width, filter_lanes = lanes
    pixels = vector_width // filter_lanes
    columns = -(-out_width // pixels)
    row_stride = default_layout(out_height, out_width, case.out_pad, case.family).row_stride
    assume(columns * pixels <= row_stride)
    config = ConvConfig(
        vector_width,
        filter_lanes,
        1,
        data.draw(st.integers(1, min(out_height, 3))),
        data.draw(st.integers(1, min(columns, 3))),
        shift="split",
        prefetch=data.draw(st.integers(0, 2)),
    )
    weight = rng.standard_normal((8, 5, *kernel)).astype(np.float32)
    mask = rng.random((8 // config.group, 5, *kernel)) < data.draw(st.sampled_from([0.1, 0.5, 1.0]))
    weight *= np.repeat(mask, config.group, axis=0)
    assert_case(dataclasses.replace(case, config=config), weight)


def test_only_what_the_taps_need_is_kept() -> None:
    config = ConvConfig(16, 1, 1, 2, 1, shift="split")
    weight = np.ones((4, 3, 1, 1), np.float32)
    weight[1:] = 0
    plan = ConvCase(28, 28, stride=(2, 2), padding=(0, 0), config=config).plan(weight)
    geometry = split_geometry(plan.workload, 16)
    assert (geometry.row_phases, geometry.col_phases, geometry.rows) == ((0,), (0,), 14)
    assert geometry.size < plan.workload.in_layout.size / 2
    plan = ConvCase(28, 28, stride=(2, 2), config=config).plan(pattern_weights(4, 3))
    geometry = split_geometry(plan.workload, 16)
    assert (geometry.row_phases, geometry.col_phases) == ((0, 1), (0, 1))
    assert geometry.left == 1
    assert geometry.half - geometry.columns >= geometry.left


def test_neighbouring_outputs_read_neighbouring_elements() -> None:
    plan = ConvCase(28, 28, stride=(2, 2)).plan(pattern_weights(4, 3))
    plain, split = plain_geometry(plan.workload), split_geometry(plan.workload, 16)
    assert plain.offset(0, 2) - plain.offset(0, 0) == plain.col_step == 2
    assert split.offset(0, 2) - split.offset(0, 0) == split.col_step == 1
    assert split.offset(2, 0) - split.offset(0, 0) == split.row_step


@pytest.mark.parametrize(
    ("stride", "family", "lanes"),
    [((1, 1), "x86-avx512", 1), ((2, 2), "x86-avx512", 16), ((2, 3), "x86-avx512", 1)],
)
def test_split_is_refused_where_it_cannot_help(stride, family, lanes) -> None:
    config = ConvConfig(16, lanes, 1, 1, 1, shift="split")
    case = ConvCase(28, 28, stride=stride, family=family, config=config)
    with pytest.raises(ValueError, match="split needs lanes over pixels and stride 2"):
        case.plan(pattern_weights(16, 4, group=16))


def test_stride_2_without_sharing_is_split_by_default() -> None:
    plan = ConvCase(56, 56, stride=(2, 2)).plan(pattern_weights(64, 64))
    assert plan.config.shift == "split"
    assert "split" not in {c.shift for c in _space(stride=(1, 1))}
    assert "split" in {c.shift for c in _space(stride=(2, 2))}
    assert "split" in {c.shift for c in _space(stride=(2, 2), family="arm-neon")}


def _space(stride: tuple[int, int], family: str = "x86-avx512") -> list[ConvConfig]:
    case = ConvCase(28, 28, stride=stride, family=family)
    task = case.plan(pattern_weights(8, 8)).task
    return list(search_space(task.shape, task.machine))
