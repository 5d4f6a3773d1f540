"""Convolutions of bytes: every byte against an integer oracle, packing, what LLVM makes of it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import tvm
from int8_cases import TARGETS, Int8Case, int8_case

from benchmarks.assembly import inner_loops
from topi_kernels.geometry import ConvGeometry
from topi_kernels.schedules.cpu_int8.isa import BY_WEIGHTS, ISAS, isa_named
from topi_kernels.schedules.cpu_int8.packing import (
    GROUP_SIZES,
    OverflowsInt32Error,
    check_sums,
    pack,
    unpack,
)
from topi_kernels.schedules.cpu_int8.plan import plan_int8_conv
from topi_kernels.schedules.cpu_int8.quantisation import Quantisation
from topi_kernels.schedules.cpu_int8.workload import Int8Config, configs
from topi_kernels.structure import Structure

VBMI = "avx512-vnni"


def dense(out_channels: int, in_channels: int, kernel: int) -> np.ndarray:
    return np.ones((out_channels, in_channels, kernel, kernel))


def blocks_of_channels(out_channels: int, in_channels: int, keep: float) -> np.ndarray:
    """1x1 weights of which whole quads of in_channels are kept."""
    rng = np.random.default_rng(1)
    kept = rng.random((out_channels, -(-in_channels // 4))) < keep
    return kept.repeat(4, axis=1)[:, :in_channels, None, None].astype(float)


CASES = {
    "one filter to a group": int8_case(8, 8, (8, 8)),
    "two filters to a group, odd sizes": int8_case(16, 12, (13, 11), group=2),
    "four filters to a group, negative results": int8_case(
        16, 16, (14, 14), group=4, low=-np.inf, batch=2
    ),
    "fewer rows than a block": int8_case(8, 8, (3, 2)),
    "residual and upper limit": int8_case(8, 16, (7, 7), residual=True, high=0.5),
    "stride 2": int8_case(8, 8, (9, 7), stride=2),
    "dense": int8_case(6, 5, (8, 8), weight=dense(6, 5, 3)),
    "all removed": int8_case(4, 4, (5, 5), weight=np.zeros((4, 4, 3, 3))),
    "5x5": int8_case(4, 4, (9, 9), kernel=5, weight=dense(4, 4, 5)),
    "dilated": int8_case(4, 6, (9, 9), dilation=2),
    "7x7 stride 2": int8_case(4, 3, (13, 37), kernel=7, stride=2, weight=dense(4, 3, 7)),
    "1x1": int8_case(8, 10, (7, 9), kernel=1, weight=dense(8, 10, 1), residual=True),
    "1x1 by blocks": int8_case(8, 32, (6, 6), kernel=1, weight=blocks_of_channels(8, 32, 0.3)),
    "1x1 stride 2": int8_case(4, 8, (9, 37), kernel=1, stride=2, weight=dense(4, 8, 1)),
    "1x1 stride 2, two rows to a vector": int8_case(
        4, 9, (9, 14), kernel=1, stride=2, weight=dense(4, 9, 1), residual=True
    ),
    "1x1 stride 2, four rows to a vector": int8_case(
        4, 8, (13, 7), kernel=1, stride=2, weight=dense(4, 8, 1), batch=2
    ),
    "1x1 stride 2, fewer rows than a vector has": int8_case(
        4, 8, (1, 5), kernel=1, stride=2, weight=dense(4, 8, 1)
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_every_byte(name: str) -> None:
    CASES[name].check(VBMI)


@pytest.mark.parametrize(
    "config",
    [
        Int8Config("square", 1, 3, 1),
        Int8Config("square", 2, 2, 1),
        Int8Config("rows", 2, 1, 1),
        Int8Config("rows", 1, 2, 1),
    ],
    ids=str,
)
def test_tiles_that_do_not_fit_the_image(config: Int8Config) -> None:
    int8_case(4, 6, (11, 17)).check(VBMI, config)


OTHERS = {
    "pattern": {"out_channels": 4, "in_channels": 6, "size": (7, 11), "group": 2},
    "stride 2": {"out_channels": 4, "in_channels": 5, "size": (9, 7), "stride": 2},
    "dense": {"out_channels": 4, "in_channels": 3, "size": (5, 6), "weight": dense(4, 3, 3)},
    "far taps": {
        "out_channels": 3,
        "in_channels": 2,
        "size": (9, 18),
        "weight": dense(3, 2, 3),
        "dilation": 4,
    },
    "1x1 stride 2": {
        "out_channels": 4,
        "in_channels": 6,
        "size": (5, 4),
        "kernel": 1,
        "stride": 2,
        "weight": dense(4, 6, 1),
        "residual": True,
    },
    "1x1": {
        "out_channels": 5,
        "in_channels": 6,
        "size": (5, 7),
        "kernel": 1,
        "weight": dense(5, 6, 1),
        "residual": True,
    },
}


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("isa", sorted(set(ISAS) - {VBMI}))
def test_other_instructions(isa: str, name: str) -> None:
    """Full-range weights and bytes; on AVX2 weights of 7 bits take fewer instructions."""
    int8_case(**OTHERS[name], largest=64 if isa == "avx2-narrow" else 127).check(isa)


@pytest.mark.parametrize(("isa", "largest"), [("avx2", 127), ("avx2-narrow", 64)])
@pytest.mark.parametrize("sign", [1, -1])
def test_products_in_16_bits_do_not_saturate(isa: str, largest: int, sign: int) -> None:
    """The largest bytes and weights of one sign, whose pairs of products VPMADDUBSW would cut."""
    case = int8_case(4, 4, (6, 6), weight=dense(4, 4, 3), low=-np.inf)
    weight = np.full_like(case.layer.weight, sign * largest)
    result = Quantisation(case.layer.result.scale * 30, 128)
    extreme = Int8Case(replace(case.layer, weight=weight, result=result), np.full_like(case.x, 255))
    assert {extreme.plan(either.name).workload.isa for either in BY_WEIGHTS} == {isa}
    extreme.check(isa)
    assert 0 < extreme.expected().mean() < 255


@pytest.mark.parametrize("isa", ["avx2", VBMI])
@pytest.mark.parametrize("residual", [False, True])
def test_results_far_outside_of_bytes(isa: str, residual: bool) -> None:
    """Up to 10^9 steps of the result's scale: every byte is a limit, on the right side."""
    case = int8_case(8, 8, (6, 6), residual=residual, low=-np.inf)
    result = Quantisation(case.layer.result.scale * 1e-7, 128)
    assert not case.plan(isa).workload.far
    far = Int8Case(replace(case.layer, result=result), case.x, case.residual)
    assert far.plan(isa).workload.far
    assert {0, 255} <= set(np.unique(far.expected()).tolist())
    far.check(isa)


