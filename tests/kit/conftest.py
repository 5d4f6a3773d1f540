"""A small network with every kind of step, and kits of it, made once."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import tvm_pattern as tp
from tvm_pattern.kit import write_kit

EMULATORS = {"cortex-a76": "qemu-aarch64", "armv7": "qemu-arm"}


class Network(nn.Module):
    """Convolutions, a residual, pooling, a view, a dense layer; two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.body = nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8 * 36, 10)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = torch.relu(self.stem(x))
        x = nn.functional.max_pool2d(torch.relu(self.body(x) + x), 2)
        return self.head(torch.flatten(x, 1)), x


@pytest.fixture(scope="session")
def model() -> nn.Module:
    torch.manual_seed(0)
    result = Network().eval()
    tp.pruning.oneshot(result, connectivity=2.0)
    return result


@pytest.fixture(scope="session")
def image() -> torch.Tensor:
    return torch.randn(1, 3, 12, 12, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="session")
def kits(model, image, tmp_path_factory) -> Callable[[str], Path]:
    """``kits("cortex-a76")``: its kit, made at the first use; nobody may change it."""
    made: dict[str, Path] = {}

    def kit(tag: str) -> Path:
        if tag not in made:
            host = "native" if tag in ("mali", "adreno") else None
            folder = tmp_path_factory.mktemp("kits") / tag
            write_kit(
                folder, model, image, target=f"pattern/{tag}", host=host, num_threads=2, name="tiny"
            )
            made[tag] = folder
        return made[tag]

    return kit


@pytest.fixture
def copy_of(kits, tmp_path) -> Callable[[str], Path]:
    """A copy of a kit to damage."""

    def copy(tag: str) -> Path:
        return Path(shutil.copytree(kits(tag), tmp_path / tag))

    return copy


def start(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    """Run a kit's ``run.sh``, by the emulator of its processor."""
    emulator = EMULATORS.get(folder.name, "")
    if emulator and shutil.which(emulator) is None:
        pytest.fail(f"no {emulator}: make arm-tools")
    return subprocess.run(
        ["sh", str(folder / "run.sh"), *arguments],
        env={**os.environ, "KIT_EMULATOR": emulator, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def damage(path: Path, value: float) -> None:
    """Change one number of a file of float32."""
    data = np.fromfile(path, np.float32)
    data[-1] += value
    data.tofile(path)
