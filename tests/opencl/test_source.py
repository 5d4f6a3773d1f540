"""What the emitted OpenCL C promises: loads, vectors, private memory, launch; no device needed."""

from __future__ import annotations

import numpy as np
import pytest
from conv_cases import pattern_weights

from relay_passes.targets import resolve
from topi_kernels.backend import Backend
from topi_kernels.geometry import ConvGeometry
from topi_kernels.plane_operators import elementwise, max_pool
from topi_kernels.plane_ops import PlaneTarget
from topi_kernels.schedules.opencl.config import GpuConfig
from topi_kernels.schedules.opencl.cost import counts_of, loads_of, roofline
from topi_kernels.schedules.opencl.reuse import kernel_counts
from topi_kernels.schedules.opencl.source import kernel_sources
from topi_kernels.schedules.opencl.static_facts import static_facts
from topi_kernels.workload import Epilogue

from .gpu_cases import planned

GEOMETRY = ConvGeometry((3, 3), padding=(1, 1))
WEIGHTS = {
    1: pattern_weights(64, 64),
    4: pattern_weights(64, 64, group=4),
    0: np.random.default_rng(0).standard_normal((64, 64, 3, 3)).astype(np.float32),
}
#: As many filters as the layers of 28x28 have; few would leave a GPU idle, so tiles are small. At
#: 14x14 filters share a wave, where few in_channels make their lists of kernels most unequal.
WIDE = {
    (size, group): pattern_weights(512, in_channels, group=group)
    for size, in_channels in ((28, 64), (14, 256))
    for group in (1, 4)
}


def plan_of(family: str, group: int, size: int = 56, weight: np.ndarray | None = None):
    weight = WEIGHTS[group] if weight is None else weight
    layout = Backend.named(family).layout_for(size, size, 1)
    return planned(weight, GEOMETRY, (layout, layout), Epilogue(True), family=family)


def source_of(plan):
    (kernel,) = kernel_sources(plan.primfunc(), resolve(f"pattern/{plan.task.family}"))
    return kernel


#: Loads for four multiply-adds: a load brings four float32, whatever vectors are computed with.
MOST_LOADS = {
    **dict.fromkeys([(56, 1), (28, 1), (14, 1)], 0.6),
    **dict.fromkeys([(56, 4), (28, 4), (14, 4)], 0.35),
}


