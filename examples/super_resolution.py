"""Super-resolution before and after pruning: ``python examples/super_resolution.py``.

A small network of ESPCN's shape learns to double the size of pictures that are drawn here, is
pruned by patterns, trained on, and compiled. The folder ``--output`` gets a picture: the small one
enlarged by bicubic interpolation, by the dense network, by the pruned one, and the original.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import nn

import tvm_pattern as tp
from tvm_pattern.pruning import Gradual, PatternConfig, Pruner

FACTOR = 2


class SuperResolution(nn.Module):
    """``[n, 1, h, w]`` -> ``[n, 1, 2 h, 2 w]``: what bicubic interpolation lacks is learned."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, width, 5, padding=2), nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1), nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1), nn.ReLU(),
            nn.Conv2d(width, FACTOR**2, 3, padding=1),
        )  # fmt: skip

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        # Nearest neighbours are what compiles everywhere; the network learns the rest.
        base = x.repeat(1, FACTOR**2, 1, 1)
        return F.pixel_shuffle(base + self.body(x), FACTOR)


def picture(rng: np.random.Generator, size: int) -> torch.Tensor:
    """Text, lines and discs, ``[1, size, size]`` from 0 to 1."""
    image = Image.new("L", (4 * size, 4 * size), int(rng.integers(0, 256)))
    draw = ImageDraw.Draw(image)
    for _ in range(6):
        a, b, c, d = (int(v) for v in rng.integers(0, 4 * size, 4))
        shade = int(rng.integers(0, 256))
        kind = rng.integers(3)
        if kind == 0:
            draw.line([a, b, c, d], fill=shade, width=int(rng.integers(4, 16)))
        elif kind == 1:
            draw.ellipse([min(a, c), min(b, d), max(a, c) + 1, max(b, d) + 1], fill=shade)
        else:
            text = "".join(rng.choice(list("abcdefgh ABCDEFGH 0123456789"), 6))
            draw.text((a - size, b), text, fill=shade, font=ImageFont.load_default(size))
    image = image.resize((size, size), Image.Resampling.BOX)
    return torch.from_numpy(np.asarray(image, np.float32)[None] / 255)


def pair(rng: np.random.Generator, count: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Small pictures ``[count, 1, size / 2, size / 2]`` and the originals."""
    large = torch.stack([picture(rng, size) for _ in range(count)])
    return F.avg_pool2d(large, FACTOR), large


def psnr(got: torch.Tensor, want: torch.Tensor) -> float:
    """Peak signal to noise ratio in dB, of pixels from 0 to 1."""
    return float(-10 * torch.log10(F.mse_loss(got.clamp(0, 1), want)))


def train(model: nn.Module, args: argparse.Namespace, pruner: Pruner | None) -> None:
    """Adam on new pictures; a pruner steps ten times and freezes half way."""
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    if pruner is not None:
        pruner.attach(optimizer)
    rng = np.random.default_rng(0 if pruner is None else 1)
    interval = max(1, args.steps // 20)
    for step in range(1, args.steps + 1):
        small, large = pair(rng, args.batch, args.size)
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * (1 - step / args.steps * 0.95)
        optimizer.zero_grad()
        F.l1_loss(model(small), large).backward()
        optimizer.step()
        if pruner is not None and pruner.phase == "training" and step % interval == 0:
            pruner.step()
            if pruner.updates == pruner.method.steps:
                pruner.freeze()


def sheet(columns: dict[str, torch.Tensor], path: Path) -> None:
    """Pictures side by side, with their names above."""
    size = 4 * next(iter(columns.values())).shape[3]
    whole = Image.new("L", ((size + 8) * len(columns), size + 16), 255)
    for number, (name, value) in enumerate(columns.items()):
        pixels = (value[0, 0].clamp(0, 1) * 255).byte().numpy()
        enlarged = Image.fromarray(pixels).resize((size, size), Image.Resampling.NEAREST)
        whole.paste(enlarged, ((size + 8) * number, 16))
        ImageDraw.Draw(whole).text(((size + 8) * number, 2), name, fill=0)
    whole.save(path)


def main(argv: list[str] | None = None) -> dict:
    """Train, prune, compile, draw; the figures are printed and returned."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=400, help="of training, and again of pruning")
    parser.add_argument("--size", type=int, default=64, help="of an original; an even number")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--tests", type=int, default=16, help="pictures to test with")
    parser.add_argument("--output", type=Path, default=Path("super_resolution"))
    args = parser.parse_args(argv)
    args.output.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    model = SuperResolution(args.width).eval()
    train(model, args, None)
    small, large = pair(np.random.default_rng(9), args.tests, args.size)
    bicubic = F.interpolate(small, scale_factor=FACTOR, mode="bicubic")
    with torch.no_grad():
        dense = model(small)
    pruner = Pruner(model, PatternConfig(connectivity=2.0), Gradual(steps=10))
    train(model, args, pruner)
    report = pruner.finalize()
    library = tp.compile(model, small[:1])
    library.export(args.output / "super_resolution.so")
    pruned = torch.cat([library(image[None]) for image in small])
    columns = {"bicubic": bicubic, "dense": dense, "pruned, compiled": pruned, "original": large}
    sheet(columns, args.output / "pictures.png")
    figures = {
        "rate": report.compression_rate,
        "psnr": {name: psnr(value, large) for name, value in columns.items() if name != "original"},
    }
    print(json.dumps(figures, indent=1))
    return figures


if __name__ == "__main__":
    main()
