"""Command line options on the network and its target that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

#: How pictures are prepared unless said otherwise, see :mod:`tvm_pattern.pruning.pictures`.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

Weights = Annotated[
    Path | None, typer.Option(help="Pruned weights (.safetensors) for the network.")
]
Target = Annotated[str, typer.Option(help="See the command targets.")]
Host = Annotated[
    str | None,
    typer.Option(help="The CPU beside a GPU target: native, cortex-a76, ... Default: 64-bit ARM."),
]
TuningLog = Annotated[Path | None, typer.Option(help="Records of the command tune.")]
Connectivity = Annotated[
    float | None,
    typer.Option(
        min=1, help="Prune the weights at once, without training: kernels / kept kernels."
    ),
]
Connectivity1x1 = Annotated[
    float | None,
    typer.Option(min=1, help="The same for 1x1 kernels; default 1, all of them stay."),
]
Group = Annotated[
    int | None,
    typer.Option(min=1, help="Filters sharing kernels, with --connectivity; default 1."),
]
Trust = Annotated[
    bool, typer.Option("--trust", help="Let code that a .pt2 file holds run while it is read.")
]
