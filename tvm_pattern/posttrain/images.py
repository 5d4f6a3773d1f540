"""A folder of pictures as calibration batches."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
from torch.utils.data import DataLoader, Dataset

from ..pruning.data import SUFFIXES, DataError, read_picture


class _Pictures(Dataset[torch.Tensor]):
    def __init__(self, files: list[Path], size: int) -> None:
        self.files, self.size = files, size

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> torch.Tensor:
        return read_picture(self.files[index], self.size)


def calibration_batches(
    folder: str | Path, *, size: int = 224, batch: int = 16, limit: int = 256
) -> DataLoader[torch.Tensor]:
    """Pictures below ``folder``, evenly chosen, prepared as for ImageNet's evaluation.

    Parameters
    ----------
    folder : str or pathlib.Path
    size : int
        Height and width of the central crop.
    batch : int
        Pictures in a batch.
    limit : int
        Pictures at most.

    Returns
    -------
    DataLoader
        float32 ``[N, 3, size, size]``, normalised by ImageNet's mean and deviation.

    Raises
    ------
    DataError
        If there is no readable picture.
    """
    if size < 1 or batch < 1 or limit < 1:
        raise DataError(f"got size={size}, batch={batch}, limit={limit}; expected at least 1 each")
    found = sorted(
        path for path in Path(folder).rglob("*")
        if path.suffix.lower() in SUFFIXES and path.is_file()
    )  # fmt: skip
    number = min(limit, len(found))
    chosen = [found[i * len(found) // number] for i in range(number)]
    readable, broken = [], []
    for path in chosen:
        try:
            read_picture(path, 8)
            readable.append(path)
        except DataError:
            broken.append(path)
    if not readable:
        raise DataError(
            f"{folder} has no readable pictures ({len(broken)} are broken); expected files of"
            f" {', '.join(sorted(SUFFIXES))}"
        )
    if broken:
        warnings.warn(
            f"{len(broken)} of {len(chosen)} pictures cannot be read and are left out"
            f" ({broken[0]}{', ...' if len(broken) > 1 else ''})",
            stacklevel=2,
        )
    return DataLoader(_Pictures(readable, size), batch_size=batch)
