"""The golden pins hold, and they can fail: see :mod:`golden`."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import golden
import pytest
from families import FAMILIES, GPU_FAMILIES

from topi_kernels.devices import DEVICES
from topi_kernels.schedules import pattern_conv
from topi_kernels.schedules.cpu_int8 import conv as int8_conv
from topi_kernels.schedules.cpu_int8 import requantise
from topi_kernels.schedules.cpu_int8.isa import ISAS
from topi_kernels.schedules.family import Family
from topi_kernels.schedules.opencl.config import GpuFacts

STORED = golden.stored()
#: Cost constant -> a pin that changes when it alone is tripled.
SENSITIVE = {
    "list_cost": "x86-avx2/float32/lanes-vgg-28/1",
    "load_cost": "x86-avx512/float32/vgg-28/8",
    "split_cost": "armv7-neon/float32/vgg-28/1",
    "line_cost": "x86-avx512/float32/res-56/1",
    "far_line_cost": "x86-avx512-zen4/float32/vgg-112-dense/1",
    "weight_line_cost": "x86-avx512/float32/vgg-14/16",
    "shuffle_cost": "x86-avx512/float32/vgg-56/1",
    "deinterleave_cost": "x86-avx2/float32/narrow-32-s2/1",
    "loop_cost": "arm-neon/float32/res-1x1-56/1",
    "tile_cost": "arm-neon-wide/float32/res-14/1",
    "store_cost": "x86-avx512/float32/res-7/4",
    "page_cost": "arm-neon/float32/vgg-14/4",
}
#: The same for the rates and limits of GPUs.
SENSITIVE_GPU = {
    "multiply_adds": "adreno/float32/vgg-56/4",
    "load_bytes": "adreno/float16/vgg-28/1",
    "max_registers": "mali/float32/vgg-56/1",
}


def triple(monkeypatch: pytest.MonkeyPatch, *costs: str) -> None:
    """Every device with these cost constants three times as high."""
    changed = {}
    for device in DEVICES:
        facts = device.facts
        known = {f.name for f in fields(facts)} if facts else set()
        if isinstance(facts, Family | GpuFacts) and set(costs) <= known:
            facts = replace(facts, **{cost: 3 * getattr(facts, cost) for cost in costs})
        changed[device.name] = replace(device, facts=facts)
    monkeypatch.setattr(DEVICES, "_devices", changed)


@pytest.mark.parametrize("name", golden.names())
def test_level_0_is_as_pinned(name: str) -> None:
    difference = golden.difference(name, STORED.get(name), golden.pin(name))
    assert not difference, difference


def test_the_file_holds_these_pins_and_no_others() -> None:
    assert sorted(STORED) == sorted(golden.names())


def test_pins_cover_what_they_promise() -> None:
    parts = [name.split("/") for name in golden.conv_names()]
    assert len(parts) >= 60
    assert {p[0] for p in parts} == {*FAMILIES, *GPU_FAMILIES}
    assert {p[1] for p in parts} == {"float32", "float16"}
    assert {int(p[3]) for p in parts} == {1, 2, 4, 8, 16}
    assert {p[2].removeprefix(golden.LANES) for p in parts} == set(golden.LAYERS)


def test_every_cost_constant_has_a_pin_that_sees_it() -> None:
    assert set(SENSITIVE) == {f.name for f in fields(Family) if f.name.endswith("_cost")}


@pytest.mark.parametrize("cost", sorted(SENSITIVE | SENSITIVE_GPU))
def test_a_tripled_cost_constant_is_seen(cost: str, monkeypatch: pytest.MonkeyPatch) -> None:
    triple(monkeypatch, cost)
    name = (SENSITIVE | SENSITIVE_GPU)[cost]
    assert "configuration of level 0" in golden.difference(name, STORED[name], golden.pin(name))


def test_all_cost_constants_tripled_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    triple(monkeypatch, *SENSITIVE)
    names = ("x86-avx512/float32/vgg-14/16", "arm-neon-wide/float16/res-56/1")
    assert all(golden.difference(n, STORED[n], golden.pin(n)) for n in names)


def test_other_code_for_the_same_config_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "x86-avx512/float32/vgg-56/1"
    monkeypatch.setattr(pattern_conv, "fetch_outputs", lambda *_: None)
    got = golden.pin(name)
    assert got["config"] == STORED[name]["config"]
    assert "PrimFunc of one configuration" in golden.difference(name, STORED[name], got)


def test_other_code_for_bytes_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "avx512-vnni/int8/res-56/2"

    def to_bytes(*args: Any, far: bool) -> requantise.Bytes:
        return requantise.to_bytes(*args, far=not far)

    monkeypatch.setattr(int8_conv, "to_bytes", to_bytes)
    got = golden.pin(name)
    assert got["config"] == STORED[name]["config"]
    assert "PrimFunc of one configuration" in golden.difference(name, STORED[name], got)


def test_pins_of_bytes_cover_every_kind_of_instructions() -> None:
    assert set(golden.INT8_CONVOLUTIONS) == set(ISAS) - {"avx2-narrow"}  # weights choose that one


def test_a_failing_pin_shows_both_configs_and_how_to_renew() -> None:
    pinned = {"config": {"tile_rows": 1}, "primfunc": "aa"}
    got = {"config": {"tile_rows": 2}, "primfunc": "bb"}
    message = golden.difference("some/pin", pinned, got)
    assert "pinned {'tile_rows': 1} primfunc aa" in message
    assert "got    {'tile_rows': 2} primfunc bb" in message
    assert golden.RENEW in message
    assert "pinned None" in golden.difference("some/new-pin", None, got)
    assert not golden.difference("some/pin", pinned, dict(pinned))
