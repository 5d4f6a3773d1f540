"""Measuring on this machine: right, wrong, crashing and endless candidates; build failures."""

from __future__ import annotations

import numpy as np
import pytest

from relay_passes.targets import resolve
from topi_kernels.conv_task import ConvTask
from topi_kernels.layout import PlaneLayout, to_planes
from topi_kernels.operator import plan_conv
from topi_kernels.schedules.config import knobs_of
from tvm_pattern.tuning.measure import (
    MeasureOptions,
    Measurer,
    classify_run_error,
)
from tvm_pattern.tuning.space import Space

from .candidates import crashing, endless, good, write_inputs, wrong
from .small import small_task

TARGET = resolve("pattern/native")
FAST = MeasureOptions(run_timeout=10, repeat=3, min_repeat_ms=1)


@pytest.fixture(scope="module")
def measurer():
    with Measurer(TARGET, 1, FAST) as opened:
        yield opened


def test_one_bad_candidate_does_not_stop_the_others(measurer):
    token = write_inputs(measurer.folder)
    functions = [good(), wrong(), crashing(), good()]
    outcomes = measurer.measure_functions([(f, token) for f in functions])
    assert [o.error_kind for o in outcomes] == ["ok", "wrong_result", "crash", "ok"]
    assert len(outcomes[0].times) == 3
    assert all(t > 0 for t in outcomes[0].times)
    assert outcomes[1].times == ()
    assert "differs from the naive operator" in outcomes[1].error
    assert not list(measurer.folder.glob("*.so"))


def test_an_endless_candidate_is_ended():
    with Measurer(TARGET, 1, MeasureOptions(run_timeout=3, repeat=1, min_repeat_ms=1)) as measurer:
        token = write_inputs(measurer.folder)
        outcomes = measurer.measure_functions([(endless(), token), (good(), token)])
    assert [o.error_kind for o in outcomes] == ["run_timeout", "ok"]
    assert "3 s" in outcomes[0].error


def test_real_weights_and_the_cpu_clock(measurer):
    task, weight = small_task()
    space = Space(task)
    options = MeasureOptions(run_timeout=20, repeat=2, min_repeat_ms=1, clock="cpu")
    with Measurer(TARGET, 1, options) as cpu_clock:
        outcomes = cpu_clock.measure(task, weight, space.configs[:2])
    assert [o.error_kind for o in outcomes] == ["ok", "ok"]


def test_every_knob_of_the_widest_space_computes_the_same(measurer):
    """One configuration per value of each knob; whatever is measured is verified."""
    task, weight = small_task()
    space = Space(task, knobs_of("wide"))
    chosen = {}
    for config in space.configs:
        for knob, value in config.as_dict().items():
            chosen.setdefault((knob, value), config)
    configs = list(dict.fromkeys(chosen.values()))
    assert {"loop_order", "prefetch", "taps_per_step", "shift"} <= {knob for knob, _ in chosen}
    outcomes = measurer.measure(task, weight, configs)
    assert [o.error_kind for o in outcomes] == ["ok"] * len(configs)


def test_a_wrong_answer_is_noticed_with_real_weights(measurer):
    """The same inputs, another layer's code."""
    task, weight = small_task()
    inputs = measurer.inputs(task, weight)
    plan = inputs.plan(Space(task).configs[0])
    other, other_weight = small_task(activation="none")
    other_plan = plan_conv(other, other_weight, plan.config)
    function = other_plan.primfunc().with_attr("global_symbol", "main")
    (outcome,) = measurer.measure_functions([(function, inputs.token(plan))])
    assert outcome.error_kind == "wrong_result"


def test_a_build_failure_is_a_failed_trial(measurer):
    """A function that calls what no library has does not link into a loadable one."""
    token = write_inputs(measurer.folder)
    broken = good().with_attr("target", resolve("pattern/mali"))
    outcomes = measurer.measure_functions([(broken, token), (good(), token)])
    assert outcomes[0].error_kind in ("build_error", "run_error")
    assert outcomes[1].error_kind == "ok"


def test_planes_are_zero_outside(rng):
    layout = PlaneLayout.make(3, 5, 1, 8)
    images = rng.standard_normal((1, 2, 3, 5)).astype(np.float32)
    planes = to_planes(images, layout)
    assert np.count_nonzero(planes) == images.size
    assert planes[0, 1, layout.offset(2, 4)] == images[0, 1, 2, 4]


@pytest.mark.parametrize(
    ("message", "remote", "kind"),
    [
        ("WrongResult: differs", False, "wrong_result"),
        ("LocalRunner: Timeout, killed after 3 seconds", False, "run_timeout"),
        ("RPCSessionTimeoutError: Your 3s session", True, "run_timeout"),
        ("ChildProcessError: Subprocess terminated", False, "crash"),
        ("InternalError: code == kShutdown", True, "device_lost"),
        ("ConnectionResetError: [Errno 104]", True, "device_lost"),
        ("RPCRunner: Timeout, killed after 3 seconds", True, "run_timeout"),
        ("InternalError: code == kShutdown", False, "run_error"),
        ("ValueError: something else", True, "run_error"),
    ],
)
def test_run_errors_are_classified(message, remote, kind):
    assert classify_run_error(message, remote=remote) == kind


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"clock": "sundial"}, "clock 'sundial'"),
        ({"tracker": "a:1"}, "give both"),
        ({"tracker": "a:1", "key": "k", "clock": "cpu"}, "this machine only"),
        ({"repeat": 0}, "got repeat=0, expected at least 1"),
        ({"run_timeout": float("nan")}, "got run_timeout=nan, expected seconds"),
        ({"build_timeout": 0}, "got build_timeout=0, expected seconds"),
        ({"cooldown": float("inf")}, "got cooldown=inf, expected seconds"),
        ({"cpu": 1 << 20}, "got cpu=1048576, expected one of"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        MeasureOptions(**options)


def test_this_machine_must_fit_the_target():
    with pytest.raises(ValueError, match=r"cannot measure for the target.*tracker"):
        Measurer(resolve("pattern/cortex-a76"), 1, FAST)


def test_tasks_survive_json():
    task, _ = small_task()
    assert ConvTask.from_dict(task.as_dict()) == task


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("weight_shape", [8, 8, 2**62, 3], "kernels of at most 255 x 255"),
        ("weight_shape", [8, 8, 3], "weight_shape"),
        ("weight_shape", [8, 8, 0, 3], "weight_shape"),
        ("weight_shape", [8, 8.0, 3, 3], "weight_shape"),
        ("weight_shape", 3, "weight_shape"),
        ("patterns", [1 << 9], "no set of its taps"),
        ("patterns", [-1], "no set of its taps"),
        ("patterns", [True], "no set of its taps"),
    ],
)
def test_a_damaged_task_is_refused_at_once(field, value, message):
    """Read out to the end, a kernel of 2^62 rows would take for ever."""
    task, _ = small_task()
    with pytest.raises(ValueError, match=message):
        ConvTask.from_dict({**task.as_dict(), field: value})
