"""CIFAR-10 as arrays: from the original binaries, an image folder or a tar of one.

The data belong to whoever brings them: nothing here downloads or ships any.
"""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError

from .networks import CLASSES

SIZE = 32
PADDING = 4
SUFFIXES = (".jpg", ".jpeg", ".png")
_CHUNK = 2500


class DataError(RuntimeError):
    """The folder or file does not hold what the study needs."""


@dataclass(frozen=True)
class Arrays:
    """Images uint8 ``[N, 32, 32, 3]`` and labels int64 ``[N]`` of both parts."""

    train: np.ndarray
    train_labels: np.ndarray
    test: np.ndarray
    test_labels: np.ndarray


def load(source: Path, cache: Path | None, workers: int | None = None) -> Arrays:
    """Arrays of ``source``, decoded once if ``cache`` (an ``.npz`` path) is given.

    Parameters
    ----------
    source : Path
        A folder with ``data_batch_1.bin`` to ``test_batch.bin``, a folder or tar file with
        ``train/<class>/`` and ``test/<class>/`` (or ``val``) images.

    Raises
    ------
    DataError
        Missing parts, broken, grey or wrongly sized images, or other than ten classes.
    """
    if not source.exists():
        raise DataError(f"{source} does not exist; name a folder or a tar file of CIFAR-10")
    stamp = f"{source.resolve()} {source.stat().st_size} {source.stat().st_mtime_ns}"
    if cache is not None and cache.is_file():
        with np.load(cache) as known:
            if str(known["stamp"]) == stamp:
                return Arrays(*(known[k] for k in ("x", "y", "tx", "ty")))
    arrays = (
        _binaries(source) if (source / "test_batch.bin").is_file() else _images(source, workers)
    )
    if cache is not None:
        cache.parent.mkdir(parents=True, exist_ok=True)
        partial = cache.with_suffix(".part.npz")
        np.savez(
            partial, x=arrays.train, y=arrays.train_labels, tx=arrays.test,
            ty=arrays.test_labels, stamp=np.array(stamp),
        )  # fmt: skip
        os.replace(partial, cache)
    return arrays


def _binaries(folder: Path) -> Arrays:
    """The original files: a label byte and 3,072 bytes of planes per image."""
    parts = []
    for names in ([f"data_batch_{i}.bin" for i in range(1, 6)], ["test_batch.bin"]):
        missing = [n for n in names if not (folder / n).is_file()]
        if missing:
            raise DataError(f"{folder} lacks {', '.join(missing)}; unpack all of the binaries")
        raw = np.concatenate([np.fromfile(folder / n, np.uint8) for n in names])
        if raw.size % 3073:
            raise DataError(
                f"{folder}: records are 3073 bytes, got {raw.size} bytes; copy it again"
            )
        rows = raw.reshape(-1, 3073)
        parts += [rows[:, 1:].reshape(-1, 3, SIZE, SIZE).transpose(0, 2, 3, 1), rows[:, 0]]
    x, y, tx, ty = parts
    return Arrays(np.ascontiguousarray(x), y.astype(int), np.ascontiguousarray(tx), ty.astype(int))


def _files(source: Path) -> Iterator[tuple[str, bytes]]:
    """Names and bytes of the images of a folder or tar file."""
    if source.is_dir():
        for path in sorted(source.rglob("*")):
            if path.suffix.lower() in SUFFIXES:
                yield path.relative_to(source).as_posix(), path.read_bytes()
        return
    try:
        with tarfile.open(source) as archive:
            for member in archive:
                if member.isfile() and member.name.lower().endswith(SUFFIXES):
                    stream = archive.extractfile(member)
                    if stream is not None:
                        yield member.name.removeprefix("./"), stream.read()
    except tarfile.TarError as error:
        raise DataError(f"{source} is no folder and no readable tar file: {error}") from error


def _decode(items: list[tuple[str, bytes]]) -> tuple[np.ndarray, list[str]]:
    """Images of a chunk and what is wrong with any."""
    images = np.zeros((len(items), SIZE, SIZE, 3), np.uint8)
    wrong = []
    for index, (name, data) in enumerate(items):
        try:
            with Image.open(io.BytesIO(data)) as image:
                if image.size != (SIZE, SIZE) or image.mode != "RGB":
                    wrong.append(f"{name}: {image.size} {image.mode}")
                    continue
                images[index] = np.asarray(image)
        except (UnidentifiedImageError, Image.DecompressionBombError, OSError) as error:
            wrong.append(f"{name}: {error}")
    return images, wrong


