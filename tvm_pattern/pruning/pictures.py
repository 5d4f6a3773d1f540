"""Single pictures: read, cropped and normalised as for ImageNet's evaluation."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".tif", ".tiff"}
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
MEAN = torch.tensor(IMAGENET_MEAN)[:, None, None]
STD = torch.tensor(IMAGENET_STD)[:, None, None]
_LOOKED_AT = 16
"""Pictures of a folder that are read to tell whether they have colours."""


class DataError(ValueError):
    """A data set that is missing, empty or damaged."""


def normalise(image: Image.Image) -> torch.Tensor:
    """float32 ``[3, H, W]`` of a picture in RGB, by ImageNet's mean and deviation."""
    pixels = torch.from_numpy(np.array(image, np.uint8)).permute(2, 0, 1).float().div_(255)
    return pixels.sub_(MEAN).div_(STD)


def open_picture(path: Path) -> Image.Image:
    """A picture in RGB.

    Raises
    ------
    DataError
        If it cannot be read.
    """
    try:
        with Image.open(path) as raw:
            # Pillow cuts these off at 255.
            if raw.mode == "F" or raw.mode.startswith("I"):
                raise DataError(
                    f"{path} has pixels of more than 8 bits ({raw.mode}); expected 8 for each"
                    " colour: convert it"
                )
            return raw.convert("RGB")
    except DataError:
        raise
    except (
        OSError,
        UnidentifiedImageError,
        Image.DecompressionBombError,
        ValueError,
        SyntaxError,
    ) as error:
        raise DataError(f"{path} is no readable picture: {error}") from error


def central_crop(image: Image.Image, size: int) -> Image.Image:
    """The central square of 7/8 of the short side, as in the usual 256 / 224 evaluation."""
    width, height = image.size
    side = min(width, height) * 224 / 256
    left, top = (width - side) / 2, (height - side) / 2
    box = (left, top, left + side, top + side)
    return image.resize((size, size), Image.Resampling.BILINEAR, box=box)


def read_picture(path: Path, size: int) -> torch.Tensor:
    """One picture as for evaluation: float32 ``[3, size, size]``, normalised.

    Raises
    ------
    DataError
        If it cannot be read.
    """
    return normalise(central_crop(open_picture(path), size))


def normalised(images: torch.Tensor, mean: Sequence[float], std: Sequence[float]) -> torch.Tensor:
    """Pictures ``[N, 3, H, W]`` of :func:`read_picture` with another mean and deviation.

    Parameters
    ----------
    images : Tensor
        Normalised by ImageNet's; changed in place.
    mean, std : sequence of 3 floats
        Of red, green and blue between 0 and 1.

    Raises
    ------
    DataError
        If these are not three numbers each, with deviations above 0.
    """
    if len(mean) != 3 or len(std) != 3 or not all(s > 0 for s in std):
        raise DataError(f"got mean={mean}, std={std}; expected three numbers each, std above 0")
    if (tuple(mean), tuple(std)) == (IMAGENET_MEAN, IMAGENET_STD):
        return images
    wanted_mean, wanted_std = (torch.tensor(v)[:, None, None] for v in (mean, std))
    return images.mul_(STD).add_(MEAN).sub_(wanted_mean).div_(wanted_std)


def warn_of_grey(files: Sequence[Path], where: str | Path) -> None:
    """Warn if most of the pictures have no colours; some of them are looked at."""
    count = min(len(files), _LOOKED_AT)
    looks = [_is_grey(files[number * len(files) // count]) for number in range(count)]
    readable = [grey for grey in looks if grey is not None]
    if 2 * sum(readable) > len(readable):
        warnings.warn(
            f"{where}: {sum(readable)} of {len(readable)} pictures that were looked at are grey;"
            " they are read as equal red, green and blue, which a network that was trained on"
            " colours does not expect",
            stacklevel=3,
        )


def _is_grey(path: Path) -> bool | None:
    """Whether red, green and blue are equal everywhere; None for what cannot be read."""
    try:
        pixels = np.array(open_picture(path))
    except DataError:
        return None
    return bool((pixels == pixels[:, :, :1]).all())
