"""A detector from training to boxes on a picture: ``python examples/detector.py``.

A small network of YOLOv8's shape (C2f blocks, SPPF, a neck, heads without anchors) learns to find
circles, squares and triangles in pictures that are drawn here, is pruned by patterns, trained on,
and compiled. The folder ``--output`` gets a picture with the boxes of the dense and of the pruned
network.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import nn

import tvm_pattern as tp
from tvm_pattern.pruning import Gradual, PatternConfig, Pruner, Rule

CLASSES = ("circle", "square", "triangle")
STRIDES = (8, 16)
SCORE, OVERLAP = 0.3, 0.5


class Conv(nn.Sequential):
    """Convolution, batch norm, SiLU."""

    def __init__(self, cin: int, cout: int, kernel: int = 3, stride: int = 1) -> None:
        conv = nn.Conv2d(cin, cout, kernel, stride, kernel // 2, bias=False)
        super().__init__(conv, nn.BatchNorm2d(cout), nn.SiLU())


class C2f(nn.Module):
    """Two halves, one of which goes through two convolutions and a residual."""

    def __init__(self, cin: int, cout: int) -> None:
        super().__init__()
        self.enter, self.leave = Conv(cin, cout, 1), Conv(3 * cout // 2, cout, 1)
        self.body = nn.Sequential(Conv(cout // 2, cout // 2), Conv(cout // 2, cout // 2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first, second = self.enter(x).chunk(2, 1)
        return self.leave(torch.cat([first, second, second + self.body(second)], 1))


class Sppf(nn.Module):
    """Max pools of growing reach, side by side."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.enter, self.leave = Conv(channels, channels // 2, 1), Conv(2 * channels, channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parts = [self.enter(x)]
        for _ in range(3):
            parts.append(F.max_pool2d(parts[-1], 5, 1, 2))
        return self.leave(torch.cat(parts, 1))


class Head(nn.Module):
    """Distances to four edges, and a score for each class."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.boxes = nn.Sequential(Conv(channels, channels), nn.Conv2d(channels, 4, 1))
        self.classes = nn.Sequential(Conv(channels, channels), nn.Conv2d(channels, len(CLASSES), 1))
        nn.init.constant_(self.classes[1].bias, -4.0)  # at first, nothing is anywhere

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([F.softplus(self.boxes(x)), self.classes(x)], 1)


class Detector(nn.Module):
    """``[n, 3, size, size]`` -> one map ``[n, 4 + classes, h, w]`` for each of ``STRIDES``."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        w = width
        self.stem = nn.Sequential(Conv(3, w, stride=2), Conv(w, 2 * w, stride=2), C2f(2 * w, 2 * w))
        self.fine = nn.Sequential(Conv(2 * w, 4 * w, stride=2), C2f(4 * w, 4 * w))
        self.coarse = nn.Sequential(Conv(4 * w, 4 * w, stride=2), C2f(4 * w, 4 * w), Sppf(4 * w))
        self.up = C2f(8 * w, 4 * w)
        self.down, self.mix = Conv(4 * w, 4 * w, stride=2), C2f(8 * w, 4 * w)
        self.heads = nn.ModuleList([Head(4 * w), Head(4 * w)])

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        fine = self.fine(self.stem(x))
        coarse = self.coarse(fine)
        fine = self.up(torch.cat([F.interpolate(coarse, scale_factor=2.0), fine], 1))
        coarse = self.mix(torch.cat([self.down(fine), coarse], 1))
        return self.heads[0](fine), self.heads[1](coarse)


