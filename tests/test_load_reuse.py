"""Load reuse: which inputs a register_tile reads, against a count written out tap by tap."""

from __future__ import annotations

from itertools import product

import pytest

from topi_kernels.geometry import ConvGeometry
from topi_kernels.schedules.config import ConvConfig
from topi_kernels.schedules.load_reuse import input_rows, input_uses

GEOMETRIES = {
    "same": ConvGeometry((3, 3), padding=(1, 1)),
    "stride-2": ConvGeometry((3, 3), (2, 2), (1, 1)),
    "dilated": ConvGeometry((3, 3), (1, 1), (2, 2), (2, 2)),
    "uneven": ConvGeometry((5, 3), (2, 1), (2, 0), (1, 3)),
    "point": ConvGeometry((1, 1)),
}
CONFIGS = {
    "pixels": ConvConfig(8, 1, 2, 3, 2),
    "mixed": ConvConfig(8, 4, 1, 2, 3),
    "filters": ConvConfig(8, 8, 1, 1, 4),
    "interleaved": ConvConfig(8, 1, 1, 2, 3, shift="lanes"),
}
TAPS = {
    (3, 3): [(0, 1), (1, 0), (1, 1), (2, 2)],
    (5, 3): [(0, 0), (2, 1), (4, 2)],
    (1, 1): [(0, 0)],
}


def reads(geometry: ConvGeometry, config: ConvConfig) -> list[tuple[tuple[int, ...], tuple]]:
    """``(row, first column)`` of the input and ``(tap number, tile row, tile column)``, one by one.

    Plain rows: the input of output pixel x and tap column kw is ``x * stride + kw * dilation -
    padding``. Interleaved lanes: the vector that holds every lane's such pixel.
    """
    found = []
    for n, (kh, kw) in enumerate(TAPS[geometry.kernel_size]):
        for r, c in product(range(config.tile_rows), range(config.tile_cols)):
            row = r * geometry.stride[0] + kh * geometry.dilation[0] - geometry.padding[0]
            moved = kw * geometry.dilation[1] - geometry.padding[1]
            pixel = c * (config.vector_width // config.filter_lanes)
            column = pixel * geometry.stride[1] + moved
            if config.shift == "lanes":
                column = (c * geometry.stride[1] + moved) * config.vector_width
            found.append(((row, column), (n, r, c)))
    return found


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("geometry", GEOMETRIES.values(), ids=GEOMETRIES)
def test_every_read_is_there_once(geometry: ConvGeometry, config: ConvConfig) -> None:
    taps, expected = TAPS[geometry.kernel_size], reads(geometry, config)
    uses = input_uses(geometry, config, taps)
    assert sorted((at, use) for at, users in uses.items() for use in users) == sorted(expected)
    rows = input_rows(geometry, config, taps)
    assert {(row, column) for row, columns in rows.items() for column in columns} == set(uses)


def test_neighbouring_taps_share_what_they_read() -> None:
    """Two rows of a 3x3 kernel's middle column: four input rows instead of six."""
    taps, config = [(0, 1), (1, 1), (2, 1)], ConvConfig(8, 1, 1, 2, 1)
    uses = input_uses(GEOMETRIES["same"], config, taps)
    assert {at: len(users) for at, users in uses.items()} == {
        (-1, 0): 1,
        (0, 0): 2,
        (1, 0): 2,
        (2, 0): 1,
    }
