"""The convolution on OpenCL devices, against torch; whole planes with their halo are compared."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from conv_cases import pattern_weights
from tvm.target import Target

from relay_passes.targets import resolve
from topi_kernels.backend import Backend
from topi_kernels.conv_task import ConvTask
from topi_kernels.geometry import ConvGeometry
from topi_kernels.schedules.choose import schedules_of
from topi_kernels.schedules.config import ConvConfig
from topi_kernels.schedules.mali import MALI
from topi_kernels.schedules.opencl.config import GpuConfig
from topi_kernels.schedules.opencl.cost import waste
from topi_kernels.schedules.opencl.space import LEAST_GAIN, MAX_WASTE
from topi_kernels.workload import Epilogue

from .gpu_cases import conv_difference

# Sums of some hundred products of numbers of size one.
TOLERANCE = 2e-4

RNG = np.random.default_rng(0)
DENSE = RNG.standard_normal((24, 16, 3, 3)).astype(np.float32)
POINTWISE = RNG.standard_normal((20, 300, 1, 1)).astype(np.float32) * (
    RNG.random((20, 300, 1, 1)) < 0.3
)
SCATTERED = RNG.standard_normal((8, 8, 3, 3)).astype(np.float32) * (RNG.random((8, 8, 3, 3)) < 0.3)


def mixed_taps() -> np.ndarray:
    """Patterns of one, four and nine taps; one filter is empty."""
    weight = pattern_weights(13, 12, connectivity=2.0)
    weight[3] = 0
    weight[5, 2] = 1.5
    weight[5, 3] = 0
    weight[5, 3, 1, 1] = 2.0
    return weight


PRUNED = pattern_weights(16, 24)
SHARED = pattern_weights(24, 24, group=4)
CASES = {
    "level 0": (PRUNED, {}),
    "level 0, adreno": (PRUNED, {"family": "adreno"}),
    "tile that divides nothing": (PRUNED, {"size": (13, 11), "config": GpuConfig(4, 1, 4, 2)}),
    "shared by four": (SHARED, {"family": "adreno", "config": GpuConfig(4, 4, 2, 1)}),
    "several filter_groups, filters first, batch": (
        SHARED,
        {"family": "adreno", "batch": 2, "config": GpuConfig(4, 4, 2, 1, 4, 8, 2, "filters")},
    ),
    "eight filter_groups, the last work_group half empty": (
        pattern_weights(12, 24),
        {"family": "adreno", "size": (14, 14), "config": GpuConfig(2, 1, 2, 7, 4, 7, 8)},
    ),
    "an incomplete filter_group": (
        pattern_weights(15, 8, group=15),
        {"config": GpuConfig(4, 4, 1, 1)},
    ),
    "vectors of 8": (PRUNED, {"size": (16, 16), "config": GpuConfig(8, 1, 2, 1)}),
    "vectors of 2": (PRUNED, {"config": GpuConfig(2, 1, 7, 1)}),
    "single pixels": (PRUNED, {"size": (7, 7), "config": GpuConfig(1, 1, 7, 1)}),
    "stride 2": (PRUNED, {"stride": 2, "size": (15, 17), "config": GpuConfig(4, 1, 2, 1)}),
    "loads that begin anywhere, tiles of 14 pixels": (
        PRUNED,
        {"size": (7, 28), "config": GpuConfig(2, 1, 3, 7, loads="anywhere")},
    ),
    "the same, stride 2, the last tile moved back": (
        PRUNED,
        {
            "stride": 2,
            "size": (15, 21),
            "family": "adreno",
            "config": GpuConfig(2, 1, 2, 4, loads="anywhere"),
        },
    ),
    "the same, dilation, shared by four": (
        SHARED,
        {
            "dilation": 2,
            "padding": 2,
            "size": (9, 14),
            "family": "adreno",
            "config": GpuConfig(2, 4, 2, 2, loads="anywhere"),
        },
    ),
    "dilation": (PRUNED, {"dilation": 2, "padding": 2}),
    "dense": (DENSE, {}),
    "dense, two taps at a time": (DENSE, {"family": "adreno", "config": GpuConfig(4, 4, 2, 2, 2)}),
    "1x1, in_channels as differences": (POINTWISE, {"padding": 0}),
    "tap by tap": (SCATTERED, {}),
    "patterns of several sizes, an empty filter": (mixed_taps(), {"config": GpuConfig(4, 1, 2, 1)}),
    "nothing left": (np.zeros((4, 4, 3, 3), np.float32), {}),
}


@pytest.mark.parametrize("name", CASES)
def test_equal_to_torch(device, tmp_path, name):
    weight, options = CASES[name]
    assert conv_difference(weight, tmp_path, **options) < TOLERANCE


@pytest.mark.parametrize("activation", ["none", "relu", "relu6", "hardswish", "silu"])
def test_epilogues(device, tmp_path, activation):
    epilogue = Epilogue(bias=activation != "none", residual=True, activation=activation)
    weight = pattern_weights(8, 8)
    assert conv_difference(weight, tmp_path, size=(6, 6), epilogue=epilogue) < TOLERANCE


def task(family: str = "mali", dtype: str = "float32") -> ConvTask:
    layout = Backend.named(family).layout_for(14, 14, 1, dtype)
    geometry = ConvGeometry((3, 3), padding=(1, 1))
    return ConvTask.from_weight(SHARED.astype(dtype), geometry, layout, layout, family=family)


LEGAL = GpuConfig(4, 4, 1, 1)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"vector_width": 3}, "vector_width 3 is not one of"),
        ({"filters": 32}, "group 32 exceeds the 4 filters"),
        ({"tile_rows": 0}, "must be >= 1"),
        ({"tiles_per_group": 0}, "must be >= 1"),
        ({"tiles_per_group": 512}, "512 work_items exceed the device's 256"),
        ({"order": "rows"}, "order 'rows' is not one of"),
        ({"loads": "late"}, "loads 'late' is not one of"),
        ({"accumulator": "float64"}, "accumulator 'float64' is not one of"),
        ({"accumulator": "float16"}, "float16 sums are for float16 layers"),
        ({"tile_rows": 15}, "exceeds the output"),
        ({"tile_cols": 5}, "exceeds the output"),
        ({"tile_rows": 8}, "registers are wanted, a work_item has 64"),
    ],
)
def test_illegal_configs_say_why(change, reason):
    assert task().illegal_reason(LEGAL) is None
    assert reason in task().illegal_reason(replace(LEGAL, **change))


def test_configs_of_other_devices_are_refused():
    reason = "a ConvConfig is for other devices than mali"
    assert task().illegal_reason(ConvConfig(4, 1, 1, 1, 1)) == reason
    assert "is for other devices" in task("arm-neon").illegal_reason(LEGAL)


@pytest.mark.parametrize(("family", "dtype"), [("adreno", "float32"), ("mali", "float16")])
def test_level_0_is_the_cheapest_of_the_space_and_records_hold_it(family, dtype):
    example = task(family, dtype)
    space = list(example.configs())
    assert len(space) == len(set(space)) > 50
    assert all(example.illegal_reason(config) is None for config in space)
    chosen = example.default_config()
    assert chosen in space
    # Of those that compute hardly more outputs than there are, and sum in float32.
    exact = [c for c in space if waste(example.shape, c) <= MAX_WASTE]
    assert exact
    cheapest = min(example.cost(c) for c in exact if c.accumulator == "float32")
    assert example.cost(chosen) <= cheapest / LEAST_GAIN
    good = [c for c in exact if c.accumulator == "float32"]
    good = [c for c in good if example.cost(c) <= cheapest / LEAST_GAIN]
    assert chosen.vector_width >= min(4, max(c.vector_width for c in good))
    assert GpuConfig.from_dict(chosen.as_dict()) == chosen
    assert schedules_of(example.machine).config is GpuConfig


def test_a_target_may_allow_smaller_work_groups():
    """As few work_items as the GPU at hand may have, in the same tiles."""
    target = dict(resolve("pattern/mali").export(), tag="", max_num_threads=48)
    few, any_number = Backend.of(Target(target)), Backend.of(resolve("pattern/mali"))
    config = GpuConfig(4, 4, 1, 1, 4, 32, 4)
    assert any_number.plan(task(), SHARED, config).config == config
    assert few.plan(task(), SHARED, config).config == replace(config, tiles_per_group=12)
    assert few.plan(task(), SHARED).config.work_items <= 48
    assert config.within(3) == replace(config, tiles_per_group=1, filter_groups_per_group=3)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({**LEGAL.as_dict(), "warp": 1}, r"unknown knobs \['warp'\]"),
        ({"filters": 1}, "lacks"),
        ({**LEGAL.as_dict(), "tile_rows": "2"}, r"knobs \['tile_rows'\] of another type"),
    ],
)
def test_bad_records(data, message):
    with pytest.raises(ValueError, match=message):
        GpuConfig.from_dict(data)


def test_facts_scale_with_the_type():
    half = MALI.of_dtype("float16")
    assert (half.vector_width, half.itemsize) == (8, 2)
    assert half.of_dtype("float32") == MALI