def scene(rng: np.random.Generator, size: int) -> tuple[np.ndarray, list[tuple[int, list[float]]]]:
    """A picture ``[3, size, size]`` from 0 to 1 and ``(class, box)`` of each shape in it."""
    image = Image.new("RGB", (size, size), tuple(int(c) for c in rng.integers(0, 90, 3)))
    draw, found = ImageDraw.Draw(image), []
    for corner in rng.permutation(4)[: rng.integers(1, 4)]:
        side = int(rng.integers(size // 6, size // 2 - 4))
        left, top = (int(v) for v in rng.integers(0, size // 2 - side, 2))
        left, top = left + size // 2 * (int(corner) % 2), top + size // 2 * (int(corner) // 2)
        box = [left, top, left + side, top + side]
        kind = int(rng.integers(len(CLASSES)))
        colour = tuple(int(c) for c in rng.integers(120, 256, 3))
        if kind == 0:
            draw.ellipse(box, fill=colour)
        elif kind == 1:
            draw.rectangle(box, fill=colour)
        else:
            draw.polygon([(left, box[3]), (box[2], box[3]), (left + side // 2, top)], fill=colour)
        found.append((kind, [float(v) for v in box]))
    pixels = np.asarray(image, np.float32) / 255 + rng.normal(0, 0.03, (size, size, 3))
    return pixels.transpose(2, 0, 1).astype(np.float32), found


def batches(
    rng: np.random.Generator, count: int, batch: int, size: int
) -> Iterator[tuple[torch.Tensor, list[list[tuple[int, list[float]]]]]]:
    """New pictures with what is in them."""
    for _ in range(count):
        scenes = [scene(rng, size) for _ in range(batch)]
        yield torch.from_numpy(np.stack([image for image, _ in scenes])), [f for _, f in scenes]


def edges(distances: torch.Tensor, stride: int) -> torch.Tensor:
    """Distances ``[n, 4, h, w]`` in strides as boxes ``[n, 4, h, w]`` in pixels."""
    height, width = distances.shape[2:]
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    centre = torch.stack([x, y, x, y]).to(distances) + 0.5
    sign = torch.tensor([-1.0, -1.0, 1.0, 1.0]).view(4, 1, 1)
    return (centre + sign * distances) * stride


def overlap(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Intersection over union of boxes ``[..., 4]``."""
    low, high = torch.maximum(a[..., :2], b[..., :2]), torch.minimum(a[..., 2:], b[..., 2:])
    shared = (high - low).clamp_min(0).prod(-1)
    areas = [(box[..., 2:] - box[..., :2]).clamp_min(0).prod(-1) for box in (a, b)]
    return shared / (areas[0] + areas[1] - shared + 1e-6)


def loss_of(maps: tuple[torch.Tensor, ...], truth: list, size: int) -> torch.Tensor:
    """Each shape belongs to the cell of its centre, in the map for its size."""
    total = maps[0].new_zeros(())
    shapes = sum(map(len, truth))
    for number, (stride, found) in enumerate(zip(STRIDES, maps, strict=True)):
        boxes = edges(found[:, :4], stride)
        wanted = torch.zeros_like(found[:, 4:])
        for image, shapes_of_image in enumerate(truth):
            for kind, box in shapes_of_image:
                if (box[2] - box[0] > size / 3) != (number == 1):
                    continue
                x, y = int((box[0] + box[2]) / 2 // stride), int((box[1] + box[3]) / 2 // stride)
                wanted[image, kind, y, x] = 1.0
                got = boxes[image, :, y, x]
                total = total + 1 - overlap(got, got.new_tensor(box))
                total = total + 0.02 * F.l1_loss(got, got.new_tensor(box))
        total = total + F.binary_cross_entropy_with_logits(found[:, 4:], wanted, reduction="sum")
    return total / shapes


def decode(maps: tuple[np.ndarray, ...]) -> list[tuple[int, float, list[float]]]:
    """``(class, score, box)`` of one picture; of boxes that overlap, the best."""
    found = []
    for stride, values in zip(STRIDES, maps, strict=True):
        tensor = torch.as_tensor(values)
        boxes = edges(tensor[:, :4], stride)[0].flatten(1).T
        scores, kinds = tensor[0, 4:].sigmoid().flatten(1).max(0)
        for index in (scores > SCORE).nonzero().flatten().tolist():
            found.append((int(kinds[index]), float(scores[index]), boxes[index].tolist()))
    kept: list[tuple[int, float, list[float]]] = []
    for item in sorted(found, key=lambda item: -item[1]):
        box = torch.tensor(item[2])
        if all(float(overlap(box, torch.tensor(other[2]))) < OVERLAP for other in kept):
            kept.append(item)
    return kept


def score(found: list[list], truth: list[list]) -> float:
    """F1: shapes that have a box of their class that overlaps by half."""
    hits = boxes = shapes = 0
    for mine, theirs in zip(found, truth, strict=True):
        boxes, shapes = boxes + len(mine), shapes + len(theirs)
        for kind, box in theirs:
            hits += any(
                k == kind and float(overlap(torch.tensor(b), torch.tensor(box))) > OVERLAP
                for k, _, b in mine
            )
    return 2 * hits / max(1, boxes + shapes)


def train(model: nn.Module, steps: int, args: argparse.Namespace, pruner: Pruner | None) -> None:
    """Adam on new pictures; a pruner steps ten times and freezes half way."""
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    if pruner is not None:
        pruner.attach(optimizer)
    rng = np.random.default_rng(0 if pruner is None else 1)
    interval = max(1, steps // 20)
    model.train()
    for step, (images, truth) in enumerate(batches(rng, steps, args.batch, args.size), 1):
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * min(1.0, step / 20) * (1 - step / steps * 0.95)
        optimizer.zero_grad()
        loss_of(model(images), truth, args.size).backward()
        optimizer.step()
        if pruner is not None and pruner.phase == "training" and step % interval == 0:
            pruner.step()
            if pruner.updates == pruner.method.steps:
                pruner.freeze()
    model.eval()


def draw(images: torch.Tensor, rows: dict[str, list[list]], path: Path) -> None:
    """A row of pictures for each network, with its boxes."""
    size = 2 * images.shape[3]
    sheet = Image.new("RGB", (size * len(images), (size + 14) * len(rows)), "white")
    canvas = ImageDraw.Draw(sheet)
    for line, (title, found) in enumerate(rows.items()):
        top = (size + 14) * line
        canvas.text((4, top), title, fill="black")
        for column, (image, boxes) in enumerate(zip(images, found, strict=True)):
            pixels = (image.clamp(0, 1) * 255).byte().permute(1, 2, 0).numpy()
            sheet.paste(Image.fromarray(pixels).resize((size, size)), (column * size, top + 14))
            for kind, value, box in boxes:
                corners = [2 * v + (column * size, top + 14)[n % 2] for n, v in enumerate(box)]
                corners[2:] = [max(a, b) for a, b in zip(corners[:2], corners[2:], strict=True)]
                canvas.rectangle(corners, outline="red")
                canvas.text(corners[:2], f"{CLASSES[kind]} {value:.2f}", fill="red")
    sheet.save(path)


def main(argv: list[str] | None = None) -> dict:
    """Train, prune, compile, draw; the figures are printed and returned."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=400, help="of training, and again of pruning")
    parser.add_argument("--size", type=int, default=96, help="of a picture; a multiple of 16")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--width", type=int, default=16, help="channels of the first layer")
    parser.add_argument("--tests", type=int, default=64, help="pictures to test with")
    parser.add_argument("--output", type=Path, default=Path("detector"))
    args = parser.parse_args(argv)
    args.output.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    model = Detector(args.width)
    train(model, args.steps, args, None)
    images, truth = next(batches(np.random.default_rng(9), 1, args.tests, args.size))
    example = images[:1]

    def run(network) -> list[list]:
        with torch.no_grad():
            return [decode(network(image[None])) for image in images]

    found = {"dense": run(model)}
    dense = tp.compile(model, example, verify=False)
    # 1x1 convolutions to a half; the last layers of the heads stay as they are.
    config = PatternConfig(
        connectivity=2.0, connectivity_1x1=2.0, rules=(Rule(name="heads.*.1", skip=True),)
    )
    pruner = Pruner(model, config, Gradual(steps=10))
    train(model, args.steps, args, pruner)
    report = pruner.finalize()
    library = tp.compile(model, example)
    library.export(args.output / "detector.so")
    found["pruned"] = run(model)
    found["pruned, compiled"] = run(library)
    draw(images[:4], {k: v[:4] for k, v in found.items()}, args.output / "boxes.png")
    times = {
        name: float(np.median(lib.benchmark(example, repeat=20).results)) * 1e3
        for name, lib in (("dense", dense), ("pruned", library))
    }
    figures = {
        "rate": report.compression_rate,
        "f1": {name: score(boxes, truth) for name, boxes in found.items()},
        "ms": times,
    }
    print(json.dumps(figures, indent=1))
    return figures


if __name__ == "__main__":
    main()
