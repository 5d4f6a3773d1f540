"""Plane layouts: which element holds which pixel."""

from __future__ import annotations

import numpy as np
import pytest
from conv_cases import pixels_of
from hypothesis import given
from hypothesis import strategies as st

from topi_kernels.layout import PlaneLayout, band_choices, from_planes, to_planes


@st.composite
def layouts(draw: st.DrawFn, lanes: tuple[int, ...] = (4, 8, 16)) -> PlaneLayout:
    height, width = draw(st.integers(1, 40)), draw(st.integers(1, 130))
    pad = draw(st.integers(0, 2))
    if draw(st.booleans()):
        pads = pad, draw(st.integers(0, 200))
        return PlaneLayout.make(height, width, pads, draw(st.sampled_from((1, 4, 16))))
    count = draw(st.sampled_from(lanes))
    bands = draw(st.sampled_from(list(band_choices(height, width, pad, count))))
    columns = -(-width // (count // bands))
    border = draw(st.integers(0, min(2, columns)))
    return PlaneLayout.interleave(height, width, pad, count, bands, border)


@given(layout=layouts())
def test_every_pixel_lies_where_the_definition_says(layout: PlaneLayout) -> None:
    places = pixels_of(layout)
    for y in range(layout.height):
        for x in range(layout.width):
            assert places[layout.offset(y, x)] == (y, x)
            assert layout.element(y, x) == layout.offset(y, x)
    assert min(places) >= 0
    assert max(places) < layout.size


@given(layout=layouts())
def test_planes_round_trip(layout: PlaneLayout) -> None:
    rng = np.random.default_rng(0)
    images = rng.uniform(1, 2, (2, 1, layout.height, layout.width)).astype(np.float32)
    planes = to_planes(images, layout)
    np.testing.assert_array_equal(from_planes(planes, layout), images)
    expected = np.zeros_like(planes)
    for element, (y, x) in pixels_of(layout).items():
        expected[..., element] = images[..., y, x]
    np.testing.assert_array_equal(planes, expected)


@given(layout=layouts())
def test_plain_data_round_trips(layout: PlaneLayout) -> None:
    assert PlaneLayout(*layout.as_values()) == layout
    assert len(layout.as_values()) == (9 if layout.is_interleaved else 6)


@given(layout=layouts(), reach=st.integers(1, 2))
def test_a_row_in_a_circle_gives_the_right_neighbours(layout: PlaneLayout, reach: int) -> None:
    """What a tap ``reach`` columns away reads, from a row whose spare places are zero."""
    if not layout.is_interleaved or reach > layout.columns:
        return
    lanes, columns, width = layout.band_lanes, layout.columns, layout.width
    row = np.zeros((columns, layout.lanes))
    for column in range(columns):
        for lane in range(layout.lanes):
            x = lane % lanes * columns + column
            row[column, lane] = x + 1 if x < width else 0
    for column in range(columns):
        for shift in (-reach, reach):
            index = column + shift
            if 0 <= index < columns:
                continue
            source, picks = layout.turned(index, reach)
            got = [0 if p is None else row[source, p] for p in picks]
            for lane in range(layout.lanes):
                x = lane % lanes * columns + column
                neighbour = x + shift
                want = neighbour + 1 if 0 <= neighbour < width else 0
                assert x >= width or got[lane] == want


def test_exact_splits_leave_no_lane_empty() -> None:
    assert PlaneLayout.interleave(56, 56, 1, 16, 2).spare_columns == 0
    assert PlaneLayout.interleave(112, 112, 1, 16, 1).columns == 7
    assert PlaneLayout.interleave(28, 28, 1, 16, 4).columns == 7
    assert PlaneLayout.interleave(28, 28, 1, 8, 2).columns == 7


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ((8, 8, 1, 48, 48, 1000, 16, 3), "3 bands do not divide 16 lanes"),
        ((5, 8, 1, 48, 48, 1000, 16, 4), "leave one of 5 rows empty"),
        ((4, 8, 2, 64, 128, 1000, 16, 4), "lower than the pad 2"),
        ((8, 8, 1, 16, 48, 1000, 16, 1, 1), "shorter than a row"),
        ((8, 8, 1, 48, 0, 1000, 16, 1, 1), "no room for 1 rows"),
        ((8, 8, 1, 48, 64, 400, 16, 1, 1), "smaller than the rows"),
        ((8, 8, 1, 48, 48, 1000, 16, 1, 2), "border 2 is not in 0..1"),
        ((8, 8, 0, 8, 0, 64, 1, 2), "belong to interleaved lanes"),
        ((8, 8, 0, 7, 0, 64), "row_stride 7 is shorter than a row of 8"),
        ((8, 8, 1, 8, 7, 100), "origin 7 leaves no room for 1 rows"),
        ((8, 8, 1, 8, 8, 79), "size 79 is smaller than the padded image"),
    ],
)
def test_impossible_layouts_are_refused(values: tuple[int, ...], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        PlaneLayout(*values)


def test_offsets_outside_the_image_are_refused() -> None:
    with pytest.raises(ValueError, match="no pixel"):
        PlaneLayout.interleave(8, 8, 1, 16, 1).offset(-1, 0)


@given(
    size=st.tuples(st.integers(1, 20), st.integers(1, 40)),
    pads=st.tuples(st.integers(0, 3), st.integers(0, 100)),
)
def test_rows_and_columns_of_padding_are_zeros_of_the_plane(
    size: tuple[int, int], pads: tuple[int, int]
) -> None:
    layout = PlaneLayout.make(*size, pads, 4)
    (height, width), (rows, columns) = size, pads
    assert layout.lacks(rows, columns) == ""
    assert "padded by" in layout.lacks(layout.pad + 1, 0)
    assert "columns" in layout.lacks(0, layout.side + 1)
    taken = set(pixels_of(layout))
    for y in range(-rows, height + rows):
        for x in range(-columns, width + columns):
            element = layout.offset(y, x)
            assert 0 <= element < layout.size
            assert (element in taken) == (0 <= y < height and 0 <= x < width)


def test_a_row_far_padded_has_no_rows_of_padding() -> None:
    assert PlaneLayout.make(1, 4096, (0, 512)).size < 2 * 4096
