"""Dense convolutions as products of matrices: 1x1, and 3x3 by Winograd's filtering."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
import tvm
from conv_cases import HOST_TARGET, ConvCase, assert_case, from_planes, run_case, to_planes
from guards import run_guarded

from benchmarks.assembly import inner_loops
from topi_kernels.conv_task import ConvTask
from topi_kernels.expected_gain import better_dense
from topi_kernels.geometry import ConvGeometry
from topi_kernels.layout_choice import LaneOrder, default_layout
from topi_kernels.operator import plan_conv
from topi_kernels.schedules.config import GEMM, WINOGRAD_2, WINOGRAD_4, ConvConfig
from topi_kernels.winograd import ERROR_GROWTH, Winograd

LANES = {"x86-avx512": 16, "x86-avx2": 8, "arm-neon": 4}


def config_of(family: str, body: str, tile: int, vectors: int, positions: int) -> ConvConfig:
    width = LANES[family]
    return ConvConfig(
        width, width, vectors, 1, tile, taps_per_step=1, prefetch=0, body=body, positions=positions
    )


def weights_of(out_channels: int, in_channels: int, kernel: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    shape = (out_channels, in_channels, kernel, kernel)
    return rng.standard_normal(shape).astype(np.float32)


def case_of(family: str, knobs: tuple[str, int, int, int], *size: int, **options) -> ConvCase:
    return ConvCase(*size, family=family, config=config_of(family, *knobs), **options)


CASES = {
    # Odd sizes, channels that fill no vector, batch, residual, threads over blocks of tiles.
    "tiles-of-4": (
        case_of(
            "x86-avx512",
            (WINOGRAD_4, 4, 1, 5),
            *(13, 15),
            batch=2,
            residual=True,
            activation="relu",
            threads=2,
        ),
        weights_of(21, 19, 3),
    ),
    # Fewer channels than lanes, no padding in and out, one tile that is not full.
    "few-channels": (
        case_of("x86-avx2", (WINOGRAD_4, 1, 1, 1), 5, 5, padding=(0, 0), out_pad=0, bias=False),
        weights_of(5, 3, 3),
    ),
    "tiles-of-2": (
        case_of("x86-avx2", (WINOGRAD_2, 4, 1, 7), 9, 7, activation="silu", residual=True),
        weights_of(24, 11, 3),
    ),
    "four-lanes": (
        case_of("arm-neon", (WINOGRAD_2, 3, 2, 9), 8, 10, out_pad=2, activation="relu6"),
        weights_of(10, 6, 3),
    ),
    "pixels": (
        case_of(
            "x86-avx512", (GEMM, 7, 2, 15), 6, 5, padding=(0, 0), batch=2, residual=True, threads=2
        ),
        weights_of(37, 33, 1),
    ),
    # Blocks of more filters than there are, which fill no whole number of vectors.
    "blocks-beyond-the-filters": (
        case_of("x86-avx2", (GEMM, 4, 2, 24), 6, 8, padding=(0, 0), residual=True, threads=2),
        weights_of(11, 9, 1),
    ),
    "tiles-beyond-the-filters": (
        case_of("x86-avx2", (WINOGRAD_2, 3, 3, 12), 6, 8, batch=2, activation="relu"),
        weights_of(20, 5, 3),
    ),
    "pixels-with-stride": (
        case_of(
            "x86-avx2",
            (GEMM, 6, 1, 18),
            *(11, 11),
            padding=(0, 0),
            stride=(2, 2),
            activation="hardswish",
        ),
        weights_of(5, 3, 1),
    ),
}


@pytest.mark.parametrize("name", sorted(CASES))
def test_layers_match_torch(name: str) -> None:
    plan = assert_case(*CASES[name])
    assert plan.workload.gemm_code is not None


@pytest.mark.parametrize("name", ["few-channels", "tiles-of-2", "pixels"])
def test_the_specification_reads_the_same_weights(name: str) -> None:
    assert_case(*CASES[name], naive=True)


@pytest.mark.parametrize(("body", "kernel"), [(WINOGRAD_2, 3), (GEMM, 1)])
def test_neither_blocks_nor_threads_change_a_bit(body: str, kernel: int) -> None:
    weight = weights_of(20, 18, kernel)
    padding = (kernel // 2, kernel // 2)
    positions = (8, 3) if kernel == 1 else (6, 6)
    total = 64 if kernel == 1 else 16
    wanted, _, _ = run_case(case_of("x86-avx2", (body, 6, 2, total), 8, 8, padding=padding), weight)
    for vectors, block, threads in [(1, positions[0], 1), (2, 2 * positions[0], 2)]:
        knobs = (body, 5, vectors, block)
        case = case_of("x86-avx2", knobs, 8, 8, padding=padding, threads=threads)
        np.testing.assert_array_equal(wanted, run_case(case, weight)[0])


def _conv(task: ConvTask, config: ConvConfig, weight: np.ndarray, x: np.ndarray) -> np.ndarray:
    """The operator's images for images ``x``."""
    plan = plan_conv(task, weight, config)
    layout = plan.workload.out_layout
    out = np.full((len(x), len(weight), layout.size), np.nan, np.float32)
    operator = tvm.compile(plan.primfunc(), target=HOST_TARGET)["pattern_conv2d"]
    out = run_guarded(operator, to_planes(x, task.in_layout), *plan.arrays, out)
    return from_planes(out, layout)


