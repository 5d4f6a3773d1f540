"""A script of AutoTVM's shape: tasks, tuners, records, the best ones around the build."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import tvm
from torch import nn

import tvm_pattern as tp
from tvm_pattern import autotvm, relay

SHAPE = (1, 3, 6, 6)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3)).eval()
    tp.pruning.oneshot(model, connectivity=2.0)
    return model


@pytest.fixture(scope="module")
def program(model):
    return relay.frontend.from_pytorch(model, [("input0", SHAPE)])


def tasks_of(program):
    mod, params = program
    return autotvm.task.extract_from_program(
        mod["main"],
        target="pattern/native",
        params=params,
        ops=(relay.op.get("nn.conv2d"),),
        num_threads=1,
    )


def test_a_script_from_tasks_to_output(model, program, tmp_path, capsys):
    mod, params = program
    tasks = tasks_of(program)
    assert len({task.name for task in tasks}) == 2
    assert all(len(task.config_space) > 1 for task in tasks)
    log, best = tmp_path / "net.jsonl", tmp_path / "best.jsonl"
    option = autotvm.measure_option(
        builder=autotvm.LocalBuilder(), runner=autotvm.LocalRunner(repeat=1, min_repeat_ms=0)
    )
    tuner = autotvm.tuner.XGBTuner(tasks[0])
    tuner.tune(
        n_trial=3,
        early_stopping=100,
        measure_option=option,
        callbacks=[autotvm.callback.progress_bar(3, "[1/2] "), autotvm.callback.log_to_file(log)],
    )
    assert "[1/2] 3/3 trials, 0 failed, best" in capsys.readouterr().err
    records = list(autotvm.record.load_from_file(log))
    assert len(records) == 3
    assert tuner.best_seconds == min(record.seconds for record in records)
    assert tuner.best_flops == tasks[0].flop / tuner.best_seconds
    autotvm.record.pick_best(log, best)
    (record,) = autotvm.record.load_from_file(best)
    assert record.config == tuner.best_config.as_dict()
    with autotvm.apply_history_best(best), tvm.transform.PassContext(opt_level=3):
        lib = relay.build(mod, target="pattern/native", params=params, num_threads=1)
    row = next(row for row in lib.library.report if row.layer == tasks[0].name)
    assert {name: row.config[name] for name in record.config} == record.config
    module = relay.graph_executor.GraphModule(lib["default"](tvm.cpu(0)))
    image = torch.randn(SHAPE)
    module.set_input("input0", image.numpy())
    module.run()
    want = model(image).detach().numpy()
    np.testing.assert_allclose(module.get_output(0).numpy(), want, atol=1e-5)


class FakeMeasurer:
    """Stands for the measuring: a configuration's place in the space is its time."""

    def __init__(self, target, num_threads, options) -> None:
        pass

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None

    def measure(self, task, weight, configs, structure):
        return [autotvm.tuner.Measurement((1.0 + n,)) for n, _ in enumerate(configs)]


@pytest.mark.parametrize("name", ["XGBTuner", "GATuner", "RandomTuner", "GridSearchTuner"])
def test_tuners_stop_early_and_learn(program, monkeypatch, name):
    monkeypatch.setattr(autotvm.tuner, "Measurer", FakeMeasurer)
    seen = []
    tuner = getattr(autotvm.tuner, name)(tasks_of(program)[0], batch=2)
    option = autotvm.measure_option()
    tuner.tune(50, option, 4, [lambda _, inputs, results: seen.append((inputs, results))])
    assert [len(inputs) for inputs, _ in seen] == [2, 2, 2]
    assert tuner.best_seconds == 1.0
    assert seen[0][1][1].costs == (2.0,)
    again = getattr(autotvm.tuner, name)(tasks_of(program)[0], batch=2)
    again.load_history(item.record for inputs, _ in seen for item in inputs)
    again.tune(2, option)
    assert again.best_config is not None
    with pytest.raises(ValueError, match="expected at least 1"):
        tuner.tune(0, option)


def test_options():
    runner = autotvm.RPCRunner("pi5", "10.0.0.1", 9191, number=2, repeat=3, timeout=4)
    option = autotvm.measure_option(autotvm.LocalBuilder(timeout=5), runner)
    assert (option.tracker, option.key) == ("10.0.0.1:9191", "pi5")
    assert (option.number, option.repeat) == (2, 3)
    assert (option.run_timeout, option.build_timeout) == (4, 5)
    with pytest.raises(TypeError, match="expected a LocalBuilder, and a LocalRunner or RPCRunner"):
        autotvm.measure_option("local", runner)


def test_what_cannot_be_had_says_what_serves_instead(program, tmp_path):
    with pytest.raises(AttributeError, match="instead serves the schedules of topi_kernels"):
        _ = autotvm.template
    with pytest.raises(AttributeError, match="has no attribute 'nothing'; it has LocalBuilder"):
        _ = autotvm.nothing
    with pytest.raises(AttributeError, match=r"autotvm.task.create is not here; instead serves"):
        _ = autotvm.task.create
    with pytest.raises(AttributeError, match=r"instead serves relay.frontend.from_onnx"):
        _ = relay.frontend.from_tensorflow
    with pytest.raises(
        AttributeError, match=r"relay.Function is not here; instead serves a network"
    ):
        _ = relay.Function
    with pytest.raises(AttributeError, match=r"relay has no attribute 'nothing'; it has Built"):
        _ = relay.nothing
    with pytest.raises(ImportError, match=r"instead serves tvm.relax.transform"):
        from tvm_pattern.relay import transform  # noqa: F401
    with pytest.raises(ValueError, match=r"got the operator 'nn\.lstm', expected one of"):
        relay.op.get("nn.lstm")
    with pytest.raises(ValueError, match=r"ops \['nn.relu'\] have no tasks"):
        autotvm.task.extract_from_program(program[0], ops=["nn.relu"])
    with pytest.raises(ValueError, match="no such tuning log"), autotvm.apply_history_best("none"):
        pass