def test_threads() -> None:
    int8_case(4, 4, (12, 9)).check(VBMI, threads=2)


def test_some_filters_are_empty() -> None:
    weight = int8_case(6, 8, (6, 6)).layer.structure.kept.astype(float)
    weight[[1, 4]] = 0
    int8_case(6, 8, (6, 6), weight=weight).check(VBMI)


def test_kept_weights_that_are_zero_stay_in_their_pattern() -> None:
    """Sparsity is said by the structure: a weight that was rounded to zero is no removed one."""
    case = int8_case(8, 8, (6, 6), group=2)
    weight = np.where(np.abs(case.layer.weight) < 60, 0, case.layer.weight).astype(np.int8)
    rounded = Int8Case(replace(case.layer, weight=weight), case.x)
    assert rounded.plan(VBMI).packed.entries == case.plan(VBMI).packed.entries
    rounded.check(VBMI)


# Packing -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("group", [None, *GROUP_SIZES])
def test_unpack_inverts_pack(name: str, group: int | None) -> None:
    layer = CASES[name].layer
    packed = pack(layer.weight, layer.structure, group)
    np.testing.assert_array_equal(unpack(packed), layer.weight)


@pytest.mark.parametrize(("group", "limit"), [(1, 1.7), (2, 1.35), (4, 1.2)])
def test_bytes_for_each_kept_weight(group: int, limit: float) -> None:
    layer = int8_case(64, 64, (8, 8), group=group).layer
    packed = pack(layer.weight, layer.structure)
    assert packed.group == group
    assert packed.stored_bytes <= limit * layer.structure.kept_weights


def test_filters_that_differ_are_not_grouped() -> None:
    layer = int8_case(16, 16, (8, 8)).layer
    assert pack(layer.weight, layer.structure).group == 1


