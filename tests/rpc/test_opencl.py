"""GPU libraries over RPC: tracker, server, OpenCL device, with the same calls as for a CPU."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import tvm
from docs.blocks import ROOT, blocks_of
from torch import nn
from tvm.target import Target
from typer.testing import CliRunner

import tvm_pattern as tp
from relay_passes.targets import resolve
from tvm_pattern import autotvm, devices, opencl, relay
from tvm_pattern.cli import app
from tvm_pattern.crosscompile import linker_for
from tvm_pattern.deploy.device import Device, DeviceError, WrongDeviceError
from tvm_pattern.deploy.farm import run_everywhere
from tvm_pattern.opencl.facts import why_none
from tvm_pattern.rpc.client import RPCError
from tvm_pattern.rpc.doctor import check_target
from tvm_pattern.rpc.server import ServerOptions
from tvm_pattern.sources import open_model, pruned_at_once

from .conftest import Farm

GPU, PLAIN = "gpu", "plain"


@pytest.fixture(scope="module")
def servers():
    """A tracker, a server with OpenCL and one without."""
    if not opencl.devices():
        pytest.skip(f"{why_none()} (make opencl-tools)")
    farm = Farm()
    try:
        farm.start_tracker()
        farm.start_server(GPU, "--opencl")
        farm.start_server(PLAIN)
        yield farm
    finally:
        farm.stop()


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 49, 10)]
    return nn.Sequential(*layers).eval()


@pytest.fixture(scope="module")
def exported(servers, model, tmp_path_factory):
    """A library for the server, its input and the model's output."""
    image = torch.randn(1, 3, 9, 9, generator=torch.Generator().manual_seed(1))
    library = tp.compile(model, image, target="pattern/adreno", host="native")
    path = library.export(tmp_path_factory.mktemp("gpu") / "m.so")
    return path, image.numpy(), model(image).detach().numpy()


def test_run_verify_and_profile(servers, exported):
    path, image, expected = exported
    (row,) = run_everywhere(servers.address, GPU, path, [image], [expected], repeat=2, profile=True)
    assert row.error == ""
    assert row.verified is True
    assert row.max_abs_error < 1e-5
    assert row.median_ms > 0
    assert any("conv2d" in step.op for step in row.profile.steps)


def test_the_script_for_a_mobile_gpu_of_the_docs_runs(servers, tmp_path, monkeypatch):
    """As it stands there, with a small network for ResNet-50."""
    [block] = [b for b in blocks_of(ROOT / "docs" / "from-relay.md") if "pattern/mali" in b.code]
    monkeypatch.chdir(tmp_path)

    def small(num_classes):
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())

    monkeypatch.setattr(relay.testing.resnet, "_builders", {50: small})
    code = block.code.replace("PORT", str(servers.port)).replace("224", "9")
    names: dict[str, Any] = {"__name__": "script"}
    exec(compile(code, block.page.name, "exec"), names)
    with torch.no_grad():
        want = small(8)(torch.from_numpy(names["image"])).numpy()
    np.testing.assert_allclose(names["module"].get_output(0).numpy(), want, atol=1e-5)
    records = autotvm.record.load_from_file(names["log_file"])
    assert [r.ok for r in records] == [True]


def test_a_server_without_opencl(servers, exported):
    path, image, _ = exported
    (row,) = run_everywhere(servers.address, PLAIN, path, [image])
    assert "its server has no opencl device; start `tvm-pattern rpc server --opencl`" in row.error


def test_whether_a_server_fits_the_target(servers):
    target = resolve("pattern/mali", "native")
    check_target(servers.client, GPU, target, linker_for(target))
    with pytest.raises(RPCError, match="its server has no opencl device"):
        check_target(servers.client, PLAIN, target, linker_for(target))


def test_another_gpu_over_there(servers, exported, monkeypatch):
    path, _, _ = exported
    monkeypatch.setattr(devices, "why_wrong_gpu", lambda target, name: f"not for {name}")
    with (
        Device.from_tracker(servers.address, GPU) as device,
        pytest.raises(WrongDeviceError, match="cannot run the library: not for "),
    ):
        device.load(path)


def test_an_error_over_there_names_the_layer(servers, tmp_path):
    if opencl.devices()[0].float16:
        pytest.skip("this device computes in float16")
    half = nn.Sequential(nn.Conv2d(3, 4, 3)).eval().half()
    image = torch.ones(1, 3, 9, 9, dtype=torch.float16)
    library = tp.compile(half, image, target="pattern/mali", host="native", verify=False)
    path = library.export(tmp_path / "h.so")
    with Device.from_tracker(servers.address, GPU) as device:
        loaded = device.load(path)
        with pytest.raises(DeviceError, match=r"running failed in layer \w+: .*float16, which"):
            loaded.run(image.numpy())


