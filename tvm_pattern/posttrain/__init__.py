"""Pruning with some pictures instead of a training pipeline; torch only, never TVM."""

from __future__ import annotations

import sys
import types
from typing import Any

from .errors import PosttrainError
from .images import calibration_batches
from .reconstruct import BlockFit
from .run import LayerFit, PosttrainReport, posttrain


class _Package(types.ModuleType):
    """``tp.posttrain(model, batches)``: the package and its function have one name."""

    def __call__(self, *args: Any, **kwargs: Any) -> PosttrainReport:
        """See :func:`tvm_pattern.posttrain.run.posttrain`."""
        return posttrain(*args, **kwargs)


sys.modules[__name__].__class__ = _Package

__all__ = [
    "BlockFit",
    "LayerFit",
    "PosttrainError",
    "PosttrainReport",
    "calibration_batches",
    "posttrain",
]
