"""Operators of torchvision in torch's own words: deformable convolutions, regions of interest.

Both read between pixels, whose rows of channels are gathered, so what is left is a product.
"""

from __future__ import annotations

from typing import Any


def deform_conv2d(
    x: Any,
    weight: Any,
    offset: Any,
    mask: Any,
    bias: Any,
    stride_h: int,
    stride_w: int,
    pad_h: int,
    pad_w: int,
    dilation_h: int,
    dilation_w: int,
    groups: int,
    offset_groups: int,
    use_mask: bool,  # noqa: FBT001 - as torchvision calls it
) -> Any:
    """``torchvision.ops.deform_conv2d``: a 1x1 convolution of what each tap reads at its place."""
    import torch

    batch, channels, height, width = x.shape
    filters, _, kernel_h, kernel_w = weight.shape
    rows, columns = offset.shape[-2:]
    taps, images = kernel_h * kernel_w, batch * offset_groups
    shifts = offset.reshape(images, taps, 2, rows, columns)
    tap = torch.arange(taps)
    y = _places(rows, stride_h, pad_h, tap // kernel_w * dilation_h, x.dtype)
    x_place = _places(columns, stride_w, pad_w, tap % kernel_w * dilation_w, x.dtype)
    # Beyond the image everything is zero, and a border of zeros is all that is reached of it.
    padded = torch.nn.functional.pad(x, (1, 1, 1, 1))
    padded = padded.reshape(images, channels // offset_groups, height + 2, width + 2)
    which = torch.arange(images).reshape(-1, 1, 1, 1).expand(images, taps, rows, columns)
    read = _between_pixels(
        padded,
        which,
        shifts[:, :, 0] + y[:, :, None] + 1,
        shifts[:, :, 1] + x_place[:, None, :] + 1,
    )
    if use_mask:
        read = read * mask.reshape(images, taps, rows, columns)[..., None]
    read = read.permute(0, 4, 1, 2, 3).reshape(batch, channels * taps, rows, columns)
    flat = weight.reshape(filters, -1, 1, 1)
    return torch.nn.functional.conv2d(read, flat, bias, groups=groups)


def roi_align(
    x: Any,
    rois: Any,
    spatial_scale: float,
    pooled_height: int,
    pooled_width: int,
    sampling_ratio: int,
    aligned: bool,  # noqa: FBT001 - as torchvision calls it
) -> Any:
    """``torchvision.ops.roi_align`` with a fixed number of samples; else it is TVM's operator."""
    import torch

    if sampling_ratio <= 0:
        return NotImplemented
    height, width = x.shape[-2:]
    half = 0.5 if aligned else 0.0
    corners = rois[:, 1:] * spatial_scale - half
    left, top, right, bottom = (corners[:, i : i + 1] for i in range(4))
    high, wide = bottom - top, right - left
    if not aligned:
        high, wide = torch.clamp(high, min=1), torch.clamp(wide, min=1)
    samples = [
        (torch.arange(n * sampling_ratio) + 0.5) / (n * sampling_ratio)
        for n in (pooled_height, pooled_width)
    ]
    y, x_place = top + high * samples[0], left + wide * samples[1]
    count = (rois.shape[0], y.shape[1], x_place.shape[1])
    y, x_place = y[:, :, None].expand(count), x_place[:, None, :].expand(count)
    within = (y >= -1) & (y <= height) & (x_place >= -1) & (x_place <= width)
    which = rois[:, 0].long().reshape(-1, 1, 1).expand(count)
    read = _between_pixels(x, which, y, x_place) * within[..., None]
    cells = (rois.shape[0], pooled_height, sampling_ratio, pooled_width, sampling_ratio, -1)
    return read.reshape(cells).mean((2, 4)).permute(0, 3, 1, 2)


def _places(count: int, stride: int, padding: int, shift: Any, dtype: Any) -> Any:
    """Where each tap reads along an axis without its offset: (taps, outputs)."""
    import torch

    return (torch.arange(count) * stride - padding + shift[:, None]).to(dtype)


def _between_pixels(images: Any, which: Any, y: Any, x: Any) -> Any:
    """Bilinear values of images; coordinates beyond one are those of its border.

    Parameters
    ----------
    images : Tensor
        (images, channels, height, width).
    which, y, x : Tensor
        Of each point: its image, its row, its column; of one shape.

    Returns
    -------
    Tensor
        (*points, channels).
    """
    import torch

    _, channels, height, width = images.shape
    pixels = images.permute(0, 2, 3, 1).reshape(-1, channels)
    y, x = torch.clamp(y, 0, height - 1), torch.clamp(x, 0, width - 1)
    top, left = torch.floor(y), torch.floor(x)
    total = None
    for row, share in ((top, 1 - (y - top)), (torch.clamp(top + 1, max=height - 1), y - top)):
        for column, part in (
            (left, 1 - (x - left)),
            (torch.clamp(left + 1, max=width - 1), x - left),
        ):
            place = (which * height + row.long()) * width + column.long()
            term = pixels[place] * (share * part)[..., None]
            total = term if total is None else total + term
    return total