@pytest.mark.parametrize(("size", "group"), MOST_LOADS)
@pytest.mark.parametrize("family", ["mali", "adreno"])
def test_level_0_keeps_its_promises(family, size, group):
    """Loads per multiply-add, vectors, and as many multiply-adds as kept weights."""
    plan = plan_of(family, group, size, WIDE[min(size, 28), group])
    kernel, config = source_of(plan), plan.config
    facts = static_facts(kernel.source)
    assert len(facts.loops) == len(plan.workload.patterns)
    lanes = config.vector_width / 4
    loads = [loop.loads_per_multiply_add / lanes for loop in facts.loops]
    assert np.mean(loads) <= MOST_LOADS[size, group]
    assert facts.dynamic == ()
    assert facts.private_bytes == 4 * config.accumulators * config.vector_width
    assert facts.local_bytes == facts.barriers == 0
    assert config.vector_width >= 2
    for loop in facts.loops:
        assert set(loop.widths) <= {4, 8}  # inputs and weights come in whole vectors
        assert loop.scalar_loads == 1  # the in_channel
    tiles = -(-size // config.tile_rows) * -(-(size // config.vector_width) // config.tile_cols)
    computed = tiles * config.tile_rows * config.tile_cols * config.vector_width
    assert computed <= 1.1 * size * size


@pytest.mark.parametrize(
    ("family", "group"), [("adreno", 0), ("adreno", 1), ("mali", 1), ("adreno", 4)]
)
def test_the_model_counts_what_is_emitted(family, group):
    plan = plan_of(family, group, 28)
    facts = static_facts(source_of(plan).source)
    chunks = loads_of(plan.task.shape, plan.config, plan.task.machine)
    for loop, pattern in zip(facts.loops, plan.workload.patterns, strict=True):
        counts = kernel_counts(GEOMETRY, plan.config, pattern.taps, chunks)
        assert loop.multiply_adds == counts.multiply_adds
        assert loop.vector_loads + loop.scalar_loads == counts.input_loads + counts.weight_loads
    assert len(counts_of(plan.task.shape, plan.config, plan.task.machine)) == len(
        plan.workload.patterns
    )


@pytest.mark.parametrize("family", ["mali", "adreno"])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_a_single_tap_is_counted(family, dtype):
    """Whichever operand of the sum comes first."""
    layouts = [Backend.named(family).layout_for(56, 56, pad, dtype) for pad in (0, 1)]
    weight = np.ones((8, 16, 1, 1), dtype)
    weight[:, ::2] = 0
    config = GpuConfig(4, 1, 4, 2, 1, 49)
    pointwise = ConvGeometry((1, 1))
    plan = planned(weight, pointwise, layouts, Epilogue(True), config=config, family=family)
    (loop,) = static_facts(source_of(plan).source).loops
    (counts,) = counts_of(plan.task.shape, config, plan.task.machine)
    assert loop.multiply_adds == counts.multiply_adds == config.accumulators
    assert loop.vector_loads + loop.scalar_loads == counts.input_loads + counts.weight_loads


@pytest.mark.parametrize("family", ["mali", "adreno"])
def test_launches_fit_the_device_and_cover_the_output(family):
    plan = plan_of(family, 4, 28)
    kernel, config, facts = source_of(plan), plan.config, plan.task.machine
    assert kernel.work_items == (config.tiles_per_group, config.filter_groups_per_group, 1)
    assert np.prod(kernel.work_items) <= facts.max_work_items
    tiles = -(-28 // config.tile_rows) * -(-(28 // config.vector_width) // config.tile_cols)
    covered = np.prod(kernel.global_size)
    assert covered >= tiles * 16
    assert {a.name for a in kernel.arguments} == {
        *("x", "out", "bias"),
        *plan.packed.named_arrays,
    }


def test_sharing_saves_loads_and_time_by_the_model():
    alone, shared, dense = (plan_of("adreno", group) for group in (1, 4, 0))
    times = [roofline(p.task.shape, p.config, p.task.machine).total for p in (alone, shared, dense)]
    assert times[1] < times[0] < times[2]
    assert roofline(alone.task.shape, alone.config, alone.task.machine).bound == "loads"


def test_planes_are_written_by_whole_vectors():
    layout = Backend.named("mali").layout_for(8, 8, 1)
    target = PlaneTarget("mali")
    add = elementwise(1, 4, (layout, layout), layout, target)
    (kernel,) = kernel_sources(add, resolve("pattern/mali"))
    assert np.prod(kernel.global_size) >= 4 * layout.size // 4
    assert "vstore4" in kernel.source
    assert static_facts(kernel.source).dynamic == ()
    pool = max_pool(1, 4, layout, layout, GEOMETRY, target)
    (kernel,) = kernel_sources(pool, resolve("pattern/mali"))
    assert kernel.work_items == (64, 1, 1)


def test_arrays_indexed_by_a_variable_are_found():
    source = """
__kernel void k(__global float* restrict x_ptr, __global float* restrict out_ptr) {
  float4 a[1];
  float b[8];
  __local float c[64];
  for (int i = 0; i < 8; ++i) {
    b[i] = x_ptr[i];
    a[0] = (a[0] + (vload4(0, x_ptr + i) * a[0]));
  }
}
"""
    facts = static_facts(source)
    assert facts.dynamic == ("b",)
    assert (facts.private_bytes, facts.local_bytes) == (48, 256)
    (loop,) = facts.loops
    assert (loop.multiply_adds, loop.vector_loads, loop.scalar_loads) == (1, 1, 1)


def test_sources_are_of_opencl_targets_only():
    plan = plan_of("mali", 1, 28)
    with pytest.raises(ValueError, match="made for targets of kind opencl, got llvm"):
        kernel_sources(plan.primfunc(), resolve("pattern/native"))
