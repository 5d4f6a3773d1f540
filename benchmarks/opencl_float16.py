"""A whole network in float16 on an OpenCL device, held against torch: outputs and classes.

``python -m benchmarks.opencl_float16 [--network resnet50] [--size 224] [--images 8] --json FILE``

On a device without float16 arithmetic (PoCL) the type is emulated in the kernels' source, see
``tvm_pattern/opencl/half_emulation.py``. The network has random weights, pruned by patterns;
images are noise, each of another mean and contrast, so that their classes differ. No time is
looked at.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import tvm_pattern as tp
from tvm_pattern import models, opencl

NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "resnet50": models.resnet50,
    "vgg16": models.vgg16,
    "mobilenet_v2": models.mobilenet_v2,
}
CALIBRATION = 4


def pictures(count: int, size: int) -> torch.Tensor:
    """Noise ``[count, 3, size, size]``, float32."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn(count, 3, 4, 4, generator=generator)
    smooth = nn.functional.interpolate(coarse, (size, size), mode="bilinear", align_corners=False)
    return smooth + 0.3 * torch.randn(count, 3, size, size, generator=generator)


def pruned(name: str, size: int) -> nn.Module:
    """A pruned network whose batch norms know the statistics of such pictures."""
    torch.manual_seed(0)
    model = NETWORKS[name]()
    tp.pruning.oneshot(model, connectivity=3.6)
    model.train()
    with torch.no_grad():
        model(pictures(CALIBRATION, size))
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = 1.0
        model(pictures(CALIBRATION, size))
    return model.eval()


def compare(model: nn.Module, images: torch.Tensor, target: str) -> dict[str, Any]:
    """Largest differences, relative to the largest output, and how many classes agree."""
    half = copy.deepcopy(model).half()
    example = images[:1].half()
    library = tp.compile(half, example, target=target, host="native", verify=False)
    needs = not opencl.devices()[0].float16
    rows: list[np.ndarray] = []
    with opencl.emulated_float16() if needs else contextlib.nullcontext():
        for image in images:
            rows.append(np.asarray(library(image[None].half().numpy()))[0].astype(np.float64))
    got = np.stack(rows)
    with torch.inference_mode():
        wide = model(images).double().numpy()
        torch_half = half(images.half()).double().numpy()
    scale = float(np.abs(wide).max())
    return {
        "target": target,
        "device": opencl.devices()[0].name,
        "float16": "emulated" if needs else "the device's",
        "images": len(images),
        "classes": len(set(wide.argmax(1).tolist())),
        "top1_equal_to_torch_float16": int((got.argmax(1) == torch_half.argmax(1)).sum()),
        "top1_equal_to_torch_float32": int((got.argmax(1) == wide.argmax(1)).sum()),
        "error_to_torch_float16": float(np.abs(got - torch_half).max() / scale),
        "error_to_torch_float32": float(np.abs(got - wide).max() / scale),
        "torch_float16_to_float32": float(np.abs(torch_half - wide).max() / scale),
    }


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--network", choices=sorted(NETWORKS), default="resnet50")
    parser.add_argument("--size", type=int, default=224, help="pixels along a side (224)")
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--target", default="pattern/adreno")
    options = parser.parse_args(arguments)
    model = pruned(options.network, options.size)
    row = compare(model, pictures(options.images, options.size), options.target)
    result = {"network": options.network, "size": options.size, **row}
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))
    return 0 if row["top1_equal_to_torch_float16"] == options.images else 1


if __name__ == "__main__":
    sys.exit(main())
