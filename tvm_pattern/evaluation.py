"""Accuracy of a network before pruning, after it and compiled, over the same pictures."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from .library import Library
from .pruning.data import IGNORED, useful_workers
from .pruning.pictures import IMAGENET_MEAN, IMAGENET_STD, normalised

Classify = Callable[[torch.Tensor], torch.Tensor]
"""Pictures float32 ``[N, 3, H, W]`` to outputs ``[N, classes]``."""


class EvaluationError(ValueError):
    """A network, library or data set that cannot be evaluated."""


@dataclass(frozen=True)
class Score:
    """Accuracy of one network.

    Attributes
    ----------
    name : str
    top1 : float
        Percent of the pictures whose class has the largest output.
    top5 : float or None
        Percent of those whose class is among the five largest; None for five classes or fewer.
    """

    name: str
    top1: float
    top5: float | None


@dataclass(frozen=True)
class Agreement:
    """How alike two networks answer.

    Attributes
    ----------
    first, second : str
    same_answer : float
        Percent of the pictures that both give the same class.
    max_abs_difference : float
        Of their outputs, in the outputs' units.
    """

    first: str
    second: str
    same_answer: float
    max_abs_difference: float


@dataclass(frozen=True)
class Evaluation:
    """What :func:`evaluate` found.

    Attributes
    ----------
    pictures : int
        Those that were read.
    unreadable : tuple of str
        Those that could not be.
    scores : tuple of Score
        In the order of the networks.
    agreements : tuple of Agreement
        Of every two networks.
    """

    pictures: int
    unreadable: tuple[str, ...]
    scores: tuple[Score, ...]
    agreements: tuple[Agreement, ...]

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)


def of_module(model: nn.Module, device: str = "cpu") -> Classify:
    """A network of torch, in evaluation mode, on a device."""
    model.eval().to(device)

    def classify(images: torch.Tensor) -> torch.Tensor:
        return _tensor(model(images.to(device)), type(model).__name__).float().cpu()

    return classify


def of_library(library: Library, image_size: int) -> Classify:
    """A compiled library; batches are cut to its own, the last one filled up with zeros.

    Raises
    ------
    EvaluationError
        If it takes no float32 pictures of this size.
    """
    fitting = [
        size
        for size in library.sizes
        if [(i.dtype, tuple(i.shape[1:])) for i in size.inputs]
        == [("float32", (3, image_size, image_size))]
    ]
    if not fitting:
        known = "; ".join(
            ", ".join(f"{i.dtype}{list(i.shape)}" for i in size.inputs) for size in library.sizes
        )
        raise EvaluationError(
            f"the library takes {known}; expected one input float32 [N, 3, {image_size},"
            f" {image_size}]: compile it for that, or evaluate at another --image-size"
        )
    entry = max(fitting, key=lambda size: size.inputs[0].shape[0])
    count = int(entry.inputs[0].shape[0])

    def classify(images: torch.Tensor) -> torch.Tensor:
        results = []
        for chunk in images.split(count):
            full = chunk.new_zeros(count, *chunk.shape[1:])
            full[: len(chunk)] = chunk
            results.append(_tensor(entry(full.numpy()), "the library")[: len(chunk)].float())
        return torch.cat(results)

    return classify


def _tensor(outputs: Any, name: str) -> torch.Tensor:
    if isinstance(outputs, np.ndarray):
        outputs = torch.from_numpy(outputs)
    if not isinstance(outputs, torch.Tensor) or outputs.ndim != 2:
        shape = list(outputs.shape) if isinstance(outputs, torch.Tensor) else type(outputs).__name__
        raise EvaluationError(f"{name} gives {shape}, expected one output [N, classes]")
    return outputs


@torch.no_grad()
def evaluate(
    networks: Mapping[str, Classify],
    data: Dataset[Any],
    classes: Sequence[str],
    *,
    limit: int | None = None,
    batch: int = 32,
    workers: int = 0,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
    show: Callable[[Iterable[Any]], Iterable[Any]] = iter,
) -> Evaluation:
    """Give all networks the same pictures and count their right and their equal answers.

    Parameters
    ----------
    networks : mapping of str to callable
        By name, of :func:`of_module` and :func:`of_library`; at least one.
    data : Dataset
        Of :func:`tvm_pattern.pruning.data.open_validation`.
    classes : sequence of str
        In the order of the outputs.
    limit : int, optional
        Pictures at most, evenly chosen; all by default.
    batch : int
        Pictures at a time.
    workers : int
        Processes that read pictures; 0 for none besides this one.
    mean, std : sequence of 3 floats
        What the networks were trained with, of red, green and blue between 0 and 1.
    show : callable
        Given the batches, gives them on: for a progress bar.

    Raises
    ------
    EvaluationError
        If no picture can be read, or outputs are not finite or not one for each class.
    """
    if not networks:
        raise EvaluationError("got no network; expected one at least")
    if batch < 1 or (limit is not None and limit < 1):
        raise EvaluationError(f"got batch={batch}, limit={limit}; expected at least 1 each")
    counts = _Counts(list(networks), len(classes))
    unreadable = []
    for images, labels, indices in show(_batches(data, limit, batch, workers)):
        known = labels != IGNORED
        unreadable += [data.name(i) for i in indices[~known].tolist()]  # type: ignore[attr-defined]
        if not bool(known.any()):
            continue
        images = normalised(images[known], mean, std)
        counts.add([classify(images) for classify in networks.values()], labels[known])
    if not counts.pictures:
        raise EvaluationError(
            f"none of {len(unreadable)} pictures could be read; the first is"
            f" {unreadable[0] if unreadable else 'missing'}"
        )
    return counts.result(tuple(unreadable))


def _batches(data: Dataset[Any], limit: int | None, batch: int, workers: int) -> DataLoader[Any]:
    size = len(data)  # type: ignore[arg-type]
    number = size if limit is None else min(limit, size)
    chosen = [(0, i * size // number) for i in range(number)]
    return DataLoader(
        data,
        batch_size=batch,
        sampler=chosen,  # type: ignore[arg-type]
        num_workers=useful_workers(workers),
    )


class _Counts:
    """Right and equal answers so far."""

    def __init__(self, names: list[str], classes: int) -> None:
        self.names, self.classes = names, classes
        self.pictures = 0
        self._right = {name: [0, 0] for name in names}
        self._pairs = list(itertools.combinations(range(len(names)), 2))
        self._same = [0] * len(self._pairs)
        self._difference = [0.0] * len(self._pairs)

    def add(self, outputs: list[torch.Tensor], labels: torch.Tensor) -> None:
        """Count one batch."""
        self.pictures += len(labels)
        answers = []
        for name, output in zip(self.names, outputs, strict=True):
            self._check(name, output)
            best = output.topk(min(5, self.classes)).indices
            right = best == labels[:, None]
            self._right[name][0] += int(right[:, 0].sum())
            self._right[name][1] += int(right.sum())
            answers.append(best[:, 0])
        for number, (i, j) in enumerate(self._pairs):
            self._same[number] += int((answers[i] == answers[j]).sum())
            difference = float((outputs[i] - outputs[j]).abs().max())
            self._difference[number] = max(self._difference[number], difference)

    def _check(self, name: str, output: torch.Tensor) -> None:
        if output.shape[1] != self.classes:
            raise EvaluationError(
                f"{name} has {output.shape[1]} classes, the pictures have {self.classes}; name the"
                " classes of the network's outputs, in their order, with --classes FILE"
            )
        if not bool(torch.isfinite(output).all()):
            raise EvaluationError(
                f"{name} gives outputs that are not finite; look for NaN in its weights"
            )

    def result(self, unreadable: tuple[str, ...]) -> Evaluation:
        scores = tuple(
            Score(name, self._percent(first), self._percent(five) if self.classes > 5 else None)
            for name, (first, five) in self._right.items()
        )
        agreements = tuple(
            Agreement(self.names[i], self.names[j], self._percent(same), difference)
            for (i, j), same, difference in zip(
                self._pairs, self._same, self._difference, strict=True
            )
        )
        return Evaluation(self.pictures, unreadable, scores, agreements)

    def _percent(self, count: int) -> float:
        return 100 * count / self.pictures
