"""Compiles the kernels of all layers in several processes, into triton's cache on disk."""

from __future__ import annotations

import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import torch

from .networks import NETWORKS, ConvSpec
from .operators import FusedOperators

IMAGES = 16
Job = tuple[str, int, int, int, int, int, Any, str]


def _sizes(convs: tuple[ConvSpec, ...], size: int = 32) -> list[tuple[ConvSpec, int]]:
    """Layers with the height of their input."""
    heights = {"": size}
    found = []
    for conv in convs:
        height = heights[conv.source]
        found.append((conv, height))
        out = (height - 1) // conv.stride + 1
        heights[conv.name] = out // 2 if conv.pool else out
    return found


def jobs(operators: FusedOperators, dtype: torch.dtype) -> list[Job]:
    """Every kernel, shape and tile that the networks may run, once."""
    found: dict[Job, None] = {}
    for build in NETWORKS.values():
        for conv, height in _sizes(build().convs):
            cin = max(conv.in_channels, operators.image_channels)
            for kind, tiles in operators.engine.tiles.items():
                if kind == "input" and not conv.source:
                    continue
                for tile in tiles:
                    name = str(dtype).removeprefix("torch.")
                    job = (kind, cin, conv.out_channels, conv.kernel, conv.stride, height)
                    found[job + (tile, name)] = None
    return list(found)


def compile_job(job: Job, device: str = "cuda") -> str | None:
    """Run one kernel on little data; what went wrong, if anything."""
    from . import kernels

    kind, cin, cout, kernel, stride, height, tile, dtype = job
    out = (height - 1) // stride + 1
    options: dict[str, Any] = {"device": device, "dtype": getattr(torch, dtype)}
    x = torch.zeros(2, IMAGES, height, height, cin, **options)
    dy = torch.zeros(2, IMAGES, out, out, cout, **options)
    try:
        if kind == "forward":
            w = torch.zeros(2, kernel**2, cin, cout, **options)
            kernels.gather(x, w, (out, out), stride, tile, sums=True)
        elif kind == "input":
            w = torch.zeros(2, kernel**2, cout, cin, **options)
            kernels.gather(dy, w, (height, height), stride, tile, transposed=True)
        else:
            kernels.weight_gradient(x, dy, kernel, stride, tile)
    except kernels.TILE_ERRORS as error:  # measured again, and left out, where it matters
        return f"{job}: {type(error).__name__}: {str(error)[:200]}"
    return None


def _compile_all(some: list[Job]) -> list[str]:
    return [note for job in some if (note := compile_job(job)) is not None]


def precompile(
    operators: FusedOperators, dtype: torch.dtype, workers: int | None = None
) -> list[str]:
    """Compile everything; notes of what failed."""
    todo = jobs(operators, dtype)
    count = min(workers or os.cpu_count() or 1, 12, len(todo))
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(count, mp_context=context) as pool:
        notes = list(pool.map(_compile_all, [todo[i::count] for i in range(count)]))
    return [note for part in notes for note in part]
