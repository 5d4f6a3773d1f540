"""A kit computes what torch computes, wherever it runs, and says so loudly where it does not."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from torch import nn

from tvm_pattern.kit import KitError, read_result, write_kit
from tvm_pattern.opencl import devices

from .conftest import damage, start


@pytest.mark.parametrize("tag", ["native", "cortex-a76", "armv7"])
def test_checked_and_timed(kits, tmp_path, tag):
    out = tmp_path / "result.json"
    name = 'A "手机" \udcff'  # the last one is a byte of no text
    done = start(kits(tag), "--runs", "3", "--warm-up", "1", "--json", str(out), "--name", name)
    assert done.returncode == 0, done.stderr
    result = read_result(out)
    assert (result.device["name"], result.kit["target"]) == ('A "手机" ?', f"pattern/{tag}")
    assert (result.threads, result.runs) == (2, 3)
    assert [row["engine"] for row in result.rows] == ["sparse", "dense"]
    assert all(0 <= row["max_abs_error"] < 1e-4 for row in result.rows)
    assert re.search(r"dense / sparse: [\d.]+x by medians", done.stdout)


def test_on_an_opencl_device(kits, tmp_path):
    if not devices():
        pytest.skip("no OpenCL device (make opencl-tools)")
    out = tmp_path / "result.json"
    done = start(kits("mali"), "--runs", "2", "--json", str(out))
    assert done.returncode == 0, done.stderr
    gpu = read_result(out).device["gpu"]
    assert gpu is not None
    assert gpu["name"]
    assert gpu["compute_units"] > 0


def test_expected_is_torchs(kits, model, image):
    """What the runner compares with does not come from this project's code."""
    for number, value in enumerate(model(image)):
        stored = np.fromfile(kits("native") / f"expected{number}.bin", np.float32)
        np.testing.assert_array_equal(stored, value.detach().numpy().reshape(-1))


@pytest.mark.parametrize(("build", "weights"), [("sparse", [96, 128]), ("dense", [216, 576])])
def test_weights_that_a_build_computes(kits, build, weights):
    """Four of nine in every kernel of 8x3 and in half of 8x8; all of them in the dense build.

    There Winograd's filtering, which some processors gain by, has four times as many.
    """
    lines = (kits("native") / build / "plan.txt").read_text().splitlines()
    tensors = [line.split() for line in lines if line.startswith("tensor")]
    calls = [line.split() for line in lines if line.startswith("call pattern_conv2d")]
    constants = [[tensors[int(argument)] for argument in call[3:]] for call in calls]
    floats = [[t for t in given if t[1] == "weights" and t[3] == "2"] for given in constants]
    found = [max(int(tensor[-1]) for tensor in given) for given in floats]
    assert found == weights or (build == "dense" and found == [4 * size for size in weights])


@pytest.mark.parametrize("build", ["sparse", "dense"])
def test_a_wrong_answer_is_said(copy_of, tmp_path, build):
    folder = copy_of("native")
    damage(folder / build / "weights.bin", 3.0)
    out = tmp_path / "result.json"
    done = start(folder, "--json", str(out))
    assert done.returncode == 1
    assert f"WRONG: {build} computes another" in done.stderr
    assert "its times mean nothing" in done.stderr
    assert not out.exists()


def test_nan_is_wrong(copy_of, tmp_path):
    folder = copy_of("native")
    damage(folder / "sparse" / "weights.bin", float("nan"))
    done = start(folder, "--json", str(tmp_path / "result.json"))
    assert done.returncode == 1
    assert "WRONG" in done.stderr


