"""What a convolution of bytes gives, in whole numbers: no schedule, no packing."""

from __future__ import annotations

import numpy as np

from .layer import Int8Layer


def _sums(layer: Int8Layer, x: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """int64 ``[n, out_channels, h, w]``: sums of products, bias and zero point included."""
    geometry, (height, width) = layer.geometry, size
    (kh, kw), (sy, sx), (dy, dx) = geometry.kernel_size, geometry.stride, geometry.dilation
    top, left = geometry.padding
    batch, channels = x.shape[:2]
    filters, of_filter = layer.weight.shape[:2]
    around = ((0, 0), (0, 0), (top, kh * dy + sy * height), (left, kw * dx + sx * width))
    shifted = np.pad(x.astype(np.float64) - layer.source.zero_point, around)
    unit = layer.weight_scale.astype(np.float64) * layer.source.scale
    total = np.empty((batch, filters, height, width))
    total[:] = np.rint(layer.bias / unit)[:, None, None]
    for row, col in np.ndindex(kh, kw):
        under = shifted[:, :, row * dy :: sy, col * dx :: sx][:, :, :height, :width]
        taps = layer.weight[:, :, row, col].astype(np.float64)
        if of_filter == channels:
            # Sums of products of bytes are far below 2**53: float64 has them exactly.
            total += (taps @ under.reshape(batch, channels, -1)).reshape(total.shape)
        else:
            total += taps[:, 0, None, None] * under.repeat(filters // channels, axis=1)
    return total.astype(np.int64)


def reference(
    layer: Int8Layer, x: np.ndarray, size: tuple[int, int], residual: np.ndarray | None = None
) -> np.ndarray:
    """The bytes of a convolution, dense or depthwise.

    Parameters
    ----------
    layer : Int8Layer
    x : numpy.ndarray
        uint8 ``[n, in_channels, h, w]``.
    size : tuple of int
        Height and width of the result.
    residual : numpy.ndarray, optional
        uint8 ``[n, out_channels, *size]``.

    Returns
    -------
    numpy.ndarray
        uint8 ``[n, out_channels, *size]``.
    """
    factors = layer.factors().astype(np.float64)[:, None, None]
    value = _sums(layer, x, size).astype(np.float32).astype(np.float64) * factors
    if residual is not None and layer.residual is not None:
        shifted = residual.astype(np.float32) - np.float32(layer.residual.zero_point)
        value = (value + shifted * layer.residual_factor()).astype(np.float32)
    low, high = layer.limits()
    return np.clip(np.rint(value) + layer.result.zero_point, low, high).astype(np.uint8)
