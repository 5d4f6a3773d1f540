"""Inputs read as textures, and by way of local memory: results, counts, choice, refusals.

PoCL takes long for a kernel with many reads of images, so the kernels that run here have few.
"""

from __future__ import annotations

import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
import tvm
from conv_cases import from_planes, to_planes
from torch.nn.functional import conv2d

from benchmarks import oclgrind
from relay_passes.targets import resolve
from topi_kernels.backend import Backend
from topi_kernels.geometry import ConvGeometry
from topi_kernels.schedules.adreno import ADRENO
from topi_kernels.schedules.mali import MALI
from topi_kernels.schedules.opencl.config import GpuConfig
from topi_kernels.schedules.opencl.cost import counts_of, local_tile_of
from topi_kernels.schedules.opencl.source import kernel_sources
from topi_kernels.schedules.opencl.space import default_config, illegal_for, search_space
from topi_kernels.schedules.opencl.static_facts import static_facts
from topi_kernels.schedules.opencl.textures import textures_of, with_textures
from topi_kernels.workload import Epilogue
from tvm_pattern import opencl
from tvm_pattern.opencl.bundle import write_bundle

from .gpu_cases import conv_difference, planned, run

TOLERANCE = 1e-5
MEMORIES = {
    "texture": {"reads": "texture"},
    "local": {"input_tile": "local"},
    "texture to local": {"reads": "texture", "input_tile": "local"},
}
#: Tiles of the last row are moved back, and in a copy of the last work_group some have no tile.
CASES = {
    "stride 1": ((9, 14), 1, GpuConfig(4, 1, 2, 2, tiles_per_group=4)),
    "stride 2": ((13, 11), 2, GpuConfig(4, 1, 2, 1, tiles_per_group=2)),
}
TARGET = resolve("pattern/adreno")
GEOMETRY = ConvGeometry((3, 3), padding=(1, 1))


def corners(filters: int = 6, channels: int = 5) -> np.ndarray:
    """Kernels of one pattern of three taps, of which some are missing."""
    rng = np.random.default_rng(0)
    weight = np.zeros((filters, channels, 3, 3), np.float32)
    for row, column in ((0, 1), (1, 0), (1, 1)):
        weight[:, :, row, column] = rng.standard_normal((filters, channels))
    return weight * (rng.random((filters, channels, 1, 1)) < 0.7)


def plan_of(size: tuple[int, int] = (9, 14), config: GpuConfig | None = None, family="adreno"):
    layout = Backend.named(family).layout_for(*size, 1)
    layouts = (layout, layout)
    return planned(corners(), GEOMETRY, layouts, Epilogue(True), family=family, config=config)


@pytest.mark.parametrize("memory", MEMORIES)
@pytest.mark.parametrize("case", CASES)
def test_equal_to_torch(device, tmp_path, monkeypatch, capfd, memory, case):
    """And textures are images of the memory of buffers, unless they are not wanted."""
    size, stride, config = CASES[case]
    config = replace(config, **MEMORIES[memory])
    made = tvm.get_global_func("tvm_pattern.opencl.images")
    before = made(0)

    def error() -> float:
        options = {"size": size, "stride": stride, "batch": 2, "family": "adreno"}
        return conv_difference(corners(), tmp_path, config=config, **options)

    assert error() < TOLERANCE
    has_images = opencl.devices()[0].image_texels > 0
    assert made(0) - before == int(config.reads == "texture" and has_images)
    if config.reads == "texture":
        monkeypatch.setenv("PATTERN_OPENCL_IMAGES", "0")
        before = made(0)
        assert error() < TOLERANCE
        assert made(0) == before
        assert "gives no images of that size; main_kernel reads buffers" in capfd.readouterr().err


@pytest.mark.parametrize("memory", MEMORIES)
def test_float16(device, tmp_path, memory):
    """Rounded as torch's; where the type is emulated, texels are too."""
    config = GpuConfig(8, 1, 2, 1, tiles_per_group=3, **MEMORIES[memory])
    weight = corners().astype(np.float16)
    x = np.random.default_rng(1).standard_normal((1, 5, 6, 16)).astype(np.float16)
    layout = Backend.named("adreno").layout_for(6, 16, 1, "float16")
    plan = planned(weight, GEOMETRY, (layout,) * 2, Epilogue(), config=config, family="adreno")
    out = np.full((1, 6, layout.size), np.nan, np.float16)
    arrays = [to_planes(x, layout).astype(np.float16), *plan.arrays, out]
    with opencl.emulated_float16():
        got = from_planes(run(plan.primfunc(), arrays, tmp_path), layout)
    expected = conv2d(torch.tensor(x), torch.tensor(weight), padding=1).numpy()
    np.testing.assert_allclose(got, expected, rtol=2.0**-10, atol=2.0**-10)