def test_too_much_for_the_device_over_there(servers):
    with Device.from_tracker(servers.address, GPU) as device:
        place = devices.device_of(Target("pattern/mali"), device.session)
        with (
            pytest.raises(DeviceError, match=r"no buffer of \d+ bytes.*smaller batch"),
            device._translated("allocating"),
        ):
            tvm.runtime.empty((1 << 42,), "float32", place)


def test_the_command_of_a_server_with_opencl():
    command = ServerOptions("127.0.0.1:1", "k", "127.0.0.1", opencl=True).command()
    assert command[-1] == "--opencl"
    assert "--opencl" not in ServerOptions("127.0.0.1:1", "k", "127.0.0.1").command()


def test_a_server_that_shall_have_opencl_and_has_none(monkeypatch):
    monkeypatch.setattr(opencl, "devices", list)
    monkeypatch.setenv("COLUMNS", "300")
    arguments = ["rpc", "server", "--tracker", "127.0.0.1:1", "--key", "k", "--opencl"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 1
    assert "no OpenCL device" in done.output


def test_outputs_are_the_same_here_and_there(servers, exported):
    path, image, _ = exported
    with Device.from_tracker(servers.address, GPU) as device:
        (there,) = device.load(path).run(image)
    np.testing.assert_array_equal(there, tp.load(path)(image))


NETWORK = """
import torch
from torch import nn


def net():
    torch.manual_seed(0)
    layers = [nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 64, 4)]
    return nn.Sequential(*layers).eval()
"""
MODEL = ("gpu_network:net", "--shape", "1x8x8x8", "--connectivity", "2")
TARGET = ("--target", "pattern/mali", "--host", "native", "--threads", "1")
QUICK = ("--tuner", "random", "--batch", "3", "--repeat", "2", "--min-repeat-ms", "0")


def command(*words: Any, code: int = 0) -> Any:
    """What a command prints as JSON."""
    done = CliRunner().invoke(app, [*map(str, words), "--json"])
    assert done.exit_code == code, done.output
    return json.loads(done.stdout)


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """The current folder, with a network that commands can name."""
    (tmp_path / "gpu_network.py").write_text(NETWORK)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_from_tuning_to_a_verified_run_by_commands(servers, folder):
    """The commands of a CPU; only target and host differ."""
    there = ("--tracker", servers.address, "--key", GPU)
    tuned = command(
        "tune", "--model", *MODEL, *TARGET, *there, *QUICK, "--trials", 3, "--log", "log.jsonl"
    )
    records = [json.loads(line) for line in Path("log.jsonl").read_text().splitlines()]
    assert (tuned["trials"], tuned["failed"], len(records)) == (3, 0, 3)
    assert {record["device"] for record in records} == {GPU}
    # Of each trial's times the lower quartile counts.
    best = min(records, key=lambda record: np.percentile(record["times"], 25, method="lower"))

    built = command("compile", *MODEL, *TARGET, "--tuning-log", "log.jsonl", "-o", "m.so")
    assert built["report"][0]["config"] == best["config"]
    assert built["verification"]["status"] == "checked"

    model = pruned_at_once(open_model(MODEL[0]), 2.0, None, None)
    x = np.random.default_rng(0).standard_normal((1, 8, 8, 8)).astype(np.float32)
    y = model(torch.from_numpy(x)).detach().numpy()
    for name, value in (("x.npy", x), ("y.npy", y), ("wrong.npy", y + 1)):
        np.save(name, value)
    (here,) = command("run", "m.so", "-i", "x.npy", "--repeat", 1)["outputs"]
    assert here["argmax"] == int(y.argmax())
    assert here["max"] == pytest.approx(float(y.max()), rel=1e-4)
    remote = ("run", "--lib", "m.so", *there, "-i", "x.npy", "--repeat", 1, "--expected")
    (row,) = command(*remote, "y.npy")
    assert (row["verified"], row["error"]) == (True, "")
    (row,) = command(*remote, "wrong.npy", code=1)
    assert row["verified"] is False
    (row,) = command("bench", "--lib", "m.so", *there, "--repeat", 2, "--cool-down", 0)
    assert row["median_ms"] > 0
