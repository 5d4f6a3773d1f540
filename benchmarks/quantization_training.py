"""The networks of the int8 study, trained and kept: dense, and pruned 8x with filters sharing.

Digits, as in :mod:`benchmarks.accuracy`, with fewer epochs: what is compared is a network with its
own quantised form, not one method with another.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from benchmarks import digits
from benchmarks.accuracy import Settings, Trial, pretrain, run_dense, run_pattern
from tvm_pattern.pruning import load_pruned, save_pruned
from tvm_pattern.pruning.carried import carried_layers

RATE = 8
GROUPS = (1, 2, 4)
SETTINGS = replace(Settings(), pretrain_epochs=20, epochs=20, gradual_epochs=6, ramp_epochs=5)


def kinds() -> tuple[str, ...]:
    """Names of the networks of a seed."""
    return ("dense", *(f"pruned F={group}" for group in GROUPS))


def trained(
    seed: int, data: digits.Digits, folder: Path, settings: Settings = SETTINGS
) -> Iterator[tuple[str, nn.Sequential]]:
    """The networks of a seed, from ``folder`` where they were trained before."""
    start: nn.Sequential | None = None
    for kind in kinds():
        path = folder / f"{kind.replace(' ', '-')}-{seed}.safetensors"
        model = digits.network()
        if path.exists():
            load_pruned(path, model)
            yield kind, model.eval()
            continue
        if start is None:
            start = pretrain(seed, data, settings)
        generator = torch.Generator().manual_seed(7 + seed)
        torch.manual_seed(7 + seed)
        model = copy.deepcopy(start)
        if kind == "dense":
            run_dense(model, data, Trial("dense"), settings, generator)
            save_pruned(path, model, {})
        else:
            trial = Trial("gradual", RATE, group=int(kind.partition("=")[2]), sharing="similar")
            run_pattern(model, data, trial, settings, generator)
            save_pruned(path, model, carried_layers(model))
        yield kind, model.eval()
