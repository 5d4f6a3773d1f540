"""Operators between planes of any two layouts, against torch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import tvm
from conv_cases import HOST_TARGET, from_planes, pixels_of, to_planes
from guards import run_guarded
from hypothesis import given, settings
from hypothesis import strategies as st

from topi_kernels import layout_ops
from topi_kernels.geometry import ConvGeometry
from topi_kernels.layout import PlaneLayout, band_choices
from topi_kernels.plane_ops import PlaneTarget
from topi_kernels.row_segments import segments

TARGETS = {16: "x86-avx512", 8: "x86-avx2", 4: "generic"}
BATCH, CHANNELS = 2, 2


def target_for(*used: PlaneLayout) -> PlaneTarget:
    lanes = max([layout.lanes for layout in used], default=16)
    return PlaneTarget(TARGETS.get(lanes, "x86-avx512"))


def run(primfunc: tvm.tirx.PrimFunc, *arrays: np.ndarray) -> np.ndarray:
    library = tvm.compile(primfunc, target=HOST_TARGET)
    return run_guarded(library[str(primfunc.attrs["global_symbol"])], *arrays)


def unwritten(layout: PlaneLayout) -> np.ndarray:
    return np.full((BATCH, CHANNELS, layout.size), np.nan, np.float32)


def assert_planes(got: np.ndarray, images: np.ndarray, layout: PlaneLayout) -> None:
    """Every pixel and every copy is right, and all else is zero."""
    np.testing.assert_allclose(got, to_planes(images, layout), rtol=1e-6, atol=1e-6)
    outside = [e for e in range(layout.size) if e not in pixels_of(layout)]
    assert not np.any(got[..., outside])


def images_of(layout: PlaneLayout, seed: int = 0) -> np.ndarray:
    shape = (BATCH, CHANNELS, layout.height, layout.width)
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def like(data: st.DataObject, height: int, width: int) -> PlaneLayout:
    """Any layout of an image of this size."""
    pad = data.draw(st.integers(0, 1))
    if data.draw(st.booleans()):
        return PlaneLayout.make(height, width, pad, 8)
    lanes = data.draw(st.sampled_from((4, 8, 16)))
    # Few columns, as the compiler prefers them too: every one of them is code.
    bands = [
        bands
        for bands in band_choices(height, width, pad, lanes)
        if bands == 1 or width * bands <= 4 * lanes
    ]
    border = data.draw(st.integers(0, 1))
    return PlaneLayout.interleave(
        height, width, pad, lanes, data.draw(st.sampled_from(bands)), border
    )


@settings(max_examples=4, deadline=None)
@given(data=st.data(), height=st.integers(1, 20), width=st.integers(1, 40))
def test_pack_and_unpack(data: st.DataObject, height: int, width: int) -> None:
    layout = like(data, height, width)
    x, target = images_of(layout), target_for(layout)
    planes = run(layout_ops.pack(BATCH, CHANNELS, layout, target), x, unwritten(layout))
    assert_planes(planes, x, layout)
    image = run(layout_ops.unpack(BATCH, CHANNELS, layout, target), planes, np.full_like(x, np.nan))
    np.testing.assert_array_equal(image, x)


@settings(max_examples=4, deadline=None)
@given(data=st.data(), height=st.integers(1, 8), width=st.integers(1, 20))
def test_elementwise_between_layouts(data: st.DataObject, height: int, width: int) -> None:
    a, b, out = (like(data, height, width) for _ in range(3))
    x, y = images_of(a), images_of(b, 1)
    target = target_for(a, b, out)
    primfunc = layout_ops.elementwise(BATCH, CHANNELS, (a, b), out, target, "add", "sigmoid")
    got = run(primfunc, to_planes(x, a), to_planes(y, b), unwritten(out))
    assert_planes(got, torch.sigmoid(torch.from_numpy(x + y)).numpy(), out)


@settings(max_examples=6, deadline=None)
@given(
    data=st.data(),
    height=st.integers(3, 12),
    width=st.integers(3, 24),
    kernel=st.sampled_from([(2, 2), (3, 3), (3, 2), (1, 3)]),
    stride=st.sampled_from([(1, 1), (2, 2), (2, 1), (3, 3)]),
    pad=st.booleans(),
    kind=st.sampled_from(["max", "avg", "avg without pad"]),
)
def test_pools_between_layouts(
    data: st.DataObject,
    height: int,
    width: int,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    pad: bool,
    kind: str,
) -> None:
    padding = tuple(k // 2 if pad else 0 for k in kernel)
    source = like(data, height, width)
    x = images_of(source)
    tensor = torch.from_numpy(x)
    if kind == "max":
        expected = F.max_pool2d(tensor, kernel, stride, padding).numpy()
    else:
        include = kind == "avg"
        expected = F.avg_pool2d(tensor, kernel, stride, padding, count_include_pad=include).numpy()
    out = like(data, *expected.shape[2:])
    window, target = ConvGeometry(kernel, stride, padding), target_for(source, out)
    sizes = (BATCH, CHANNELS, source, out, window, target)
    if kind == "max":
        primfunc = layout_ops.max_pool(*sizes)
    else:
        primfunc = layout_ops.avg_pool(*sizes, count_include_pad=kind == "avg")
    assert_planes(run(primfunc, to_planes(x, source), unwritten(out)), expected, out)


# Orders so far apart that rows go through a buffer.
FAR = {
    "plain": PlaneLayout.make(16, 56, 1, 16),
    "two bands of eight": PlaneLayout.interleave(16, 56, 1, 16, 2, 1),
    "one band, four columns": PlaneLayout.interleave(16, 56, 0, 16, 1),
    "eight lanes": PlaneLayout.interleave(16, 56, 1, 8, 2),
}


@pytest.mark.parametrize(
    ("source", "result"),
    [
        ("plain", "two bands of eight"),
        ("two bands of eight", "plain"),
        ("one band, four columns", "two bands of eight"),
        ("one band, four columns", "eight lanes"),
    ],
)
def test_rows_whose_pixels_lie_far_apart(source: str, result: str) -> None:
    before, after = FAR[source], FAR[result]
    x = images_of(before)
    window, target = ConvGeometry((3, 3), (2, 2), (1, 1)), target_for(before, after)
    small = (
        PlaneLayout.interleave(8, 28, 1, after.lanes, after.bands, after.border)
        if after.is_interleaved
        else PlaneLayout.make(8, 28, 1, 16)
    )
    pools = {
        small: layout_ops.max_pool(BATCH, CHANNELS, before, small, window, target),
        after: layout_ops.elementwise(BATCH, CHANNELS, (before,), after, target),
    }
    expected = {small: F.max_pool2d(torch.from_numpy(x), 3, 2, 1).numpy(), after: x}
    for layout, primfunc in pools.items():
        got = run(primfunc, to_planes(x, before), unwritten(layout))
        assert_planes(got, expected[layout], layout)


def test_no_output_vector_takes_many_shuffles() -> None:
    plain, bands = PlaneLayout.make(112, 112, 1, 16), PlaneLayout.interleave(56, 56, 1, 16, 2)
    window, target = ConvGeometry((3, 3), (2, 2), (1, 1)), target_for(bands)
    text = str(layout_ops.max_pool(1, 1, plain, bands, window, target))
    rows = 3  # the first, the last and the others
    assert text.count("Shuffle") <= 12 * rows * bands.columns


@pytest.mark.parametrize("lanes", [4, 16])
def test_the_mean_over_the_image(lanes: int) -> None:
    for layout in (
        PlaneLayout.interleave(7, 7, 1, lanes, 2),
        PlaneLayout.interleave(9, 21, 0, lanes, 1, 1),
    ):
        x = images_of(layout)
        got = run(
            layout_ops.global_avg_pool(BATCH, CHANNELS, layout, target_for(layout)),
            to_planes(x, layout),
            np.full((BATCH, CHANNELS, 1, 1), np.nan, np.float32),
        )
        np.testing.assert_allclose(got[..., 0, 0], x.mean((2, 3)), rtol=0, atol=1e-6)


def test_nan_and_infinity_come_through() -> None:
    a, b = PlaneLayout.interleave(8, 14, 1, 16, 2), PlaneLayout.interleave(4, 7, 1, 16, 2)
    x = images_of(a)
    for n, value in enumerate((np.nan, np.inf, -np.inf, np.nan)):
        x[n % 2, n // 2, n, 3 * n] = value
    window = ConvGeometry((2, 2), (2, 2), (0, 0))
    target = target_for(a)
    planes = run(
        layout_ops.max_pool(BATCH, CHANNELS, a, b, window, target), to_planes(x, a), unwritten(b)
    )
    expected = F.max_pool2d(torch.from_numpy(x), 2).numpy()
    np.testing.assert_array_equal(from_planes(planes, b), expected)
    relu = layout_ops.elementwise(BATCH, CHANNELS, (a,), a, target, "add", "relu")
    got = from_planes(run(relu, to_planes(x, a), unwritten(a)), a)
    np.testing.assert_array_equal(got, torch.relu(torch.from_numpy(x)).numpy())


def test_rows_are_cut_where_a_band_ends() -> None:
    rows = [[(0, 0), (0, 1)], [(0, 2), (0, 3)], [(1, 0), (1, 1)], [(1, 2), None]]
    found = [(s.first, s.count, s.rows) for s in segments(rows)]
    assert found == [
        (0, 2, ((0, 0, 2), (0, 1, 2))),
        (2, 1, ((1, 0, 0), (1, 1, 0))),
        (3, 1, ((1, 2, 0), None)),
    ]
