"""A pruned ResNet-50 on an emulated ARM device: TVM's own RPC server in an arm64 Debian root.

The root is made once and kept under ``.cache``.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import tvm_pattern as tp
from tvm_pattern.deploy import Device
from tvm_pattern.rpc.server import end_group, free_port
from tvm_pattern.tuning.measure import MeasureOptions
from tvm_pattern.tuning.session import TuneOptions, tune

from .conftest import ROOT, Farm, await_true

KEY = "emulated-arm"
ARM_ROOT = ROOT / ".cache" / "arm" / "root"


def arm_python() -> Path:
    """The root's Python behind its emulator."""
    if not (ARM_ROOT / ".complete").exists():
        command = [str(ROOT / "tools" / "arm" / "make_root.sh"), str(ARM_ROOT), sys.executable]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, f"{' '.join(command)} failed:\n{done.stderr}"
    return ARM_ROOT / "arm-python"


@pytest.fixture(scope="module")
def arm_farm() -> Iterator[Farm]:
    """A tracker here, a server in the root."""
    opened = Farm()
    server = None
    try:
        opened.start_tracker()
        port = free_port()
        command = [str(arm_python()), "-m", "tvm.exec.rpc_server", "--host", "127.0.0.1"]
        command += ["--port", str(port), "--port-end", str(port + 1)]
        command += ["--tracker", opened.address, "--key", KEY]
        environment = {**os.environ, "TVM_NUM_THREADS": "1"}
        server = subprocess.Popen(
            command, start_new_session=True, env=environment, stderr=subprocess.DEVNULL
        )
        await_true(lambda: opened.count(KEY) == 1, "the server in the arm64 root")
        yield opened
    finally:
        if server is not None:
            end_group(server)
        opened.stop()


def test_pruned_resnet50(arm_farm, tmp_path):
    torch.manual_seed(0)
    model = tp.models.resnet50().eval()
    tp.pruning.oneshot(model, connectivity=3.6, group=4, connectivity_1x1=4.0)
    x = torch.randn(1, 3, 32, 32)
    library = tp.compile(model, x, target="pattern/cortex-a76", num_threads=1)
    assert all(row.taken for row in library.report.rows)
    path = library.export(tmp_path / "resnet.so")
    assert library.manifest.architecture == "aarch64"
    with torch.no_grad():
        expected = model(x).numpy()
    with Device.from_tracker(arm_farm.address, KEY, session_timeout=120) as device:
        loaded = device.load(path)
        assert loaded.verify([x.numpy()], [expected]).passed
        assert np.argmax(loaded.run(x.numpy())[0]) == np.argmax(expected)
        assert len(loaded.time(x.numpy(), repeat=1).seconds) == 1


def test_tuning_on_the_device(arm_farm, tmp_path):
    """A few trials measured over RPC; the tuned library still computes what torch does."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.Conv2d(8, 16, 3, padding=1), nn.ReLU()).eval()
    tp.pruning.oneshot(model, connectivity=2.0, group=4)
    x = torch.randn(1, 8, 12, 12)
    measure = MeasureOptions(repeat=1, min_repeat_ms=1, tracker=arm_farm.address, key=KEY)
    options = TuneOptions(trials=3, tuner="random", batch=3, measure=measure)
    log = tmp_path / "arm.jsonl"
    target = "pattern/cortex-a76"
    tune(model, x, target=target, log=log, options=options, num_threads=1)
    assert len(log.read_text().splitlines()) >= 3
    library = tp.compile(model, x, target=target, tuning_log=log, num_threads=1)
    path = library.export(tmp_path / "tuned.so")
    with torch.no_grad():
        expected = model(x).numpy()
    with Device.from_tracker(arm_farm.address, KEY) as device:
        assert device.load(path).verify([x.numpy()], [expected]).passed
