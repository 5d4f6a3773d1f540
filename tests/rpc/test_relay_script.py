"""A script of the old tutorials' shape: import, tune over a tracker, build, run on the device."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import tvm
from torch import nn
from tvm.support import cc as tvm_cc
from tvm.support import ndk, utils

import tvm_pattern as tp
from tvm_pattern import autotvm, relay
from tvm_pattern.deploy import DeviceError
from tvm_pattern.relay import graph_executor

from .conftest import KEY, Farm

SHAPE = (1, 3, 6, 6)


@pytest.fixture(scope="module")
def tracker():
    opened = Farm()
    try:
        opened.start_tracker()
        opened.start_server()
        yield opened
    finally:
        opened.stop()


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU()).eval()
    tp.pruning.oneshot(model, connectivity=1.5)
    return model


@pytest.fixture(scope="module")
def program(model):
    return relay.frontend.from_pytorch(model, [("data", SHAPE)])


@pytest.fixture(scope="module")
def built(program):
    mod, params = program
    return relay.build(mod, target="pattern/native", params=params, num_threads=1, verify=False)


def test_tune_build_and_run_over_a_tracker(tracker, model, program, tmp_path):
    mod, params = program
    target, log_file = "pattern/native", str(tmp_path / "net.log")
    tuning_option = {
        "log_filename": log_file,
        "tuner": "xgb",
        "n_trial": 2,
        "early_stopping": None,
        "measure_option": autotvm.measure_option(
            builder=autotvm.LocalBuilder(),
            runner=autotvm.RPCRunner(
                KEY, host="127.0.0.1", port=tracker.port, number=1, repeat=1, timeout=100
            ),
        ),
    }
    tasks = autotvm.task.extract_from_program(
        mod["main"],
        target=target,
        params=params,
        ops=(relay.op.get("nn.conv2d"),),
        num_threads=1,
    )
    for tsk in reversed(tasks):
        tuner_obj = autotvm.tuner.XGBTuner(tsk)
        n_trial = min(tuning_option["n_trial"], len(tsk.config_space))
        tuner_obj.tune(
            n_trial=n_trial,
            early_stopping=tuning_option["early_stopping"],
            measure_option=tuning_option["measure_option"],
            callbacks=[
                autotvm.callback.progress_bar(n_trial, prefix="[Task 1/1] "),
                autotvm.callback.log_to_file(log_file),
            ],
        )
    assert all(r.ok for r in autotvm.record.load_from_file(log_file))
    with autotvm.apply_history_best(log_file), tvm.transform.PassContext(opt_level=3):
        lib = relay.build(mod, target=target, params=params, num_threads=1)
    tmp = utils.tempdir()
    filename = "net.so"
    lib.export_library(tmp.relpath(filename), tvm_cc.create_shared)

    remote = autotvm.measure.request_remote(KEY, "127.0.0.1", tracker.port, timeout=100)
    try:
        remote.upload(tmp.relpath(filename))
        rlib = remote.load_module(filename)
        dev = remote.cpu(0)
        module = graph_executor.GraphModule(rlib["default"](dev))
        image = np.random.default_rng(0).uniform(size=SHAPE).astype("float32")
        module.set_input("data", tvm.runtime.tensor(image))
        module.run()
        with torch.no_grad():
            want = model(torch.from_numpy(image)).numpy()
        np.testing.assert_allclose(module.get_output(0).numpy(), want, atol=1e-5)
        result = module.benchmark(dev, number=1, repeat=3)
        assert len(result.results) == 3
        assert min(result.results) > 0
        with pytest.raises(KeyError, match="expected 'default'"):
            rlib["main"]
        with pytest.raises(DeviceError, match="expected one of the uploaded"):
            remote.load_module("other.so")
        with pytest.raises(DeviceError, match=r"no such file: missing\.so"):
            remote.upload("missing.so")
    finally:
        remote.close()


def test_ndk_create_shared(built, tmp_path, monkeypatch):
    monkeypatch.delenv("TVM_NDK_CC", raising=False)
    with pytest.raises(RuntimeError, match="needs the environment variable TVM_NDK_CC"):
        built.export_library(tmp_path / "net.so", ndk.create_shared)
    monkeypatch.setenv("TVM_NDK_CC", "some-clang")
    asked = []
    monkeypatch.setattr(built.library, "export", lambda *a, **k: asked.append((a, k)))
    built.export_library("net.so", ndk.create_shared)
    built.export_library("net.so", "clang")
    assert asked == [(("net.so",), {"cc": None}), (("net.so",), {"cc": "clang"})]
    with pytest.raises(TypeError, match=r"expected tvm\.support\.ndk\.create_shared"):
        built.export_library("net.so", print)


@pytest.mark.parametrize(
    ("network", "layers"),
    [(relay.testing.resnet, 50), (relay.testing.vgg, 16), (relay.testing.mobilenet, 2)],
)
def test_networks_are_those_of_the_models(network, layers, monkeypatch):
    built = []

    def build(num_classes):
        built.append(num_classes)
        return nn.Sequential(nn.Conv2d(3, num_classes, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())

    monkeypatch.setattr(network, "_builders", {layers: build})
    mod, params = network.get_workload(batch_size=2, num_classes=7, image_shape=(3, 8, 8))
    assert (built, params) == ([7], {})
    assert [str(p.name) for p in mod["main"].params] == ["data"]
    assert [int(n) for n in mod["main"].params[0].ty.shape] == [2, 3, 8, 8]
    with pytest.raises(ValueError, match=f"18 layers in float32, expected float32 and .*{layers}"):
        network.get_workload(num_layers=18)
    with pytest.raises(ValueError, match="in float16"):
        network.get_workload(dtype="float16")