def test_sums_that_may_overflow_are_refused() -> None:
    weight = np.full((2, 70_000, 1, 1), 127, np.int8)
    with pytest.raises(OverflowsInt32Error, match=r"filter 0 may reach 2\.267e\+09"):
        check_sums(weight, np.zeros(2))
    check_sums(weight[:, :66_000], np.zeros(2))
    with pytest.raises(OverflowsInt32Error, match="filter 1"):
        check_sums(weight[:, :66_000], np.array([0, 2e7]))
    with pytest.raises(OverflowsInt32Error):
        check_sums(weight[:, :4], np.array([0, np.nan]))


def test_weights_that_cannot_be_packed() -> None:
    layer = CASES["one filter to a group"].layer
    with pytest.raises(ValueError, match=r"int8 \[out, in, kh, kw\], got float32"):
        pack(layer.weight.astype(np.float32), layer.structure)
    with pytest.raises(ValueError, match="removed are not zero"):
        pack(layer.weight, Structure(np.zeros_like(layer.structure.kept)))
    with pytest.raises(ValueError, match=r"one of \[1, 2, 4\], got 3"):
        pack(layer.weight, layer.structure, 3)


# Planning ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bias": np.full(8, np.nan, np.float32)}, "bias holds NaN or Inf"),
        ({"weight_scale": np.full(8, np.inf, np.float32)}, "weight_scale holds NaN or Inf"),
        ({"weight_scale": np.zeros(8, np.float32)}, "scales of weights are positive"),
        ({"bias": np.zeros(3, np.float32)}, r"one value for each of 8 filters, got shape \(3,\)"),
        ({"bias": np.full(8, 1e9, np.float32)}, "its bias is too large"),
        ({"geometry": ConvGeometry((3, 3), dilation=(30, 30))}, "no choice for a convolution of"),
    ],
)
def test_layers_that_cannot_be_planned(changes: dict, message: str) -> None:
    case = CASES["one filter to a group"]
    layer = replace(case.layer, **changes)
    with pytest.raises(ValueError, match=message):
        plan_int8_conv(layer, 1, case.layouts(), VBMI)


@pytest.mark.parametrize("scale", [0.0, -1.0, np.nan, np.inf])
def test_scales_are_positive(scale: float) -> None:
    with pytest.raises(ValueError, match="a scale is positive and finite"):
        Quantisation(scale, 0)


def test_zero_points_are_bytes() -> None:
    with pytest.raises(ValueError, match=r"a zero point is in 0\.\.255, got 256"):
        Quantisation(1.0, 256)


def test_unknown_instructions() -> None:
    with pytest.raises(ValueError, match="unknown 8-bit instructions 'amx'; expected one of"):
        isa_named("amx")


def test_every_kind_of_instructions_is_tested() -> None:
    assert set(TARGETS) == set(ISAS)


def test_a_config_for_other_weights() -> None:
    plan = CASES["one filter to a group"].plan(VBMI)
    with pytest.raises(ValueError, match="groups of 4 filters, the weights are packed for 1"):
        replace(plan, config=replace(plan.config, group=4)).primfunc()
    with pytest.raises(ValueError, match="the form 'run' does not fit"):
        replace(plan, config=replace(plan.config, form="run")).primfunc()


# What LLVM makes of it ---------------------------------------------------------------------------


@pytest.mark.parametrize("group", GROUP_SIZES)
def test_accumulators_stay_in_registers(group: int) -> None:
    """A dot product for each vector and filter, a shuffle for each vector, nothing stored."""
    plan = int8_case(64, 64, (56, 56), group=group).plan(VBMI)
    target = tvm.target.Target(TARGETS[VBMI][0])
    assembly = tvm.compile(plan.primfunc(), target=target).mod.inspect_source("asm")
    # LLVM unrolls short loops; the rest of an odd count follows them.
    loop = max(inner_loops(assembly, "vpdpbusd"), key=lambda loop: loop.fma)
    vectors = plan.config.vectors * plan.config.strips
    entries, rest = divmod(loop.fma, group * vectors)
    assert entries >= 1
    assert rest == 0
    assert loop.shuffles == entries * vectors
    assert loop.stores == 0
    assert loop.stack == 0


def test_there_are_several_choices() -> None:
    plan = int8_case(8, 8, (28, 28)).plan(VBMI)
    assert len(list(configs(plan.workload))) > 10