def _task(
    weight: np.ndarray,
    size: tuple[int, int],
    out: tuple[int, int],
    padding: tuple[int, int] = (1, 1),
    family: str = "x86-avx2",
    **options,
) -> ConvTask:
    return ConvTask.from_weight(
        weight,
        ConvGeometry(weight.shape[2:], padding=padding),
        default_layout(*size, 2, family, str(weight.dtype)),
        default_layout(*out, 1, family, str(weight.dtype)),
        family=family,
        **options,
    )


def test_padding_may_differ_on_each_side() -> None:
    """Top 0, left 1, bottom 2, right 0: the last rows and columns of tiles reach beyond."""
    weight = weights_of(8, 8, 3)
    x = np.random.default_rng(1).standard_normal((1, 8, 7, 12), np.float32)
    padded = torch.nn.functional.pad(torch.from_numpy(x), (1, 0, 0, 2))
    wanted = torch.nn.functional.conv2d(padded, torch.from_numpy(weight)).numpy()
    task = _task(weight, (7, 12), wanted.shape[2:], (0, 1))
    got = _conv(task, config_of("x86-avx2", WINOGRAD_4, 6, 1, 6), weight, x)
    np.testing.assert_allclose(got, wanted, rtol=0, atol=3e-5)


@pytest.fixture(scope="module")
def one_tile() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Inputs as after a ReLU, weights, and what the operator makes of the only tile of 4x4."""
    rng = np.random.default_rng(2)
    x = np.maximum(rng.standard_normal((1, 256, 4, 4), np.float32), 0)
    weight = weights_of(16, 256, 3) / np.float32(48)
    task = _task(weight, (4, 4), (4, 4))
    return x, weight, _conv(task, config_of("x86-avx2", WINOGRAD_4, 1, 2, 1), weight, x)


def _exact(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    tensors = (torch.from_numpy(a.astype(np.float64)) for a in (x, weight))
    return torch.nn.functional.conv2d(*tensors, padding=1).numpy()


def test_errors_stay_below_their_bound(one_tile) -> None:
    """Against float64: below what rounding can do at worst, and as compile's tolerance says."""
    x, weight, got = one_tile
    wanted = _exact(x, weight)
    error = np.abs(got - wanted)[0]
    tile = np.pad(x[0], ((0, 0), (1, 1), (1, 1)))
    bound = Winograd.of(4).error_bound(tile, weight)
    assert np.all(error <= bound)
    scale = float(np.abs(wanted).max())
    assert 0 < error.max() <= ERROR_GROWTH[4] * np.sqrt(9 * 256) * 2.0**-24 * scale


def test_the_bound_is_no_empty_promise(one_tile) -> None:
    """Kernels turned upside down violate it."""
    x, weight, got = one_tile
    other = _exact(x, np.ascontiguousarray(weight[:, :, ::-1]))
    tile = np.pad(x[0], ((0, 0), (1, 1), (1, 1)))
    assert np.any(np.abs(got - other)[0] > Winograd.of(4).error_bound(tile, weight))


def test_a_nan_reaches_every_output_that_reads_it() -> None:
    x = np.zeros((1, 8, 8, 8), np.float32)
    x[0, 3, 4, 4] = np.nan
    weight = weights_of(8, 8, 3)
    task = _task(weight, (8, 8), (8, 8))
    got = _conv(task, config_of("x86-avx2", WINOGRAD_2, 6, 1, 16), weight, x)
    assert np.isnan(got[:, :, 3:6, 3:6]).all()
    assert not np.isnan(got[:, :, :2]).any()


# ---- choice -----------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["x86-avx512", "x86-avx2"])
def test_level_0_takes_them_for_dense_layers(family: str) -> None:
    three, one = weights_of(64, 64, 3), weights_of(256, 256, 1)
    config = _task(three, (28, 28), (28, 28), family=family).default_config()
    assert config.body == WINOGRAD_4
    direct = _task(three, (28, 28), (28, 28), family=family, winograd=False).default_config()
    assert not direct.is_gemm
    assert _task(one, (14, 14), (14, 14), (0, 0), family).default_config().body == GEMM


def test_level_0_leaves_others_alone() -> None:
    """Half precision, pruned kernels, 5x5, other devices."""
    half = _task(weights_of(64, 64, 3).astype(np.float16), (28, 28), (28, 28))
    assert "float32" in str(half.unschedulable_reason(_some(WINOGRAD_4, lanes=16)))
    assert all(c.body not in (WINOGRAD_2, WINOGRAD_4) for c in half.configs())
    pruned = weights_of(64, 64, 3)
    pruned[:, ::2] = 0
    assert not any(c.is_gemm for c in _task(pruned, (28, 28), (28, 28)).configs())
    large = _task(weights_of(64, 64, 5), (28, 28), (28, 28), (2, 2))
    assert not any(c.is_gemm for c in large.configs())
    assert "3x3 kernels" in str(large.unschedulable_reason(_some(WINOGRAD_4)))
    neon = _task(weights_of(64, 64, 3), (28, 28), (28, 28), family="arm-neon")
    assert not any(c.is_gemm for c in neon.configs())


