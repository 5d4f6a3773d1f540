"""8-bit networks: calibration, fine-tuning, files; torch and torchao only, never TVM.

torchao is imported when something is quantised; reading and compiling a quantised network needs
none.
"""

from __future__ import annotations

import importlib
import logging
from typing import Any

from .errors import QuantizationError
from .model import LayerQuantization, QuantizedModel

_NAMES = {"FineTuning": "finetune", "finetuning": "finetune", "quantize": "run"}

__all__ = [
    "FineTuning",
    "LayerQuantization",
    "QuantizationError",
    "QuantizedModel",
    "finetuning",
    "quantize",
]


def __getattr__(name: str) -> Any:
    if name not in _NAMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    logger = logging.getLogger("torchao")
    level = logger.level
    logger.setLevel(logging.ERROR)  # it names every kernel library that this computer cannot load
    try:
        importlib.import_module("torchao")
    except ImportError as error:
        raise ImportError(
            "quantisation is done by torchao, which is not installed; pip install"
            " '.[quantization]' in a clone of tvm-pattern"
        ) from error
    finally:
        logger.setLevel(level)
    return getattr(importlib.import_module(f"{__name__}.{_NAMES[name]}"), name)
