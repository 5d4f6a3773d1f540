"""Pruning a shipped detector by pictures alone: ``python -m benchmarks.posttrain_detector M.onnx``.

The detector is one of YOLOX's shape (one output ``[1, boxes, 5 + classes]`` for strides 8, 16 and
32), for instance ``common_det.onnx`` of the package ddddocr, which finds characters. Pictures with
characters are rendered here, some to prune by and others to test with. What counts is agreement
with the network as shipped: its boxes are the truth, so that no labels are needed.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from PIL import Image, ImageDraw, ImageFont
from rich.console import Console
from rich.table import Table

import tvm_pattern as tp
from benchmarks.device import describe, package_version, pin
from tvm_pattern.posttrain import posttrain
from tvm_pattern.pruning import OnnxNetwork, oneshot

STRIDES = (8, 16, 32)
SCORE, OVERLAP, MATCH = 0.3, 0.45, 0.5
RATES = {"2.25x": 1.0, "4x": 16 / 9, "8.1x": 3.6}
GLYPHS = "ABCDEFGHKLMNPRSTUVWXYZ23456789"


def picture(rng: np.random.Generator, size: int) -> torch.Tensor:
    """Characters on a coloured ground, float32 ``[3, size, size]`` from 0 to 255, blue first."""
    ground = rng.integers(90, 256, 3)
    image = Image.new("RGB", (size, size), tuple(int(c) for c in ground))
    draw = ImageDraw.Draw(image)
    for _ in range(int(rng.integers(2, 9))):
        ends = [int(v) for v in rng.integers(0, size, 4)]
        draw.line(ends, fill=tuple(int(c) for c in rng.integers(0, 200, 3)), width=2)
    for _ in range(int(rng.integers(3, 9))):
        font = ImageFont.load_default(int(rng.integers(size // 14, size // 5)))
        glyph = Image.new("L", (size // 3, size // 3))
        ImageDraw.Draw(glyph).text(
            (size // 12, size // 24), GLYPHS[int(rng.integers(len(GLYPHS)))], fill=255, font=font
        )
        glyph = glyph.rotate(float(rng.uniform(-30, 30)))
        colour = tuple(int(c) for c in rng.integers(0, 110, 3))
        left, top = (int(v) for v in rng.integers(0, size - size // 3, 2))
        image.paste(Image.new("RGB", glyph.size, colour), (left, top), glyph)
    noisy = np.asarray(image, np.float32) + rng.normal(0, 6, (size, size, 3))
    return torch.from_numpy(np.clip(noisy, 0, 255)[:, :, ::-1].astype(np.float32)).permute(2, 0, 1)


def overlaps(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Intersection over union ``[n, m]`` of boxes ``[n, 4]`` and ``[m, 4]``."""
    low = torch.maximum(first[:, None, :2], second[None, :, :2])
    high = torch.minimum(first[:, None, 2:], second[None, :, 2:])
    shared = (high - low).clamp_min(0).prod(2)
    areas = [(b[:, 2:] - b[:, :2]).prod(1) for b in (first, second)]
    return shared / (areas[0][:, None] + areas[1][None] - shared)


def distinct(boxes: torch.Tensor, score: torch.Tensor) -> torch.Tensor:
    """Boxes without those that overlap a better one (non-maximum suppression)."""
    boxes = boxes[score.argsort(descending=True)]
    kept: list[int] = []
    overlap = overlaps(boxes, boxes)
    for index in range(len(boxes)):
        if not kept or float(overlap[index, kept].max()) <= OVERLAP:
            kept.append(index)
    return boxes[kept]


def boxes_of(output: torch.Tensor, size: int) -> torch.Tensor:
    """Boxes ``[n, 4]`` (left, top, right, bottom) of one output ``[boxes, 5 + classes]``."""
    grids, strides = [], []
    for stride in STRIDES:
        count = size // stride
        rows, columns = torch.meshgrid(torch.arange(count), torch.arange(count), indexing="ij")
        grids.append(torch.stack([columns, rows], 2).reshape(-1, 2))
        strides.append(torch.full((count * count, 1), stride))
    grid, stride = torch.cat(grids), torch.cat(strides)
    centre, extent = (output[:, :2] + grid) * stride, output[:, 2:4].exp() * stride
    boxes = torch.cat([centre - extent / 2, centre + extent / 2], 1)
    score = (output[:, 4:5] * output[:, 5:]).amax(1)
    chosen = score > SCORE
    return distinct(boxes[chosen], score[chosen])


def agreement(found: list[torch.Tensor], wanted: list[torch.Tensor]) -> float:
    """F1 of boxes, matched one to one at an overlap of at least ``MATCH``, in percent."""
    matched = 0
    for mine, theirs in zip(found, wanted, strict=True):
        overlap = overlaps(mine, theirs)
        while overlap.numel() and float(overlap.max()) >= MATCH:
            row, column = divmod(int(overlap.argmax()), overlap.shape[1])
            overlap[row] = overlap[:, column] = 0
            matched += 1
    total = sum(map(len, found)) + sum(map(len, wanted))
    return 100 * 2 * matched / total if total else 100.0


