"""Share of the FMA peak that dense transposed convolutions of stride 2 reach.

``python -m benchmarks.transposed --keep FOLDER --json FILE`` compiles what the folder does not hold
yet, and measures one thread, beside torch in the same process. ``conv_share`` is that of the
convolution of all phases; ``share`` counts the interleaving of its pixels, too. Both are of the
layer's own multiplications, ``kh * kw`` a pixel of the input: borders and taps that the phases add
are not counted.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tvm_pattern.atomic import write_file

from . import device as device_info
from .peak import PeakMeter


@dataclass(frozen=True)
class Case:
    """A layer: square kernel and image, stride 2."""

    kernel: int
    padding: int
    in_channels: int
    out_channels: int
    size: int

    @property
    def name(self) -> str:
        channels = f"{self.in_channels}-{self.out_channels}"
        return f"{self.kernel}x{self.kernel}-{channels}-{self.size}x{self.size}"

    @property
    def flops(self) -> int:
        """Multiplications and additions, for each pixel of the input."""
        taps = self.kernel**2 * self.in_channels * self.out_channels
        return 2 * taps * self.size**2

    def build(self) -> tuple[Any, Any]:
        """The layer in torch, and an input."""
        import torch
        from torch import nn

        torch.manual_seed(0)
        layer = nn.ConvTranspose2d(
            self.in_channels, self.out_channels, self.kernel, 2, self.padding
        )
        return layer.eval(), torch.randn(1, self.in_channels, self.size, self.size)


#: Of decoders: U-Net, PP-OCR's detector, generators, heads of pose estimation.
CASES = (
    Case(2, 0, 512, 256, 14),
    Case(2, 0, 256, 128, 28),
    Case(2, 0, 128, 64, 56),
    Case(2, 0, 24, 24, 80),
    Case(4, 1, 512, 256, 8),
    Case(4, 1, 256, 128, 16),
    Case(4, 1, 256, 256, 24),
    Case(4, 1, 128, 64, 32),
)


def library_of(case: Case, keep: Path) -> Any:
    """The compiled layer, from the folder if it is there."""
    import tvm_pattern as tp

    path = keep / f"{case.name}.so"
    if not path.is_file():
        tp.compile(*case.build(), num_threads=1).export(path)
    return tp.load(path)


def row_of(case: Case, library: Any, meter: PeakMeter, rounds: int) -> dict[str, Any]:
    """Medians of ``rounds`` profiles and runs of torch, and shares of the peak."""
    import torch

    layer, x = case.build()
    torch.set_num_threads(1)
    times: dict[str, list[float]] = {"conv": [], "interleave": [], "torch": []}
    with torch.inference_mode():
        layer(x)
        for _ in range(rounds):
            meter.sample()
            steps = library.profile(repeat=1).steps
            times["conv"].append(sum(s.ms for s in steps if s.op.startswith("pattern_conv2d")))
            times["interleave"].append(sum(s.ms for s in steps if "pixel_shuffle" in s.op))
            start = time.perf_counter()
            layer(x)
            times["torch"].append((time.perf_counter() - start) * 1e3)
    medians = {name: statistics.median(values) for name, values in times.items()}
    rate = case.flops / 1e6  # GFLOP/s in a millisecond
    ours = medians["conv"] + medians["interleave"]
    return {
        "workload": case.name,
        **{f"{name}_ms": round(value, 4) for name, value in medians.items()},
        "conv_share": round(rate / medians["conv"] / meter.gflops, 3),
        "share": round(rate / ours / meter.gflops, 3),
        "runs": rounds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.transposed", description=__doc__)
    parser.add_argument("--keep", type=Path, required=True, help="Folder for what is compiled.")
    parser.add_argument("--json", type=Path, required=True, help="File of the rows.")
    parser.add_argument("--rounds", type=int, default=15, help="Profiles of each layer.")
    parser.add_argument("--prepare", action="store_true", help="Only compile.")
    options = parser.parse_args()
    options.keep.mkdir(parents=True, exist_ok=True)
    libraries = [(case, library_of(case, options.keep)) for case in CASES]
    if options.prepare:
        return
    meter = PeakMeter()
    rows = [row_of(case, library, meter, options.rounds) for case, library in libraries]
    device = device_info.describe(1, device_info.pin(1), {})
    report = {"device": device, "fma_peak_gflops": round(meter.gflops, 1), "rows": rows}
    write_file(options.json, (json.dumps(report, indent=1) + "\n").encode())
    for row in rows:
        print(json.dumps(row))


if __name__ == "__main__":
    main()
