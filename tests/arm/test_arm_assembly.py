"""What LLVM makes of the register tiles for ARM, and llvm-mca's model of it."""

from __future__ import annotations

import numpy as np
import pytest
from conv_cases import ConvCase, pattern_weights

from benchmarks import arm_assembly, arm_emulation, arm_static
from relay_passes import targets
from topi_kernels.devices import DEVICES

CORES = ["cortex-a53", "cortex-a55", "cortex-a72", "cortex-a76", "cortex-a78", "cortex-x1"]


def loops_of(core: str, group: int, size: int, dtype: str = "float32"):
    """``(loops, plan)`` of a pruned 64-channel layer, in the order of pixels chosen for it."""
    target = targets.resolve(f"pattern/{core}")
    weight = pattern_weights(64, 64, group=group).astype(dtype)
    plan = arm_static.plan(arm_static.Layer(size, 64, 64), weight, core)
    loops = list(arm_assembly.inner_loops(arm_emulation.assembly(plan.primfunc(), target)))
    heights = len(plan.config.row_tiles(plan.workload.out_layout.band_height))
    assert len(loops) == heights * len(plan.workload.patterns)
    return loops, plan


@pytest.mark.parametrize("core", CORES)
@pytest.mark.parametrize(("group", "size"), [(1, 28), (4, 56)])
def test_only_loads_and_multiply_adds(core, group, size):
    """No spill, no store; every weight or input that is broadcast is taken by element.

    Addresses: one multiply-add finds the kernel's plane, which in-order cores scale apart. Loads
    advance the weights, and the loop counts once. Single filters read interleaved lanes, whose
    neighbours are a vector apart, so that no tap needs an address of its own.
    """
    loops, plan = loops_of(core, group, size)
    heights = [rows for rows, _ in plan.config.row_tiles(plan.workload.out_layout.band_height)]
    bodies = [plan.config.with_rows(rows) for rows in heights for _ in plan.workload.patterns]
    assert plan.workload.out_layout.is_interleaved == (group == 1)
    for loop, body in zip(loops, bodies, strict=True):
        kernels = loop.fmla // (4 * body.accumulators)
        assert loop.fmla == 4 * body.accumulators * kernels
        assert loop.stack == 0
        assert loop.stores == 0
        assert loop.by_element == loop.fmla
        assert loop.integer <= 2 * kernels + 3
    tall = [x for x, body in zip(loops, bodies, strict=True) if body.tile_rows == max(heights)]
    assert sum(loop.loaded for loop in tall) <= 0.5 * sum(loop.fmla for loop in tall)


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
    ("cortex-a76", 1): 0.98,
    ("cortex-a76", 4): 0.97,
    ("cortex-x1", 1): 0.97,
    ("cortex-x1", 4): 0.95,
    ("cortex-a55", 1): 0.99,
    ("cortex-a55", 4): 0.88,
    ("cortex-a510", 1): 0.80,
    ("cortex-a53", 1): 0.30,
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
