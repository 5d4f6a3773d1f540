"""What pruning costs while training: ``python -m benchmarks.accuracy_overhead --json FILE``.

CPU time of one thread: the joint projection of a 512x512x3x3 layer, and what an attached pruner
adds to training VGG-16 on 32x32 images.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from topi_kernels.pattern import PatternSet, builtin_pattern_set
from tvm_pattern import models
from tvm_pattern.pruning import Admm, Gradual, PatternConfig, Pruner
from tvm_pattern.pruning.projection import kept_kernels, pattern_masks, project_joint

REPEATS = 7


def cpu_milliseconds(action: Callable[[], Any], repeats: int = REPEATS) -> list[float]:
    """CPU time of each repeat after one warm-up, sorted."""
    action()
    times = []
    for _ in range(repeats):
        start = time.process_time()
        action()
        times.append(1e3 * (time.process_time() - start))
    return sorted(times)


def measure_projection(patterns: PatternSet) -> dict[str, Any]:
    """Joint projection of 512x512x3x3 at connectivity 3.6."""
    weight = torch.randn(512, 512, 3, 3, generator=torch.Generator().manual_seed(0))
    kept = kept_kernels(512, 512, 3.6)
    times = cpu_milliseconds(lambda: project_joint(weight, pattern_masks(patterns), kept))
    return {"what": f"projection {patterns.name}", "median_ms": times[REPEATS // 2], "all": times}


def measure_training(method: Any, batch_size: int, steps: int) -> dict[str, Any]:
    """VGG-16 on 32x32 images: a training step, what the hooks add to it, and one update.

    ``overhead`` is for an epoch of ``steps`` optimizer steps and one update.
    """
    torch.manual_seed(0)
    model = models.vgg16_bn(num_classes=10)
    images = torch.randn(batch_size, 3, 32, 32)
    labels = torch.randint(0, 10, (batch_size,))
    optimizer = torch.optim.SGD(model.parameters(), 1e-4, momentum=0.9)

    def train() -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()

    step = cpu_milliseconds(train, 3)[1]
    plain = cpu_milliseconds(optimizer.step)[REPEATS // 2]
    pruner = Pruner(model, PatternConfig(), method).attach(optimizer)
    hooks = cpu_milliseconds(optimizer.step)[REPEATS // 2] - plain
    update = cpu_milliseconds(pruner.step, 3)[1]
    separate = " separate" if getattr(method, "separate", False) else ""
    return {
        "what": f"training with {method.name}{separate}",
        "batch_size": batch_size,
        "steps_per_epoch": steps,
        "step_ms": step,
        "hooks_ms": hooks,
        "update_ms": update,
        "overhead": (hooks * steps + update) / (step * steps),
    }


def main(arguments: list[str] | None = None) -> int:
    """Measure and write FILE."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=391, help="per epoch; 391 x 128 is CIFAR-10")
    parser.add_argument("--batch-size", type=int, default=128)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    rows = [measure_projection(builtin_pattern_set(n)) for n in ("fixed8", "natural56")]
    for method in (Gradual(steps=20), Admm(steps=20), Admm(steps=20, separate=True)):
        rows.append(measure_training(method, options.batch_size, options.steps))
    for row in rows:
        print({k: round(v, 4) if isinstance(v, float) else v for k, v in row.items() if k != "all"})
    options.json.write_text(json.dumps({"threads": 1, "rows": rows}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
