"""Sources and bundles of GPU libraries: what they say, and that they run without TVM."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import tvm_pattern as tp
import tvm_pattern.opencl.bundle
from relay_passes.targets import resolve
from topi_kernels.schedules.opencl.config import GpuConfig
from tvm_pattern.cli import app
from tvm_pattern.manifest import ArtifactError
from tvm_pattern.opencl.bundle import RUNNER, write_bundle
from tvm_pattern.opencl.inspection import kernels_of
from tvm_pattern.publish import manifest_of

from .test_source import plan_of

TARGET = resolve("pattern/mali")


@pytest.fixture(scope="module")
def phone_library(tmp_path_factory):
    """A library for a phone: nothing of it runs here."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3)).eval()
    library = tp.compile(model, torch.zeros(1, 3, 8, 8), target="pattern/mali", verify=False)
    return library.export(tmp_path_factory.mktemp("phone") / "m.so")


def test_the_sources_of_a_phones_library_are_shown(phone_library):
    done = CliRunner().invoke(app, ["inspect", str(phone_library), "--source", "all", "--json"])
    assert done.exit_code == 0, done.output
    kernels = {kernel["name"]: kernel for kernel in json.loads(done.stdout)}
    first = kernels["pattern_conv2d_kernel"]
    launches = manifest_of(phone_library).launches
    groups, items = launches["pattern_conv2d_kernel"]
    assert first["launch"] == (
        f"{'x'.join(map(str, groups))} work_groups of {'x'.join(map(str, items))}"
    )
    assert "__kernel void pattern_conv2d_kernel(" in first["source"]
    assert any("multiply-adds of vectors" in line for line in first["described"])
    shown = CliRunner().invoke(app, ["inspect", str(phone_library), "--source", "all"])
    assert first["source"] in shown.stdout


def test_a_library_without_opencl(tmp_path):
    path = tmp_path / "cpu.so"
    path.write_bytes(b"\x7fELF // Function: nothing")
    with pytest.raises(ArtifactError, match=r"holds no OpenCL C; expected a \.so"):
        kernels_of(path, {})


def test_bundles_of_a_cpu_are_refused_at_once(tmp_path):
    command = ["compile", "mobilenet_v2", "--shape", "1x3x32x32", "-o", str(tmp_path / "m.so")]
    command += ["--bundles", str(tmp_path / "b")]
    done = CliRunner().invoke(app, [*command, "--target", "pattern/x86-avx2"])
    assert done.exit_code != 0
    assert "name a GPU, such as pattern/mali" in str(done.exception) + done.output


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    plan = plan_of("mali", 4, 28)
    weight = np.asarray(plan.structure.kept, np.float32)
    configs = [plan.config, GpuConfig(4, 4, 1, 1, 2, 32)]
    folder = tmp_path_factory.mktemp("bundles") / "layer"
    return write_bundle(folder, plan.task, weight, TARGET, configs=configs)


def test_a_bundle_says_what_it_computes(bundle):
    described = json.loads((bundle / "bundle.json").read_text())
    assert len(described["kernels"]) == 2
    facts = described["facts"]
    assert facts["dense_equivalent_gflop"] == pytest.approx(2 * 64 * 64 * 9 * 28 * 28 / 1e9)
    assert facts["effective_gflop"] < 0.2 * facts["dense_equivalent_gflop"]
    with np.load(bundle / "arrays.npz") as arrays:
        names = set(arrays.files) | {"out"}
    for kernel in described["kernels"]:
        assert set(kernel["arguments"]) <= names
        assert (bundle / kernel["source"]).is_file()
    assert (bundle.parent / RUNNER.name).is_file()


def test_configs_of_a_bundle_share_their_weights(tmp_path):
    plan = plan_of("mali", 4, 28)
    weight = np.asarray(plan.structure.kept, np.float32)
    configs = [GpuConfig(4, 4, 1, 1), GpuConfig(4, 2, 1, 1)]
    with pytest.raises(ValueError, match=r"share their packed weights, got groups of \[2, 4\]"):
        write_bundle(tmp_path / "b", plan.task, weight, TARGET, configs=configs)


def test_a_bundle_that_is_written_anew_and_not_finished_is_none(tmp_path, monkeypatch):
    plan = plan_of("mali", 4, 28)
    weight = np.asarray(plan.structure.kept, np.float32)
    folder = write_bundle(tmp_path / "b", plan.task, weight, TARGET)

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(tvm_pattern.opencl.bundle, "_arrays", stop)
    with pytest.raises(KeyboardInterrupt):
        write_bundle(folder, plan.task, weight, TARGET)
    command = [sys.executable, str(tmp_path / RUNNER.name), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode != 0
    assert "bundle.json" in done.stderr


def test_a_bundle_runs_without_tvm(device, bundle, tmp_path):
    pytest.importorskip("pyopencl")
    result = tmp_path / "r.json"
    command = [sys.executable, str(bundle.parent / RUNNER.name), str(bundle), "--runs", "2"]
    done = subprocess.run([*command, "--json", str(result)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = json.loads(result.read_text())["rows"]
    assert [row["is_right"] for row in rows] == [True, True]
    assert all(row["p10_ms"] <= row["median_ms"] <= row["p90_ms"] for row in rows)
    with np.load(bundle / "arrays.npz") as stored:
        arrays = dict(stored)
    arrays["expected"] = arrays["expected"] + 1
    np.savez(bundle / "arrays.npz", **arrays)
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert "WRONG" in done.stdout