@pytest.mark.parametrize(
    ("file", "old", "new", "told"),
    [
        ("kit.txt", "kit 1", "kit 9", "kit.txt is damaged or of another version"),
        ("kit.txt", "end", "", "kit.txt is damaged or of another version"),
        ("sparse/plan.txt", "plan 1", "plan 2", "plan.txt is damaged: it begins with another"),
        ("sparse/plan.txt", "end", "", "plan.txt is damaged: it is cut off"),
        ("sparse/plan.txt", "end", "weights 0\nend", "plan.txt is damaged: the weights come after"),
        ("sparse/plan.txt", "tensor input 0", "tensor input 7", "missing or out of range"),
        ("sparse/plan.txt", "tensor input 0", "tensor nowhere 0", "no tensor lies in nowhere"),
        ("sparse/plan.txt", "weights ", "weights 1", "has another size than"),
        ("sparse/plan.txt", "tensor weights 0", "tensor weights 99999999", "beyond the end"),
        ("sparse/plan.txt", "call pattern_conv2d ", "call other ", "which the program does not"),
        ("dense/plan.txt", "device cpu", "device mali", "the plan is for mali"),
    ],
)
def test_damaged(copy_of, file, old, new, told):
    folder = copy_of("native")
    text = (folder / file).read_text()
    assert old in text
    (folder / file).write_text(text.replace(old, new, 1))
    done = start(folder)
    assert done.returncode == 1
    assert told in done.stderr


@pytest.mark.parametrize("file", ["input0.bin", "expected0.bin", "sparse/weights.bin"])
def test_a_file_is_missing_or_short(copy_of, file):
    folder = copy_of("native")
    (folder / file).write_bytes((folder / file).read_bytes()[:-4])
    assert start(folder).returncode == 1
    (folder / file).unlink()
    done = start(folder)
    assert done.returncode == 1
    assert "copy the whole folder" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (("--runs", "0"), 2, "got --runs 0"),
        (("--runs",), 2, "got --runs"),
        (("--runs", "1.5"), 2, "got --runs 1.5"),
        (("--speed", "1"), 2, "got --speed 1"),
        (("--threads", "3"), 1, "made for 2 threads, got --threads 3"),
        (("--cores", "fast"), 1, "got --cores fast, expected big, little or all"),
        (("--json", "/nowhere/x.json", "--runs", "1"), 1, "cannot write /nowhere/x.json"),
    ],
)
def test_wrong_arguments(kits, arguments, code, told):
    done = start(kits("native"), *arguments)
    assert (done.returncode, told in done.stderr) == (code, True), done.stderr


def test_without_opencl(kits):
    done = start(kits("mali"), PATTERN_OPENCL="/nowhere/libOpenCL.so")
    assert done.returncode == 1
    assert "no OpenCL driver (" in done.stderr
    assert "PATTERN_OPENCL" in done.stderr


def test_no_such_opencl_device(kits):
    if not devices():
        pytest.skip("no OpenCL device (make opencl-tools)")
    done = start(kits("mali"), PATTERN_OPENCL_DEVICE="14")
    assert done.returncode == 1
    assert "no OpenCL device 14" in done.stderr


def test_a_kernel_that_does_not_build(copy_of):
    if not devices():
        pytest.skip("no OpenCL device (make opencl-tools)")
    folder = copy_of("mali")
    (folder / "sparse" / "pattern_conv2d.cl").write_text("not OpenCL")
    done = start(folder)
    assert done.returncode == 1
    assert "pattern_conv2d.cl does not build on" in done.stderr


def test_another_folder_is_not_touched(model, image, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(KitError, match="is not empty and no kit"):
        write_kit(tmp_path, model, image, target="pattern/native")
    with pytest.raises(KitError, match="is a file"):
        write_kit(tmp_path / "mine.txt", model, image, target="pattern/native")
    assert (tmp_path / "mine.txt").read_text() == "mine"


class Sorted(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.sort(x, dim=1).values


def test_what_needs_tvms_runtime_is_refused(tmp_path):
    with pytest.raises(KitError, match=r"argsort needs TVM's runtime"):
        write_kit(tmp_path / "kit", Sorted().eval(), torch.randn(1, 8), target="pattern/native")
    assert not (tmp_path / "kit").exists()
    assert list(tmp_path.iterdir()) == []


def test_without_a_cross_compiler(model, image, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(KitError, match="no compiler 'aarch64-linux-gnu-gcc'"):
        write_kit(tmp_path / "kit", model, image, target="pattern/cortex-a76")