def _images(source: Path, workers: int | None) -> Arrays:
    files = sorted(_files(source))
    chunks = [files[i : i + _CHUNK] for i in range(0, len(files), _CHUNK)]
    if len(chunks) > 1:
        with ProcessPoolExecutor(workers or os.cpu_count()) as pool:
            decoded = list(pool.map(_decode, chunks))
    else:
        decoded = [_decode(chunk) for chunk in chunks]
    wrong = [line for _, lines in decoded for line in lines]
    if wrong:
        raise DataError(
            f"{source}: {len(wrong)} images are not readable {SIZE}x{SIZE} RGB images:"
            f" {'; '.join(wrong[:5])}. Replace or remove them"
        )
    images = np.concatenate([i for i, _ in decoded]) if decoded else np.zeros((0,), np.uint8)
    places = [name.split("/") for name, _ in files]
    parts = []
    for part in (("train",), ("test", "val")):
        chosen = [i for i, place in enumerate(places) if len(place) > 2 and place[-3] in part]
        names = sorted({places[i][-2] for i in chosen})
        if len(names) != CLASSES:
            raise DataError(
                f"{source}: {part[0]}/ has {len(names)} classes {names[:12]}, expected {CLASSES}"
                " folders of images; name the folder above train/ and test/"
            )
        parts.append((images[chosen], np.array([names.index(places[i][-2]) for i in chosen])))
        if part[0] == "train":
            known = names
        elif names != known:
            raise DataError(f"{source}: test/ has other classes {names} than train/ {known}")
    return Arrays(*parts[0], *parts[1])


def synthetic(images: int, tests: int, size: int = 8, seed: int = 0) -> Arrays:
    """Noise around ten colour patterns: enough to see that everything runs."""
    rng = np.random.default_rng(seed)
    centres = rng.integers(40, 216, (CLASSES, 4, 4, 3)).repeat(size // 4, 1).repeat(size // 4, 2)
    parts: list[np.ndarray] = []
    for count in (images, tests):
        labels = np.arange(count) % CLASSES
        noisy = centres[labels] + rng.normal(0, 40, (count, size, size, 3))
        parts += [noisy.clip(0, 255).astype(np.uint8), labels]
    return Arrays(*parts)


class DeviceData:
    """All images on the device; batches are cut, flipped and normalised there."""

    def __init__(
        self, arrays: Arrays, device: torch.device, dtype: torch.dtype, channels: int
    ) -> None:
        self.dtype, self.channels, self.device = dtype, channels, device
        mean = arrays.train.mean((0, 1, 2))
        deviation = arrays.train.std((0, 1, 2))
        self.mean = torch.tensor(mean, dtype=torch.float32, device=device)
        self.deviation = torch.tensor(deviation, dtype=torch.float32, device=device)
        self.size = arrays.train.shape[1]
        side = self.size + 2 * PADDING
        padded = np.empty((len(arrays.train), side, side, 3), np.uint8)
        padded[:] = mean.round().astype(np.uint8)  # zero after normalisation, nearly
        padded[:, PADDING:-PADDING, PADDING:-PADDING] = arrays.train
        self.padded = torch.from_numpy(padded).to(device)
        self.labels = torch.from_numpy(arrays.train_labels.astype(np.int64)).to(device)
        self.test = torch.from_numpy(arrays.test).to(device)
        self.test_labels = torch.from_numpy(arrays.test_labels.astype(np.int64)).to(device)

    def __len__(self) -> int:
        return len(self.labels)

    def normalised(self, images: torch.Tensor) -> torch.Tensor:
        """uint8 ``[..., 3]`` to ``dtype`` with zeros up to ``channels``."""
        values = ((images.float() - self.mean) / self.deviation).to(self.dtype)
        return torch.nn.functional.pad(values, (0, self.channels - 3))

    def epoch(self, seed: int, epoch: int) -> dict[str, torch.Tensor]:
        """Order, crops and flips of an epoch, the same for a seed on any device."""
        generator = torch.Generator().manual_seed(1_000_003 * seed + epoch)
        count = len(self)
        plan = {
            "order": torch.randperm(count, generator=generator),
            "top": torch.randint(2 * PADDING + 1, (count,), generator=generator),
            "left": torch.randint(2 * PADDING + 1, (count,), generator=generator),
            "flip": torch.randint(2, (count,), generator=generator),
        }
        return {key: value.to(self.device) for key, value in plan.items()}

    def batch(
        self, plan: dict[str, torch.Tensor], start: int, size: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Augmented images ``[size, H, W, channels]`` and labels."""
        cut = slice(start, start + size)
        index = plan["order"][cut]
        along = torch.arange(self.size, device=self.device)
        rows = plan["top"][cut, None] + along
        flip = plan["flip"][cut, None]
        columns = plan["left"][cut, None] + torch.where(flip == 1, self.size - 1 - along, along)
        images = self.padded[index[:, None, None], rows[:, :, None], columns[:, None, :]]
        return self.normalised(images), self.labels[index]
