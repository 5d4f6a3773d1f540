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
from tvm_pattern.tuning.records import TuningLog, best_records
from tvm_pattern.tuning.session import TuneOptions, tune

from .conftest import ROOT, Farm, await_true

KEY = "emulated-arm"
TARGET = "pattern/cortex-a76"
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


@pytest.fixture(scope="module")
def resnet():
    """A pruned ResNet-50 and its predictions for four small images."""
    torch.manual_seed(0)
    model = tp.models.resnet50().eval()
    tp.pruning.oneshot(model, connectivity=3.6, group=4, connectivity_1x1=4.0)
    images = [torch.randn(1, 3, 32, 32) for _ in range(4)]
    with torch.no_grad():
        return model, images, [model(image).numpy() for image in images]


def assert_same_predictions(library, images, expected) -> None:
    for image, scores in zip(images, expected, strict=True):
        (got,) = library.run(image.numpy())
        assert np.argmax(got) == np.argmax(scores)
        assert np.abs(got - scores).max() <= 1e-4 * np.abs(scores).max()


def test_pruned_resnet50(arm_farm, resnet, tmp_path):
    model, images, expected = resnet
    library = tp.compile(model, images[0], target=TARGET, num_threads=1)
    assert all(row.taken for row in library.report.rows)
    path = library.export(tmp_path / "resnet.so")
    assert library.manifest.architecture == "aarch64"
    with Device.from_tracker(arm_farm.address, KEY, session_timeout=240) as device:
        loaded = device.load(path)
        assert loaded.verify([images[0].numpy()], expected[:1]).passed
        assert len(loaded.time(images[0].numpy(), repeat=1).seconds) == 1
        # Emulated: which layers there are and that each is timed, not how long they take.
        profile = loaded.profile(repeat=1, min_repeat_ms=0)
    layers = {step.layer for step in profile.steps}
    assert {row.layer for row in library.report} <= layers
    assert all(step.ms > 0 for step in profile.steps)


def test_tuning_on_the_device(arm_farm, resnet, tmp_path):
    """Some trials of the network's own layers, measured over RPC; its predictions stay torch's."""
    model, images, expected = resnet
    measure = MeasureOptions(
        repeat=1, min_repeat_ms=1, tracker=arm_farm.address, key=KEY, run_timeout=60
    )
    options = TuneOptions(trials=12, tuner="random", batch=3, measure=measure)
    log = tmp_path / "arm.jsonl"
    result = tune(model, images[0], target=TARGET, log=log, options=options, num_threads=1)
    assert result.failed == 0
    best = best_records(TuningLog(log).records())
    assert len(best) >= 4
    assert all(record.device == KEY for record in best)
    library = tp.compile(model, images[0], target=TARGET, tuning_log=log, num_threads=1)
    used = [row.config for row in library.report]
    assert all(record.config in used for record in best)
    path = library.export(tmp_path / "tuned.so")
    with Device.from_tracker(arm_farm.address, KEY, session_timeout=240) as device:
        assert_same_predictions(device.load(path), images, expected)


def test_float16_network(arm_farm, tmp_path):
    torch.manual_seed(1)
    layers = (nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 8, 1))
    model = nn.Sequential(*layers).eval()
    tp.pruning.oneshot(model, connectivity=2.0, group=4)
    x = torch.randn(1, 8, 12, 12)
    with torch.no_grad():
        expected = model.half().double()(x.half().double()).numpy()
    library = tp.compile(model.half(), x.half(), target=TARGET, num_threads=1)
    assert all(row.taken for row in library.report)
    path = library.export(tmp_path / "half.so")
    with Device.from_tracker(arm_farm.address, KEY) as device:
        # Two layers of up to 16 terms, each rounded to 11 bits.
        check = device.load(path).verify([x.half().numpy()], [expected], tolerance=2.0**-11 * 8)
        assert check.passed
