"""Pattern-based sparsity for Apache TVM: prune a CNN, compile it, run it faster.

Everything is loaded on first use, so that ``import tvm_pattern.pruning`` needs no TVM and
``import tvm_pattern`` costs nothing.

>>> import tvm_pattern as tp
>>> model = tp.models.resnet50().eval()
>>> tp.pruning.oneshot(model, connectivity=3.6, group=4)
>>> lib = tp.compile(model, example_inputs)
>>> lib(x)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .garbage import collector_paused

__version__ = "0.1.0"

if TYPE_CHECKING:
    from . import autotvm, models, posttrain, pruning, relay, tuning, verification
    from .artifact import Library, load
    from .compiler import compile, targets
    from .tuning import tune

_SUBMODULES = (
    "autotvm",
    "deploy",
    "models",
    "posttrain",
    "pruning",
    "quantization",
    "relay",
    "tuning",
    "verification",
)
_NAMES = {
    "Library": "artifact",
    "compile": "compiler",
    "load": "artifact",
    "targets": "compiler",
    "tune": "tuning",
}

__all__ = [
    "Library",
    "autotvm",
    "compile",
    "load",
    "models",
    "posttrain",
    "pruning",
    "quantization",
    "relay",
    "targets",
    "tune",
    "tuning",
    "verification",
]


def __getattr__(name: str) -> Any:
    with collector_paused():  # Modules stay: to look for what may go is a fifth of their import.
        if name in _SUBMODULES:
            return importlib.import_module(f"{__name__}.{name}")
        if name in _NAMES:
            return getattr(importlib.import_module(f"{__name__}.{_NAMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_SUBMODULES, *_NAMES})
