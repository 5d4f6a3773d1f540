"""Devices: which one a Target means, errors that list what there is, and a toy one from outside."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
import tvm
from conv_cases import ConvCase, pattern_weights
from families import UNSCHEDULED
from relax_oracle import check_against_torch
from torch import nn
from tvm.target import Target

import tvm_pattern
from relay_passes import pipeline, targets
from relay_passes.report import ReportBuilder
from topi_kernels.backend import Backend, default_layout
from topi_kernels.device import Device, Registry
from topi_kernels.devices import DEVICES
from topi_kernels.operator import plan_conv
from topi_kernels.plane_ops import PlaneTarget
from topi_kernels.schedules.arm_cpu import CORES
from topi_kernels.schedules.family import Family
from tvm_pattern.tuning.measure import MeasureOptions
from tvm_pattern.tuning.session import TuneOptions, tune

# --- A device that this file alone knows: facts, which Targets it means, registration. ---

TOY_FACTS = Family("toy", vector_width=4, vector_registers=8, temporaries=2, prefetch=0)
TOY_TARGET = {**targets.native_config(), "keys": ["pattern", "toy", "cpu"]}


def register(registry: Registry) -> None:
    """What a device's file ends with."""
    registry.add(Device("toy", lambda target: False, TOY_FACTS))


# -----------------------------------------------------------------------------------------


@pytest.fixture
def toy() -> Iterator[Device]:
    register(DEVICES)
    yield DEVICES.named("toy")
    DEVICES.remove("toy")


@pytest.fixture
def network() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 12, 1),
    )
    tvm_pattern.pruning.oneshot(model.eval(), connectivity=2.0)
    return model


def test_a_toy_device_compiles_and_tunes(toy: Device, network: nn.Module, tmp_path) -> None:
    x = torch.randn(1, 3, 12, 12)
    quick = MeasureOptions(run_timeout=60, repeat=1, min_repeat_ms=1)
    options = TuneOptions(trials=4, batch=2, measure=quick)
    result = tune(network, x, TOY_TARGET, tmp_path / "toy.jsonl", options, num_threads=1)
    assert (result.trials, result.failed) == (4, 0)
    assert {s.weighted.task.family for s in result.states} == {"toy"}
    library = tvm_pattern.compile(
        network, x, target=TOY_TARGET, tuning_log=result.log, num_threads=1
    )
    with torch.no_grad():
        np.testing.assert_allclose(np.asarray(library(x)), network(x).numpy(), atol=1e-5)
    assert all(row.config["vector_width"] == 4 for row in library.report.taken)
    # Eight registers, two of them spare: no other device keeps its tiles that small.
    tiles = [r.config["tile_rows"] * r.config["tile_cols"] for r in library.report.taken]
    assert max(tiles) <= 6


def test_a_convolution_that_no_schedule_takes_is_left_dense_with_its_reason(toy: Device) -> None:
    """One register is not enough for an accumulator and a weight."""
    cramped = replace(TOY_FACTS, name="cramped", vector_registers=1, temporaries=0)
    DEVICES.add(Device("cramped", lambda target: False, cramped))
    try:
        model = nn.Conv2d(3, 8, 3, padding=1)
        target = {**targets.native_config(), "keys": ["pattern", "cramped", "cpu"]}
        report = check_against_torch(model, torch.randn(1, 3, 12, 12), target=target)
    finally:
        DEVICES.remove("cramped")
    (row,) = report.skipped
    assert row.reason == (
        "the device 'cramped' has no legal configuration for 3x3 3->8 12x12; compiled dense by TVM"
    )
    assert not row.structure


def test_a_device_adds_passes_of_its_own_between_ours_and_those_of_tvm(toy: Device) -> None:
    seen = []

    @tvm.transform.module_pass(opt_level=0, name="Witness")
    def witness(mod: tvm.IRModule, _ctx: tvm.transform.PassContext) -> tvm.IRModule:
        seen.append(sorted(gv.name_hint for gv in mod.get_global_vars()))
        return mod

    DEVICES.add(replace(toy, name="watched", passes=lambda: [witness]))
    try:
        target = {**targets.native_config(), "keys": ["pattern", "watched", "cpu"]}
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.Softmax(1))
        check_against_torch(model, torch.randn(1, 3, 8, 8), target=target)
    finally:
        DEVICES.remove("watched")
    # Scheduled convolutions are there, what TVM legalises is not yet.
    (names,) = seen
    assert any("pattern_conv2d" in name for name in names)
    assert not any("softmax" in name for name in names)


@pytest.mark.parametrize("tag", ["cortex-a76", "x86-avx2", "mali", "adreno"])
def test_the_kind_of_a_device_is_what_tvm_calls_it(tag: str) -> None:
    """TVM's own number of the device, against that of the target's kind."""
    target = targets.resolve(f"pattern/{tag}")
    kind = Backend.of(target).device_kind
    assert tvm.device(kind, 0).dlpack_device_type() == target.get_target_device_type()