def detect(network: Callable[[torch.Tensor], Any], pictures: torch.Tensor) -> list[torch.Tensor]:
    """Boxes of each picture."""
    size = pictures.shape[-1]
    with torch.no_grad():
        return [boxes_of(torch.as_tensor(network(p[None]))[0], size) for p in pictures]


def prune(path: Path, how: str, group: int, rate: float, pictures: torch.Tensor) -> OnnxNetwork:
    """The network pruned by its weights' magnitudes, or by pictures."""
    network = OnnxNetwork(path)
    if how == "projection":
        oneshot(network, rate, group)
    else:
        posttrain(network, list(pictures.split(1)), rate, group)
    return network


def medians(calls: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Milliseconds (p10, median, p90) of each call, taken in turns after two untimed ones."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(rounds + 2):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            if turn >= 2:
                times[name].append((time.perf_counter() - start) * 1e3)
    return {
        n: [round(float(v), 3) for v in np.percentile(t, (10, 50, 90))] for n, t in times.items()
    }


def runtime_session(path: Path) -> Callable[[np.ndarray], Any]:
    """ONNX Runtime on one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda array: session.run(None, {name: array})


def study(
    path: Path, prune_by: int, test_on: int, rounds: int, cores: list[int], console: Console
) -> dict[str, Any]:
    """All rows, and the latencies of the networks that were pruned by pictures."""
    graph = onnx.load(path).graph
    size = graph.input[0].type.tensor_type.shape.dim[2].dim_value or 416
    rng = np.random.default_rng(0)
    pictures = torch.stack([picture(rng, size) for _ in range(prune_by)])
    test = torch.stack([picture(rng, size) for _ in range(test_on)])
    wanted = detect(OnnxNetwork(path), test)
    example = test[:1].numpy()
    libraries = {"dense": tp.compile(OnnxNetwork(path), example, num_threads=1)}
    rows = []
    for rate, (how, group) in (
        (rate, kind)
        for rate in RATES
        for kind in (("projection", 1), ("posttrain", 1), ("posttrain", 4))
    ):
        start = time.perf_counter()
        network = prune(path, how, group, RATES[rate], pictures)
        row = {"rate": rate, "method": how, "group": group, "seconds": time.perf_counter() - start}
        row["agreement"] = agreement(detect(network, test), wanted)
        rows.append(row)
        console.print(f"{rate} {how} F={group}: {row['agreement']:.1f} % of the boxes agree")
        if how == "posttrain":
            libraries[f"{rate} F={group}"] = tp.compile(network, example, num_threads=1)
    calls: dict[str, Callable[[], Any]] = {
        name: partial(library, example) for name, library in libraries.items()
    }
    calls["ONNX Runtime, dense"] = partial(runtime_session(path), example)
    return {
        "device": describe(1, cores, {"onnxruntime": package_version("onnxruntime") or ""}),
        "model": path.name,
        "input": list(example.shape),
        "boxes": sum(map(len, wanted)),
        "pictures": {"pruned_by": prune_by, "tested_on": test_on},
        "rows": rows,
        "milliseconds": medians(calls, rounds),
    }


def to_table(result: dict[str, Any]) -> Table:
    """What was found, for the terminal."""
    dense = result["milliseconds"]["dense"][1]
    table = Table(title=f"{result['model']}, {result['boxes']} boxes")
    for head in ("3x3 layers", "method", "F", "boxes that agree (F1, %)", "ms", "x our dense"):
        table.add_column(head)
    for row in result["rows"]:
        times = result["milliseconds"].get(f"{row['rate']} F={row['group']}")
        timed = row["method"] == "posttrain" and times
        cells = (f"{times[1]:.1f}", f"{dense / times[1]:.2f}") if timed else ("", "")
        score = f"{row['agreement']:.1f}"
        table.add_row(row["rate"], row["method"], str(row["group"]), score, *cells)
    other = result["milliseconds"]["ONNX Runtime, dense"][1]
    table.caption = f"dense: {dense:.1f} ms here, {other:.1f} ms in ONNX Runtime; one thread"
    return table


def main(values: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, help="ONNX file of a detector of YOLOX's shape")
    parser.add_argument("--json", type=Path, required=True, help="where to write the results")
    parser.add_argument("--pictures", type=int, default=96, help="to prune by (96)")
    parser.add_argument("--test", type=int, default=64, help="to test with (64)")
    parser.add_argument("--rounds", type=int, default=30, help="timed calls of each (30)")
    options = parser.parse_args(values)
    cores = pin(1)
    console = Console(stderr=True)
    result = study(options.model, options.pictures, options.test, options.rounds, cores, console)
    options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    Console().print(to_table(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
