"""Pruning with some pictures instead of a training pipeline; torch only, never TVM."""

from __future__ import annotations

from .images import calibration_batches
from .run import LayerFit, PosttrainError, PosttrainReport, posttrain

__all__ = [
    "LayerFit",
    "PosttrainError",
    "PosttrainReport",
    "calibration_batches",
    "posttrain",
]