def test_a_toy_device_is_gone_after_its_test() -> None:
    with pytest.raises(ValueError, match="unknown device 'toy'"):
        DEVICES.named("toy")


def test_two_devices_of_one_name_are_an_error(toy: Device) -> None:
    with pytest.raises(ValueError, match="a device 'toy' is registered already; choose another"):
        register(DEVICES)


def test_two_devices_that_match_are_an_error(toy: Device) -> None:
    registry = Registry()
    for name in ("one", "other"):
        registry.add(replace(toy, name=name, matches=lambda target: True))
    both = Target({"kind": "llvm", "keys": ["cpu"]})
    with pytest.raises(ValueError, match=r"devices \['one', 'other'\] match.*name of one of them"):
        registry.of(both)
    assert registry.of(Target({"kind": "llvm", "keys": ["cpu", "other"]})).name == "other"
    named_twice = Target({"kind": "llvm", "keys": ["one", "other"]})
    with pytest.raises(ValueError, match=r"devices \['one', 'other'\] match"):
        registry.of(named_twice)


def test_the_order_of_registration_does_not_matter() -> None:
    backwards = Registry()
    for device in reversed(list(DEVICES)):
        backwards.add(device)
    for tag in targets.targets():
        assert backwards.of(targets.resolve(tag)) is DEVICES.of(targets.resolve(tag))


@pytest.mark.parametrize("kind", ["c", "opencl"])
def test_a_target_that_no_device_matches_is_an_error(kind: str) -> None:
    target = Target({"kind": kind, "keys": ["pattern", kind], "host": {"kind": "llvm"}})
    with pytest.raises(ValueError, match=r"no device matches the target.*'x86-avx512'"):
        Backend.of(target)
    mod = tvm.IRModule({})
    with pytest.raises(ValueError, match="no device matches the target"):
        pipeline.lower(mod, target)


@pytest.mark.parametrize(
    "use",
    [
        lambda: DEVICES.named("x86-avx521"),
        lambda: Backend.named("x86-avx521"),
        lambda: default_layout(8, 8, 1, "x86-avx521"),
        lambda: PlaneTarget("x86-avx521").lanes,
        lambda: ConvCase(family="x86-avx521").plan(pattern_weights(4, 4)),
        lambda: DEVICES.remove("x86-avx521"),
    ],
)
def test_a_typo_is_an_error_that_lists_the_devices(use) -> None:
    with pytest.raises(ValueError, match=r"unknown device 'x86-avx521'.*'arm-neon'.*'x86-avx512'"):
        use()


@pytest.fixture
def unscheduled() -> Iterator[str]:
    """The name of a registered device that has no schedules."""
    DEVICES.add(UNSCHEDULED)
    yield UNSCHEDULED.name
    DEVICES.remove(UNSCHEDULED.name)


def test_a_device_without_schedules_plans_nothing(unscheduled: str) -> None:
    for use in (
        lambda: Backend.named(unscheduled).facts,
        lambda: Backend.named(unscheduled).layout_for(8, 8, 1),
        lambda: PlaneTarget(unscheduled).lanes,
    ):
        with pytest.raises(ValueError, match=r"has no schedules; expected one of.*'x86-avx2'"):
            use()
    backend = Backend.named(unscheduled)
    reason = f"no schedules for the device {unscheduled!r}; compiled dense by TVM"
    assert backend.why_not() == reason
    passes = pipeline.marker_passes(backend, ReportBuilder())
    assert [p.info.name for p in passes] == ["IntoDataflow", "PatternRewrite"]


def test_a_backend_is_what_its_target_says() -> None:
    backend = Backend.of(targets.resolve("pattern/cortex-a76"))
    assert (backend.name, backend.num_threads, backend.no_float16) == ("arm-neon", 4, "")
    assert Backend.of(targets.resolve("pattern/cortex-a76"), 1).num_threads == 1
    task = ConvCase(family="arm-neon").plan(pattern_weights(8, 8)).task
    plan = backend.plan(task, pattern_weights(8, 8))
    assert plan.config == plan_conv(task, pattern_weights(8, 8)).config
    assert backend.why_not(task) == ""
    assert plan.num_threads == 4
    assert plan.config in set(backend.space(task))
    assert backend.layout_for(14, 14, 1) == task.in_layout


@pytest.mark.parametrize("core", [core for core in CORES if core.tagged], ids=lambda c: c.name)
def test_cores_have_tags_and_neon_code(core) -> None:
    """Every tag builds; where a core has SVE too, fixed vectors of 128 bits stay with NEON."""
    target = targets.resolve(f"pattern/{core.name}")
    assert DEVICES.of(target).facts is core.facts
    plan = ConvCase(14, 14, family=core.facts.name).plan(pattern_weights(4, 4))
    text = tvm.compile(plan.primfunc(), target=target).mod.inspect_source("asm")
    assert ".4s" in text
    assert "\tfmla\tz" not in text
