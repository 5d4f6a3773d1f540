"""Weights of a dense layer that is computed as products of matrices, block by block of filters.

One matrix ``[in_channels, out_channels]`` for kernels of one tap; for 3x3 kernels by Winograd's
filtering (:mod:`topi_kernels.winograd`) one for each product of a tile, transformed in float64.
Stored is ``[blocks][products][in_channels][block]``, in the order of use. A last block that would
not be full is moved back, so that some filters stand in two blocks; fewer filters than a block are
filled up with zeros.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .winograd import TAPS, Winograd


@dataclass(frozen=True)
class GemmCode:
    """How a layer is laid out.

    Parameters
    ----------
    outputs : int
        Outputs of a tile along a row; 1 for kernels of one tap.
    block : int
        Filters of a block.
    """

    outputs: int
    block: int

    @property
    def kernel_size(self) -> tuple[int, int]:
        return (1, 1) if self.outputs == 1 else (TAPS, TAPS)

    @property
    def products(self) -> int:
        """Matrices of the layer."""
        return 1 if self.outputs == 1 else Winograd.of(self.outputs).products

    @property
    def recovery(self) -> np.ndarray:
        """``[taps, products]`` along a row: gives the filter back."""
        return np.ones((1, 1)) if self.outputs == 1 else Winograd.of(self.outputs).recovery

    def starts(self, out_channels: int) -> list[int]:
        """First filter of every block."""
        last = max(0, out_channels - self.block)
        return [min(start, last) for start in range(0, out_channels, self.block)]


@dataclass(frozen=True)
class GemmWeights:
    """A packed layer. Build it with :func:`pack_gemm`.

    Parameters
    ----------
    out_channels : int
    code : GemmCode
    weights : numpy.ndarray
        ``[blocks, products, in_channels, block]``.
    """

    out_channels: int
    code: GemmCode
    weights: np.ndarray

    @property
    def named_arrays(self) -> dict[str, np.ndarray]:
        """The packed arrays by name, in the order in which the operator takes them."""
        return {"weights": self.weights.reshape(-1)}

    @property
    def arrays(self) -> list[np.ndarray]:
        """The packed arrays in the order in which the operator takes them."""
        return list(self.named_arrays.values())


def pack_gemm(weight: np.ndarray, code: GemmCode) -> GemmWeights:
    """Pack the weights of a dense layer.

    Parameters
    ----------
    weight : numpy.ndarray
        float32 ``[out_channels, in_channels, kh, kw]``.
    code : GemmCode

    Raises
    ------
    ValueError
        If the kernels have another size than the code is for.
    """
    if weight.ndim != 4 or weight.shape[2:] != code.kernel_size:
        kh, kw = code.kernel_size
        raise ValueError(f"weights of shape {weight.shape}: expected [out, in, {kh}, {kw}]")
    out_channels, in_channels = weight.shape[:2]
    if code.outputs == 1:
        matrices = weight.reshape(1, out_channels, in_channels).swapaxes(1, 2)
    else:
        matrices = Winograd.of(code.outputs).transformed(weight)
    starts = code.starts(out_channels)
    packed = np.zeros((len(starts), code.products, in_channels, code.block), weight.dtype)
    for number, start in enumerate(starts):
        columns = matrices[:, :, start : start + code.block]
        packed[number, :, :, : columns.shape[2]] = columns
    return GemmWeights(out_channels, code, packed)


def unpack_gemm(packed: GemmWeights) -> np.ndarray:
    """Dense float64 weights ``[out_channels, in_channels, kh, kw]``.

    The inverse of :func:`pack_gemm`, up to the rounding of transformed weights.
    """
    code = packed.code
    _, products, in_channels, _ = packed.weights.shape
    matrices = np.zeros((products, in_channels, packed.out_channels))
    for block, start in zip(packed.weights, code.starts(packed.out_channels), strict=True):
        count = min(code.block, packed.out_channels - start)
        matrices[:, :, start : start + count] = block[:, :, :count]
    rows = code.recovery
    size = rows.shape[1]
    square = matrices.reshape(size, size, in_channels, packed.out_channels)
    return np.einsum("ra,abio,sb->oirs", rows, square, rows)
