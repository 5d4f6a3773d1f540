"""Images for ``tvm-pattern prune``: class folders, CIFAR-10's binary files, the bundled digits.

Augmentation is drawn from (seed, epoch, index), and a sampler passes the epoch along with the
index, so that a resumed run sees exactly the images of an uninterrupted one, whatever the workers.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch.utils.data import DataLoader, Dataset, Sampler

from .pictures import (
    MEAN,
    STD,
    SUFFIXES,
    DataError,
    central_crop,
    normalise,
    open_picture,
    warn_of_grey,
)

IGNORED = -1
"""Label of an image that cannot be read; the loss and the accuracy leave it out."""

_CIFAR_RECORD = 1 + 3 * 32 * 32

Key = tuple[int, int]
Item = tuple[torch.Tensor, int, int]


def _generator(seed: int, key: Key) -> torch.Generator:
    # Distinct odd factors keep (epoch, index) pairs apart.
    mixed = (seed * 1_000_003 + key[0] * 7_368_787 + key[1] * 2_654_435_761) % (1 << 63)
    return torch.Generator().manual_seed(mixed)


def _uniform(generator: torch.Generator, low: float, high: float) -> float:
    return low + (high - low) * float(torch.rand((), generator=generator))


class ImageFolder(Dataset[Item]):
    """``root/<class>/*.jpg``; training crops are random, evaluation crops central.

    An unreadable image becomes zeros with the label :data:`IGNORED`; :func:`collate` puts another
    one in its place, so that batch norms see pictures only.
    """

    def __init__(
        self, root: Path, classes: list[str], size: int, seed: int, *, train: bool
    ) -> None:
        self.size, self.train, self.seed = size, train, seed
        self.files: list[Path] = []
        self.labels: list[int] = []
        for label, name in enumerate(classes):
            folder = root / name
            found = sorted(
                p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file()
            ) if folder.is_dir() else []  # fmt: skip
            self.files += found
            self.labels += [label] * len(found)
        if not self.files:
            raise DataError(
                f"{root} has no images; expected {root}/<class>/*.jpg (or {sorted(SUFFIXES)})"
            )
        warn_of_grey(self.files, root)

    def __len__(self) -> int:
        return len(self.files)

    def name(self, index: int) -> str:
        """File of an item, to name it in a message."""
        return str(self.files[index])

    def __getitem__(self, key: Key) -> Item:
        index = key[1]
        try:
            image = open_picture(self.files[index])
        except DataError:
            return torch.zeros(3, self.size, self.size), IGNORED, index
        image = self._random_crop(image, key) if self.train else central_crop(image, self.size)
        return normalise(image), self.labels[index], index

    def _random_crop(self, image: Image.Image, key: Key) -> Image.Image:
        """Random area of 8 to 100 % and aspect 3/4 to 4/3, resized, mirrored half of the time."""
        generator = _generator(self.seed, key)
        width, height = image.size
        area = width * height * _uniform(generator, 0.08, 1.0)
        aspect = math.exp(_uniform(generator, math.log(3 / 4), math.log(4 / 3)))
        w = min(width, max(1, round(math.sqrt(area * aspect))))
        h = min(height, max(1, round(math.sqrt(area / aspect))))
        left = int(_uniform(generator, 0, width - w + 1))
        top = int(_uniform(generator, 0, height - h + 1))
        box = (left, top, min(width, left + w), min(height, top + h))
        crop = image.resize((self.size, self.size), Image.Resampling.BILINEAR, box=box)
        if _uniform(generator, 0, 1) < 0.5:
            crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return crop


class ImageTensor(Dataset[Item]):
    """Images in memory, uint8 ``[N, 3, H, W]``, shifted (and mirrored) at random for training."""

    def __init__(
        self, images: torch.Tensor, labels: torch.Tensor, *, train: bool, mirror: bool, seed: int
    ) -> None:
        self.images, self.labels = images, labels
        self.train, self.mirror, self.seed = train, mirror, seed
        self.padding = images.shape[-1] // 8

    def __len__(self) -> int:
        return len(self.images)

    def name(self, index: int) -> str:
        """Description of an item, to name it in a message."""
        return f"image {index}"

    def __getitem__(self, key: Key) -> Item:
        index = key[1]
        image = self.images[index].float().div_(255)
        image = image.sub_(MEAN).div_(STD)
        if self.train:
            generator = _generator(self.seed, key)
            size, p = image.shape[-1], self.padding
            top, left = torch.randint(0, 2 * p + 1, (2,), generator=generator).tolist()
            image = F.pad(image, (p, p, p, p))[:, top : top + size, left : left + size]
            if self.mirror and _uniform(generator, 0, 1) < 0.5:
                image = image.flip(-1)
        return image, int(self.labels[index]), index


class EpochSampler(Sampler[Key]):
    """(epoch, index) pairs of one process: shuffled by (seed, epoch), equal counts when training.

    Parameters
    ----------
    size : int
        Items of the data set.
    train : bool
        Shuffle, and drop the few items that do not divide among the processes. Evaluation keeps
        every item exactly once.
    """

    def __init__(self, size: int, *, train: bool, seed: int, rank: int = 0, world: int = 1) -> None:
        self.size, self.train, self.seed = size, train, seed
        self.rank, self.world = rank, world
        self.epoch = 0
        if train and size < world:
            raise DataError(f"{size} training images for {world} processes; use fewer processes")

    def __len__(self) -> int:
        return len(self._mine())

    def _mine(self) -> list[int]:
        if not self.train:
            return list(range(self.rank, self.size, self.world))
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        order = torch.randperm(self.size, generator=generator).tolist()
        return order[self.rank : self.size - self.size % self.world : self.world]

    def __iter__(self) -> Iterator[Key]:
        return iter([(self.epoch, index) for index in self._mine()])


@dataclass(frozen=True)
class DataSets:
    """Training and validation images of one source."""

    train: Dataset[Item]
    validation: Dataset[Item]
    classes: list[str]
    description: str


def read_cifar10(paths: list[Path]) -> tuple[torch.Tensor, torch.Tensor]:
    """Images uint8 ``[N, 3, 32, 32]`` and labels of CIFAR-10 binary files.

    Raises
    ------
    DataError
        A file is missing, is not a whole number of 3073-byte records, or has a label above 9.
    """
    parts = []
    for path in paths:
        if not path.is_file():
            raise DataError(f"{path}: no such file; unpack CIFAR-10's binary version here")
        raw = np.fromfile(path, np.uint8)
        if raw.size == 0 or raw.size % _CIFAR_RECORD:
            raise DataError(
                f"{path}: {raw.size} bytes are no whole number of {_CIFAR_RECORD}-byte records;"
                " expected CIFAR-10's binary version, the file is damaged or of another format"
            )
        parts.append(raw.reshape(-1, _CIFAR_RECORD))
    records = np.concatenate(parts)
    labels = torch.from_numpy(records[:, 0].astype(np.int64))
    if int(labels.max()) > 9:
        raise DataError(f"label {int(labels.max())} in {paths[0].parent}; CIFAR-10 has 0 to 9")
    return torch.from_numpy(records[:, 1:].reshape(-1, 3, 32, 32).copy()), labels


def _cifar10(root: Path, seed: int) -> DataSets:
    train = read_cifar10(sorted(root.glob("data_batch_*.bin")))
    test = read_cifar10([root / "test_batch.bin"])
    return DataSets(
        ImageTensor(*train, train=True, mirror=True, seed=seed),
        ImageTensor(*test, train=False, mirror=False, seed=seed),
        [str(i) for i in range(10)],
        f"CIFAR-10 in {root}",
    )


def _digits(size: int, seed: int) -> DataSets:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise DataError(
            "the bundled digits come with scikit-learn, which is not installed; run"
            " `pip install scikit-learn` or give an image folder"
        ) from error
    raw = load_digits()
    images = torch.tensor(raw.images / 16.0 * 255, dtype=torch.float32)[:, None]
    images = F.interpolate(images, (size, size), mode="bilinear", align_corners=False)
    images = images.round().to(torch.uint8).expand(-1, 3, -1, -1)
    labels = torch.tensor(raw.target, dtype=torch.int64)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    held, used = order[: len(order) // 5], order[len(order) // 5 :]
    return DataSets(
        ImageTensor(images[used], labels[used], train=True, mirror=False, seed=seed),
        ImageTensor(images[held], labels[held], train=False, mirror=False, seed=seed),
        [str(i) for i in range(10)],
        "bundled digits",
    )


def open_data(source: str, *, image_size: int | None = None, seed: int = 0) -> DataSets:
    """Data sets of ``digits``, a folder of CIFAR-10 binaries, or ``train`` / ``val`` folders.

    Raises
    ------
    DataError
        If nothing usable is there; the message names what was looked for.
    """
    root = Path(source)
    if source == "digits" and not root.exists():
        return _digits(image_size or 32, seed)
    if not root.is_dir():
        raise DataError(f"{source}: no such folder; give an existing folder or 'digits'")
    if any(root.glob("data_batch_*.bin")):
        return _cifar10(root, seed)
    train, validation = root / "train", root / "val"
    if not train.is_dir() or not validation.is_dir():
        raise DataError(
            f"{source} has neither train/ and val/ class folders nor CIFAR-10's data_batch_*.bin"
        )
    classes = sorted(p.name for p in train.iterdir() if p.is_dir())
    unknown = sorted({p.name for p in validation.iterdir() if p.is_dir()} - set(classes))
    if not classes or unknown:
        raise DataError(
            f"{train} has the classes {classes[:8]}, {validation} has unknown {unknown[:8]};"
            " both need the same class folders"
        )
    if len(classes) == 1:
        raise DataError(
            f"{train} has the one class {classes[0]}; expected two at least: there is nothing to"
            " tell apart"
        )
    size = image_size or 224
    return DataSets(
        ImageFolder(train, classes, size, seed, train=True),
        ImageFolder(validation, classes, size, seed, train=False),
        classes,
        f"images in {source}",
    )


def open_validation(
    source: str, *, image_size: int | None = None, classes: Sequence[str] | None = None
) -> tuple[Dataset[Item], list[str]]:
    """Pictures to evaluate on, and the classes in the order of a network's outputs.

    Parameters
    ----------
    source : str
        As for :func:`open_data`; a folder may also have ``val/`` alone, or the class folders.
    image_size : int, optional
        Height and width of the crops; 224 for folders, 32 for the digits.
    classes : sequence of str, optional
        Names of the class folders in the order of the outputs; sorted by default, which is right
        only where the folder has every class that the network knows.

    Raises
    ------
    DataError
        If there are no pictures, or a folder is none of ``classes``.
    """
    root = Path(source)
    if source == "digits" and not root.exists():
        digits = _digits(image_size or 32, 0)
        return digits.validation, digits.classes
    if not root.is_dir():
        raise DataError(f"{source}: no such folder; give an existing folder or 'digits'")
    if (root / "test_batch.bin").is_file():
        test = read_cifar10([root / "test_batch.bin"])
        return ImageTensor(*test, train=False, mirror=False, seed=0), [str(i) for i in range(10)]
    root = root / "val" if (root / "val").is_dir() else root
    found = sorted(p.name for p in root.iterdir() if p.is_dir())
    names = list(classes) if classes is not None else found
    unknown = sorted(set(found) - set(names))
    if not found or unknown:
        raise DataError(
            f"{root} has the class folders {found[:8]}; expected some of"
            f" {names[:8] or 'the classes'}" + (f", got unknown {unknown[:8]}" if unknown else "")
        )
    return ImageFolder(root, names, image_size or 224, 0, train=False), names


def collate(items: list[Item]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A batch ``(images, labels, indices)``; what cannot be read shows what can, and stays ignored.

    Zeros stay only where nothing in the batch can be read.
    """
    readable = [image for image, label, _ in items if label != IGNORED]
    images = [
        readable[number % len(readable)] if label == IGNORED and readable else image
        for number, (image, label, _) in enumerate(items)
    ]
    labels, indices = (torch.tensor([item[place] for item in items]) for place in (1, 2))
    return torch.stack(images), labels, indices


def useful_workers(workers: int) -> int:
    """At most one for each processor: torch warns of more, and they are of no use."""
    count = getattr(os, "sched_getaffinity", None)
    return min(workers, len(count(0)) if count else os.cpu_count() or 1)


def make_loader(
    dataset: Dataset[Item], sampler: EpochSampler, batch_size: int, workers: int
) -> DataLoader[Any]:
    """Loader of ``(images, labels, indices)``; workers live for the whole run."""
    return DataLoader(
        dataset,
        batch_size=batch_size,
        sampler=sampler,
        collate_fn=collate,
        num_workers=useful_workers(workers),
        persistent_workers=workers > 0,
        pin_memory=torch.cuda.is_available(),
        # A last training batch of one image has no batch statistics.
        drop_last=sampler.train and len(sampler) > batch_size,
    )
