"""What ``torch.compile`` adds to a call: ``python -m benchmarks.torch_compile [NETWORK]``.

A library of ``tvm_pattern.compile`` and the same network by ``torch.compile`` with this backend are
called in turns in one process, on one thread.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import numpy as np
import torch

import tvm_pattern as tp
from tvm_pattern.torch_backend import tvm_pattern as backend

NETWORKS = ("mobilenet_v2", "resnet50", "vgg16")


def measure(name: str, size: int, seconds: float) -> dict[str, list[float]]:
    """Milliseconds of every call, by what was called."""
    torch.manual_seed(0)
    model = getattr(tp.models, name)().eval()
    tp.pruning.oneshot(model, connectivity=3.6, connectivity_1x1=3.6)
    image = torch.randn(1, 3, size, size)
    options: dict[str, Any] = {"num_threads": 1, "verify": False}
    calls = {
        "library": tp.compile(model, image, **options),
        "torch.compile": torch.compile(model, backend=backend, options=options),
    }
    samples: dict[str, list[float]] = {name: [] for name in calls}
    for call in list(calls.values()) * 5:
        call(image)
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        for key, call in calls.items():
            start = time.perf_counter()
            call(image)
            samples[key].append(1e3 * (time.perf_counter() - start))
    print(f"{name}: {len(model.state_dict())} weights and statistics, {size}x{size}")
    return samples


@torch.no_grad()
def main() -> None:
    """Print percentiles of both and their difference."""
    parser = argparse.ArgumentParser(prog="benchmarks.torch_compile")
    parser.add_argument("network", nargs="?", choices=NETWORKS, default="mobilenet_v2")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=10.0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    samples = measure(options.network, options.size, options.seconds)
    for name, values in samples.items():
        p10, median = np.percentile(values, [10, 50])
        print(f"{name}: {p10:.2f} ms (p10), {median:.2f} ms (median) of {len(values)} calls")
    library, compiled = (np.percentile(values, 10) for values in samples.values())
    print(f"torch.compile adds {compiled - library:.2f} ms to a call")


if __name__ == "__main__":
    main()