def _some(body: str, lanes: int = 8, **knobs) -> ConvConfig:
    base = config_of("x86-avx2", body, 6, 2, 12)
    base = dataclasses.replace(base, vector_width=lanes, filter_lanes=lanes)
    return dataclasses.replace(base, **knobs)


@pytest.mark.parametrize(
    ("knobs", "match"),
    [
        ({"filter_lanes": 4}, "needs whole vectors of 8 filters"),
        ({"tile_rows": 2}, "register_tiles of one row"),
        ({"tile_cols": 7}, "14 accumulators exceed 16 registers"),
        ({"prefetch": 1}, "no channel_block, prefetch or loop_order"),
        ({"shift": "rotate"}, "needs shift load"),
        ({"chains": 2}, "has no even_rows and one chain"),
        ({"filter_vectors": 4, "tile_cols": 2}, "blocks of 32 filters exceed the 24"),
        ({"positions": 0}, "0 positions are not in 6..49"),
        ({"body": "patterns"}, "body patterns has no positions, got 12"),
        ({"body": GEMM}, "body gemm is for kernels of one tap"),
    ],
)
def test_illegal_configurations_say_why(knobs: dict, match: str) -> None:
    task = _task(weights_of(24, 16, 3), (28, 28), (28, 28))
    assert task.illegal_reason(_some(WINOGRAD_4)) is None
    with pytest.raises(ValueError, match=match):
        plan_conv(task, weights_of(24, 16, 3), dataclasses.replace(_some(WINOGRAD_4), **knobs))


def test_planes_that_do_not_suit_say_why() -> None:
    """Interleaved lanes, rows of three pixels, stride 3, the switch."""
    weight = weights_of(16, 16, 3)
    order = LaneOrder(8, 1, 1).layout(16, 16, 1, 1)
    task = _task(weight, (16, 16), (16, 16))
    lanes = dataclasses.replace(task, in_layout=order, out_layout=order)
    assert "needs plain rows" in str(lanes.unschedulable_reason(_some(WINOGRAD_4)))
    off = dataclasses.replace(task, winograd=False)
    assert "switched off" in str(off.unschedulable_reason(_some(WINOGRAD_4)))
    narrow = _task(weights_of(16, 16, 1), (9, 3), (9, 3), (0, 0))
    reason = narrow.unschedulable_reason(_some(GEMM, positions=9))
    assert "rows of 3 pixels are shorter" in str(reason)
    geometry = ConvGeometry((1, 1), stride=(1, 3))
    wide = dataclasses.replace(_task(weights_of(16, 16, 1), (8, 24), (8, 8), (0, 0)))
    wide = dataclasses.replace(wide, geometry=geometry)
    assert "stride 3 is neither" in str(wide.unschedulable_reason(_some(GEMM, positions=16)))
    rows = dataclasses.replace(wide, geometry=ConvGeometry((1, 1)))
    assert "no whole rows of 8" in str(rows.unschedulable_reason(_some(GEMM, positions=12)))


def test_pruning_that_gains_less_than_winograd_is_computed_whole() -> None:
    """4 of 9 taps without connectivity: 2.25x fewer products; tiles of 4x4 save 4x."""
    weight = weights_of(64, 64, 3)
    weight[:, :, 0], weight[:, :, 2, 0] = 0, 0
    weight[:, :, 1, 0] = 0
    task = _task(weight, (28, 28), (28, 28))
    whole = better_dense(task)
    assert whole is not None
    assert whole.default_config().body == WINOGRAD_4
    assert better_dense(dataclasses.replace(task, winograd=False)) is None


@pytest.mark.parametrize(
    ("mcpu", "family", "tile", "vectors"),
    [("x86-64-v4", "x86-avx512", 14, 2), ("x86-64-v3", "x86-avx2", 6, 2)],
)
def test_the_loop_is_multiply_adds_alone(mcpu, family, tile, vectors) -> None:
    """No store, no stack, no shuffle; an input and a vector of weights are loaded once."""
    config = config_of(family, GEMM, tile, vectors, 28)
    case = ConvCase(14, 14, padding=(0, 0), family=family, config=config)
    plan = case.plan(weights_of(64, 256, 1))
    target = tvm.target.Target({"kind": "llvm", "mcpu": mcpu})
    loop = inner_loops(tvm.compile(plan.primfunc(), target).mod.inspect_source("asm"))[0]
    steps, rest = divmod(loop.fma, tile * vectors)
    assert (rest, steps > 0) == (0, True)
    assert loop.loads <= steps * (tile + vectors)
    assert loop.stores == loop.stack == loop.shuffles == 0
