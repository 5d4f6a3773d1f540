"""What LLVM makes of the register tiles for ARM, and llvm-mca's model of it."""

from __future__ import annotations

import numpy as np
import pytest
from conv_cases import ConvCase, pattern_weights

from benchmarks import arm_assembly, arm_emulation
from relay_passes import targets
from topi_kernels.devices import DEVICES

CORES = ["cortex-a53", "cortex-a55", "cortex-a72", "cortex-a76", "cortex-a78", "cortex-x1"]


def loops_of(core: str, group: int, size: int, dtype: str = "float32"):
    """``(loops, plan)`` of a pruned 64-channel layer."""
    target = targets.resolve(f"pattern/{core}")
    weight = pattern_weights(64, 64, group=group).astype(dtype)
    plan = ConvCase(size, size, family=DEVICES.of(target).name).plan(weight)
    loops = list(arm_assembly.inner_loops(arm_emulation.assembly(plan.primfunc(), target)))
    assert len(loops) == len(plan.workload.patterns)
    return loops, plan


@pytest.mark.parametrize("core", CORES)
@pytest.mark.parametrize(("group", "size"), [(1, 28), (4, 56)])
def test_only_loads_and_multiply_adds(core, group, size):
    """No spill, no store; every weight or input that is broadcast is taken by element.

    Addresses: one multiply-add finds the kernel's plane. If taps lie in several columns, one
    addition per column follows, since no load takes an offset that is not a multiple of 16 bytes.
    Loads advance the weights, and the loop counts once; in-order cores scale the plane apart.
    """
    loops, plan = loops_of(core, group, size)
    for loop, pattern in zip(loops, plan.workload.patterns, strict=True):
        kernels = loop.fmla // (4 * plan.config.accumulators)
        assert loop.fmla == 4 * plan.config.accumulators * kernels
        assert loop.stack == 0
        assert loop.stores == 0
        assert loop.by_element == loop.fmla
        assert loop.loads < 0.85 * loop.fmla
        columns = len({column for _, column in pattern.taps}) if group == 1 else 0
        separate = core in ("cortex-a53", "cortex-a55") and columns > 1
        assert loop.integer <= (1 + columns + separate) * kernels + 2


def test_float16_halves_the_multiply_adds():
    _, single = loops_of("cortex-a76", 4, 56)
    loops, half = loops_of("cortex-a76", 4, 56, "float16")
    assert half.config.pixel_lanes * half.config.filter_lanes == 2 * single.config.vector_width
    for loop in loops:
        assert loop.by_element == loop.fmla == 4 * half.config.accumulators
        assert all(".8h" in line for line in loop.lines if "fmla" in line)
        assert loop.stack == 0


# Share of the multiply-add bound by group; A53's model lets no load finish before an older
# multiply-add, which the hardware does, so its figures are far below those of the core.
FLOORS = {
    ("cortex-a76", 1): 0.85,
    ("cortex-a76", 4): 0.97,
    ("cortex-a78", 1): 0.85,
    ("cortex-a78", 4): 0.97,
    ("cortex-x1", 1): 0.75,
    ("cortex-x1", 4): 0.95,
    ("cortex-a55", 1): 0.60,
    ("cortex-a55", 4): 0.88,
}


@pytest.mark.parametrize(("core", "group"), FLOORS)
def test_share_of_the_bound_in_the_model(core, group):
    loops, _ = loops_of(core, group, 56)
    facts = arm_assembly.CORES[core]
    cycles = sum(loop.cycles(facts.model) for loop in loops)
    fmla = sum(loop.fmla for loop in loops)
    assert fmla / cycles / facts.fmla_per_cycle >= FLOORS[core, group]


def test_missing_llvm_mca(monkeypatch):
    monkeypatch.setattr(arm_assembly.shutil, "which", lambda _: None)
    loop = arm_assembly.InnerLoop(("\tfmla v0.4s, v1.4s, v2.4s",))
    with pytest.raises(arm_emulation.EmulationError, match="apt-get install llvm-19"):
        loop.cycles("neoverse-n1")


def test_code_that_the_model_rejects():
    with pytest.raises(arm_emulation.EmulationError, match="rejects the loop"):
        arm_assembly.InnerLoop(("\tno such instruction",)).cycles("neoverse-n1")


def test_reading_of_loops():
    text = (
        ".LBB0_1:\n\tldr q1, [x1]\n.LBB0_2:\n\tldp q2, q3, [x2, #16]\n.Ltmp3:\n"
        "\tfmla v0.4s, v2.4s, v1.s[2]\n\tfmla v4.4s, v3.4s, v2.4s\n\tadd x2, x2, #32\n"
        "\tstr q0, [sp, #16]\n\tb.ne .LBB0_2\n\tcbnz x3, .LBB0_1\n"
    )
    (loop,) = arm_assembly.inner_loops(text)
    assert (loop.fmla, loop.by_element, loop.loads, loop.stores) == (2, 1, 1, 1)
    assert (loop.stack, loop.integer, loop.instructions) == (1, 1, 6)


@pytest.mark.parametrize("group", [1, 4])
def test_float16_results(group, tmp_path):
    """float16 under emulation against float64 arithmetic on the same rounded values."""
    import torch
    from conv_cases import from_planes, to_planes

    target = targets.resolve("pattern/cortex-a76")
    weight = (pattern_weights(16, 16, group=group) / 4).astype(np.float16)
    case = ConvCase(12, 12, family=DEVICES.of(target).name, activation="hardswish")
    plan = case.plan(weight)
    w = plan.workload
    rng = np.random.default_rng(0)
    x = rng.standard_normal((1, 16, 12, 12)).astype(np.float16)
    bias = rng.standard_normal(16).astype(np.float16)
    steps = arm_emulation.Plan()
    steps.constant(to_planes(x, w.in_layout).astype(np.float16))
    for array in (*plan.arrays, bias):
        steps.constant(array)
    steps.outputs.append(steps.empty((1, 16, w.out_layout.size), "float16"))
    steps.call("pattern_conv2d", range(len(steps.tensors)))
    library = arm_emulation.export(plan.primfunc(), target, tmp_path / "half.so")
    (planes,), _ = arm_emulation.run(library, steps, target)
    arrays = (torch.from_numpy(a.astype(np.float64)) for a in (x, weight, bias))
    expected = torch.nn.functional.hardswish(torch.nn.functional.conv2d(*arrays, padding=1))
    terms = 4 * 16 / 3.6
    tolerance = 2.0**-11 * np.sqrt(terms) * float(expected.abs().max())
    np.testing.assert_allclose(
        from_planes(planes, w.out_layout), expected.numpy(), rtol=0, atol=tolerance
    )
