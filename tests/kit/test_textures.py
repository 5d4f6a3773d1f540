"""A kit for Adreno reads inputs as images where the driver has them, and else as buffers."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace

import pytest
import torch
from torch import nn

from topi_kernels.schedules import choose
from topi_kernels.schedules.opencl.config import GpuConfig
from tvm_pattern.kit import read_result, write_kit
from tvm_pattern.opencl import devices

from .conftest import start

CONFIG = GpuConfig(4, 1, 2, 2, tiles_per_group=4, reads="texture", input_tile="local")


@pytest.fixture(scope="module")
def kit(tmp_path_factory):
    """One convolution by way of a texture and local memory, in either build."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU()).eval()
    network[0].weight.data[:, :, 0] = 0
    folder = tmp_path_factory.mktemp("kits") / "kit"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(choose, "OPENCL", replace(choose.OPENCL, default=lambda *_: CONFIG))
        image = torch.randn(1, 3, 6, 14)
        write_kit(folder, network, image, target="pattern/adreno", host="native", name="memories")
    return folder


@pytest.mark.parametrize("images", ["1", "0"])
def test_images_are_used_where_there_are_some(kit, tmp_path, images):
    """Outputs are compared with torch's by the kit itself."""
    found = devices()
    if not found:
        pytest.skip("no OpenCL device (make opencl-tools)")
    assert (kit / "sparse" / "plan.txt").read_text().count("\ntexture ") == 1
    out = tmp_path / "result.json"
    done = start(kit, "--runs", "1", "--json", str(out), PATTERN_OPENCL_IMAGES=images)
    assert done.returncode == 0, done.stderr
    gpu = read_result(out).device["gpu"]
    assert gpu is not None
    assert gpu["images"] == (images == "1" and found[0].image_texels > 0)


@pytest.mark.parametrize(
    ("pattern", "line", "told"),
    [
        (r"\ntexture \d+", "\ntexture 64", "sparse/plan.txt is damaged"),
        (r"\nkernel ", "\ntexture 0\nkernel ", "a texture comes before any kernel"),
    ],
)
def test_a_damaged_plan(kit, tmp_path, pattern, line, told):
    folder = tmp_path / "kit"
    shutil.copytree(kit, folder)
    path = folder / "sparse" / "plan.txt"
    path.write_text(re.sub(pattern, line, path.read_text(), count=1))
    done = start(folder)
    assert done.returncode != 0
    assert told in done.stderr
