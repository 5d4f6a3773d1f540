"""A folder of pictures as calibration batches."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import torch

from ..pruning.pictures import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    SUFFIXES,
    DataError,
    normalised,
    read_picture,
    warn_of_grey,
)


def calibration_batches(
    folder: str | Path,
    *,
    size: int = 224,
    batch: int = 16,
    limit: int = 256,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
) -> list[torch.Tensor]:
    """Pictures below ``folder``, evenly chosen, prepared as for ImageNet's evaluation.

    They are decoded once and stay in memory, 12 size^2 bytes each: every layer reads them again.

    Parameters
    ----------
    folder : str or pathlib.Path
    size : int
        Height and width of the central crop.
    batch : int
        Pictures in a batch.
    limit : int
        Pictures at most.
    mean, std : sequence of 3 floats
        Of red, green and blue between 0 and 1: what the network was trained with. Zeros and ones
        for pictures between 0 and 1, as detectors often want.

    Returns
    -------
    list of Tensor
        float32 ``[N, 3, size, size]``, normalised.

    Raises
    ------
    DataError
        If there is no readable picture, or a number is not usable.
    """
    normalised(torch.zeros(1, 3, 1, 1), mean, std)  # refused before anything is read
    if size < 1 or batch < 1 or limit < 1:
        raise DataError(f"got size={size}, batch={batch}, limit={limit}; expected at least 1 each")
    if not Path(folder).is_dir():
        raise DataError(f"{folder}: no such folder; give one with pictures")
    found = sorted(
        path
        for path in Path(folder).rglob("*")
        if path.suffix.lower() in SUFFIXES and path.is_file()
    )
    number = min(limit, len(found))
    pictures, broken = [], []
    for path in (found[i * len(found) // number] for i in range(number)):
        try:
            pictures.append(read_picture(path, size))
        except DataError:
            broken.append(path)
    if not pictures:
        raise DataError(
            f"{folder} has no readable pictures ({len(broken)} are broken); expected files of"
            f" {', '.join(sorted(SUFFIXES))}"
        )
    if broken:
        warnings.warn(
            f"{len(broken)} of {number} pictures cannot be read and are left out"
            f" ({broken[0]}{', ...' if len(broken) > 1 else ''})",
            stacklevel=2,
        )
    warn_of_grey(found, folder)
    return list(normalised(torch.stack(pictures), mean, std).split(batch))
