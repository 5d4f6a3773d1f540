"""Text recognition from an ONNX file: ``python examples/text_recognition.py``.

Lines of text are rendered, pictures of them read by an ONNX network that is compiled, and the
strings compared with those of ONNX Runtime. Without ``--onnx`` a small network (convolutions and
CTC) learns to read digits here, is pruned by patterns and trained on, and written as ONNX first.
With ``--onnx rec.onnx`` it is a recogniser of PP-OCR's form: input ``[1, 3, 48, width]``, output
``[1, steps, characters]``, the characters in the file's metadata.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import nn

import tvm_pattern as tp
from tvm_pattern.pruning import Gradual, PatternConfig, Pruner

DIGITS = "0123456789"


class Reader(nn.Module):
    """``[n, 3, 16 k, w]`` -> ``[n, w / 4, 1 + digits]``, the blank of CTC first."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()

        def block(cin: int, cout: int, stride: tuple[int, int]) -> list[nn.Module]:
            conv = nn.Conv2d(cin, cout, 3, stride, 1, bias=False)
            return [conv, nn.BatchNorm2d(cout), nn.ReLU()]

        self.body = nn.Sequential(
            *block(3, width, (2, 2)), *block(width, 2 * width, (2, 2)),
            *block(2 * width, 2 * width, (2, 1)), *block(2 * width, 2 * width, (2, 1)),
        )  # fmt: skip
        self.last = nn.Conv2d(2 * width, 1 + len(DIGITS), 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.last(self.body(x).mean(2, keepdim=True))
        return x.squeeze(2).transpose(1, 2).softmax(2)


def render(text: str, height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """A line of text, ``[3, height, width]`` from -1 to 1."""
    image = Image.new("RGB", (width, height), tuple(int(c) for c in rng.integers(180, 256, 3)))
    font = ImageFont.load_default(int(height * rng.uniform(0.6, 0.75)))
    place = (int(rng.integers(2, 8)), int(rng.integers(0, height // 6)))
    ImageDraw.Draw(image).text(place, text, fill=tuple(map(int, rng.integers(0, 80, 3))), font=font)
    pixels = np.asarray(image, np.float32) + rng.normal(0, 5, (height, width, 3))
    return (pixels.transpose(2, 0, 1) / 127.5 - 1).astype(np.float32)


def decode(steps: np.ndarray, characters: str | list[str]) -> str:
    """Greedy CTC: of each step the best, repeats and blanks (0) left out."""
    best = np.asarray(steps)[0].argmax(1)
    kept = [n for step, n in enumerate(best) if n and (step == 0 or n != best[step - 1])]
    return "".join(characters[n - 1] for n in kept)


def lines(rng: np.random.Generator, count: int, length: int) -> list[str]:
    """Strings of digits."""
    return ["".join(rng.choice(list(DIGITS), length)) for _ in range(count)]


def train(model: nn.Module, args: argparse.Namespace, pruner: Pruner | None) -> None:
    """Adam on new lines; a pruner steps ten times and freezes half way."""
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    if pruner is not None:
        pruner.attach(optimizer)
    rng = np.random.default_rng(0 if pruner is None else 1)
    interval = max(1, args.steps // 20)
    model.train()
    for step in range(1, args.steps + 1):
        texts = lines(rng, args.batch, args.length)
        images = np.stack([render(text, args.height, args.width, rng) for text in texts])
        targets = torch.tensor([[1 + DIGITS.index(c) for c in text] for text in texts])
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * (1 - step / args.steps * 0.95)
        optimizer.zero_grad()
        scores = (model(torch.from_numpy(images)) + 1e-8).log().transpose(0, 1)
        lengths = [torch.full((args.batch,), n) for n in (len(scores), targets.shape[1])]
        F.ctc_loss(scores, targets, *lengths).backward()
        optimizer.step()
        if pruner is not None and pruner.phase == "training" and step % interval == 0:
            pruner.step()
            if pruner.updates == pruner.method.steps:
                pruner.freeze()
    model.eval()


def trained(args: argparse.Namespace) -> tuple[Path, str]:
    """An ONNX file of a pruned network that reads digits, and its characters."""
    torch.manual_seed(0)
    model = Reader(args.channels)
    train(model, args, None)
    pruner = Pruner(model, PatternConfig(connectivity=2.0), Gradual(steps=10))
    train(model, args, pruner)
    print(f"pruned {pruner.finalize().compression_rate:.2f}x")
    path = args.output / "reader.onnx"
    example = torch.zeros(1, 3, args.height, args.width)
    torch.onnx.export(model, (example,), str(path), dynamo=True, verbose=False)
    return path, DIGITS


def characters_of(path: Path) -> list[str]:
    """The characters that a recogniser's file names, PP-OCR's space behind them."""
    metadata = {item.key: item.value for item in onnx.load(str(path)).metadata_props}
    if "character" not in metadata:
        raise SystemExit(f"{path} has no metadata 'character'; expected a recogniser of PP-OCR")
    return [*metadata["character"].splitlines(), " "]


def main(argv: list[str] | None = None) -> dict:
    """Read lines by both engines; the figures are printed and returned."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--onnx", type=Path, help="a recogniser of PP-OCR's form")
    parser.add_argument("--steps", type=int, default=600, help="of training, and again of pruning")
    parser.add_argument("--height", type=int, help="a multiple of 16; default 32, 48 with --onnx")
    parser.add_argument("--width", type=int, help="default 80, 160 with --onnx")
    parser.add_argument("--length", type=int, default=4, help="digits of a line")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--channels", type=int, default=16, help="of the first layer")
    parser.add_argument("--tests", type=int, default=32, help="lines to test with")
    parser.add_argument("--output", type=Path, default=Path("text_recognition"))
    args = parser.parse_args(argv)
    args.height = args.height or (32 if args.onnx is None else 48)
    args.width = args.width or (80 if args.onnx is None else 160)
    args.output.mkdir(parents=True, exist_ok=True)
    if args.onnx is None:
        path, characters = trained(args)
    else:
        path, characters = args.onnx, characters_of(args.onnx)
    library = tp.compile(str(path), np.zeros((1, 3, args.height, args.width), np.float32))
    library.export(args.output / "reader.so")
    session = onnxruntime.InferenceSession(str(path))
    rng = np.random.default_rng(9)
    texts = lines(rng, args.tests, args.length)
    rows = []
    for text in texts:
        image = render(text, args.height, args.width, rng)[None]
        theirs = decode(session.run(None, {session.get_inputs()[0].name: image})[0], characters)
        rows.append((text, decode(library(image), characters), theirs))
    figures = {
        "read": sum(ours == text for text, ours, _ in rows) / len(rows),
        "as_onnxruntime": sum(ours == theirs for _, ours, theirs in rows) / len(rows),
        "lines": rows[:4],
    }
    print(json.dumps(figures, indent=1))
    return figures


if __name__ == "__main__":
    main()
