"""Winograd's matrices, the transformed weights, and how dense layers are packed as matrices."""

from __future__ import annotations

import numpy as np
import pytest

from topi_kernels.gemm_weights import GemmCode, pack_gemm, unpack_gemm
from topi_kernels.winograd import POINTS, Winograd


@pytest.mark.parametrize("outputs", sorted(POINTS))
def test_a_tile_is_the_sum_of_products(outputs: int, rng) -> None:
    """``Y = A^T [(G g G^T) * (B^T d B)] A`` against the definition, in float64."""
    found = Winograd.of(outputs)
    b, g, a = map(np.array, (found.input_rows, found.filter_rows, found.output_rows))
    image, kernel = rng.standard_normal((outputs + 2, outputs + 2)), rng.standard_normal((3, 3))
    tile = a @ ((g @ kernel @ g.T) * (b @ image @ b.T)) @ a.T
    for y in range(outputs):
        for x in range(outputs):
            wanted = float((image[y : y + 3, x : x + 3] * kernel).sum())
            assert tile[y, x] == pytest.approx(wanted, abs=1e-13)


@pytest.mark.parametrize("outputs", sorted(POINTS))
def test_what_activations_are_multiplied_by_is_exact(outputs: int) -> None:
    found = Winograd.of(outputs)
    for rows in (found.input_rows, found.output_rows):
        np.testing.assert_array_equal(np.array(rows, np.float32), np.array(rows))
    np.testing.assert_allclose(found.recovery @ np.array(found.filter_rows), np.eye(3), atol=1e-15)
    assert found.products == (outputs + 2) ** 2


def test_other_tiles_have_no_points() -> None:
    with pytest.raises(ValueError, match=r"have \[2, 4\] outputs a row, got 6"):
        Winograd.of(6)


def test_weights_are_rounded_once(rng) -> None:
    """Each transformed weight is the float32 next to the one in extended precision."""
    weight = rng.standard_normal((5, 3, 3, 3)).astype(np.float32)
    g = np.array(Winograd.of(4).filter_rows, np.longdouble)
    wanted = np.einsum("ar,oirs,bs->abio", g, weight.astype(np.longdouble), g).reshape(36, 3, 5)
    got = Winograd.of(4).transformed(weight)
    assert got.dtype == np.float32
    # Half a unit of the last place, and the float64 rounding before.
    error = np.abs(got - wanted) / np.maximum(np.abs(wanted), np.finfo(np.float32).tiny)
    assert float(error.max()) <= 2.0**-24 * (1 + 1e-6)


@pytest.mark.parametrize("outputs", [1, 2, 4])
@pytest.mark.parametrize("out_channels", [5, 16, 37])
def test_unpacked_weights_are_the_packed_ones(outputs: int, out_channels: int, rng) -> None:
    """Blocks that end with the filters, that overlap, and one that is not full."""
    code = GemmCode(outputs, 16)
    weight = rng.standard_normal((out_channels, 7, *code.kernel_size)).astype(np.float32)
    packed = pack_gemm(weight, code)
    assert packed.weights.shape == (-(-out_channels // 16), code.products, 7, 16)
    assert code.starts(out_channels)[-1] == max(0, out_channels - 16)
    np.testing.assert_allclose(unpack_gemm(packed), weight, rtol=0, atol=2e-6 * (outputs > 1))


def test_kernels_of_another_size_are_refused() -> None:
    with pytest.raises(ValueError, match=r"shape \(4, 4, 5, 5\): expected \[out, in, 3, 3\]"):
        pack_gemm(np.ones((4, 4, 5, 5), np.float32), GemmCode(4, 16))