@pytest.mark.parametrize("memory", MEMORIES)
def test_the_model_counts_what_is_emitted(memory):
    config = replace(CASES["stride 1"][2], **MEMORIES[memory])
    plan = plan_of(config=config)
    (kernel,) = kernel_sources(plan.primfunc(), TARGET)
    facts = static_facts(kernel.source)
    (loop,), (counts,) = facts.loops, counts_of(plan.task.shape, config, ADRENO)
    is_local, is_texture = config.input_tile == "local", config.reads == "texture"
    copies = local_tile_of(plan.task.shape, config, ADRENO).copies if is_local else 0
    assert facts.dynamic == ()
    assert [a.name for a in kernel.arguments if a.is_texture] == ["x"] * is_texture
    assert loop.multiply_adds == counts.multiply_adds
    assert loop.texels == (copies or counts.input_loads) * is_texture
    assert loop.local_loads == counts.input_loads * is_local
    inputs = copies if is_local else counts.input_loads
    assert loop.vector_loads + loop.scalar_loads == inputs + counts.weight_loads
    assert facts.barriers == 2 * is_local
    assert facts.local_bytes <= ADRENO.local_memory


@pytest.mark.parametrize("memory", MEMORIES)
def test_no_race_and_nothing_outside_a_buffer(tmp_path, memory):
    """In a simulator, which also counts the barriers: two for each kernel of a work_group."""
    pytest.importorskip("pyopencl")
    if shutil.which("oclgrind") is None:
        pytest.skip("no oclgrind (make opencl-tools)")
    config = replace(CASES["stride 1"][2], **MEMORIES[memory])
    weight = corners()
    plan = plan_of(config=config)
    counted = oclgrind.count(
        write_bundle(tmp_path / "b", plan.task, weight, TARGET, configs=[config]), races=True
    )
    groups = -(-5 * 2 // config.tiles_per_group) * config.tiles_per_group
    kernels = int(np.any(weight, (2, 3)).sum())
    is_local = config.input_tile == "local"
    assert counted.barriers == 2 * kernels * groups * is_local
    assert (counted.local_loads > 0) == is_local


@pytest.mark.parametrize("reads", ["buffer", "texture"])
def test_a_bundle_on_a_device_without_images(device, tmp_path, monkeypatch, capsys, reads):
    """Buffers are read; that is said of kernels that would read images, of no others."""
    pytest.importorskip("pyopencl")
    from tvm_pattern.opencl import run_bundle

    config = replace(CASES["stride 1"][2], reads=reads)
    task = plan_of(config=config).task
    folder = write_bundle(tmp_path / "b", task, corners(), TARGET, configs=[config])
    monkeypatch.setattr(run_bundle.Device, "images", lambda *_: None)
    monkeypatch.setattr("sys.argv", ["run_bundle.py", str(folder), "--once"])
    assert run_bundle.main() == 0
    said = "lacks images of that size; reads buffers" in capsys.readouterr().out
    assert said == (reads == "texture")


def test_level_0_takes_the_memory_that_the_model_finds_cheaper():
    shape = plan_of((28, 28)).task.shape
    equal = default_config(shape, ADRENO)
    assert (equal.reads, equal.input_tile) == ("buffer", "global")
    slow = replace(ADRENO, load_bytes=ADRENO.load_bytes / 64)
    assert default_config(shape, slow).reads == "texture"
    local = replace(slow, texture_bytes=0.0, local_bytes=ADRENO.load_bytes)
    assert default_config(shape, local).input_tile == "local"
    of_adreno = {(c.reads, c.input_tile) for c in search_space(shape, ADRENO)}
    assert len(of_adreno) == 4
    assert {(c.reads, c.input_tile) for c in search_space(shape, MALI)} == {("buffer", "global")}


@pytest.mark.parametrize(
    ("facts", "change", "reason"),
    [
        (ADRENO, {"reads": "image"}, "reads 'image' is not one of"),
        (ADRENO, {"input_tile": "shared"}, "input_tile 'shared' is not one of"),
        (MALI, {"reads": "texture"}, "schedules for mali read buffers only"),
        (MALI, {"input_tile": "local"}, "local memory of mali is main memory"),
        (ADRENO, {"reads": "texture", "loads": "anywhere"}, "are read by aligned loads"),
        (
            ADRENO,
            {"reads": "texture", "vector_width": 2, "tile_cols": 3},
            "a texel holds 4 elements, tiles begin at multiples of 2",
        ),
        (ADRENO, {"input_tile": "local", "filter_groups_per_group": 2}, "the same in_channels"),
        (
            replace(ADRENO, local_memory=256),
            {"input_tile": "local"},
            "a local copy of .* bytes exceeds the device's 256",
        ),
        (ADRENO, {"input_tile": "local", "tiles_per_group": 1}, "would copy .* vectors"),
    ],
)
def test_refused_by_name(facts, change, reason):
    shape = plan_of((30, 64)).task.shape
    config = GpuConfig(4, 1, 2, 2, tiles_per_group=16)
    assert illegal_for(shape, config, facts) is None
    found = illegal_for(shape, replace(config, **change), facts)
    assert found is not None
    assert re.search(reason, found), found


def test_programs_without_textures_stay():
    assert with_textures("__kernel void k() {}") == "__kernel void k() {}"
    assert textures_of("__kernel void k() {}") == ()
