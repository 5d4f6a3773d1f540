"""Pruning with some pictures instead of a training pipeline; torch only, never TVM."""

from __future__ import annotations

from .errors import PosttrainError
from .images import calibration_batches
from .reconstruct import BlockFit
from .run import LayerFit, PosttrainReport, posttrain

__all__ = [
    "BlockFit",
    "LayerFit",
    "PosttrainError",
    "PosttrainReport",
    "calibration_batches",
    "posttrain",
]
