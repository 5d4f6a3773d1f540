"""Kits: a network as one folder that a phone or board runs and times by itself.

No RPC, no Python and no TVM there: a plan of the network's calls (``plan.py``), machine code or
OpenCL C, and a runner in C (``native/``) that is also how an app uses a compiled network.

Results are read without TVM: what makes kits is loaded at its first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .errors import KitError
from .results import KitResult, add_results, read_result

if TYPE_CHECKING:
    from .write import Kit, write_kit

__all__ = ["Kit", "KitError", "KitResult", "add_results", "read_result", "write_kit"]


def __getattr__(name: str) -> Any:
    if name in ("Kit", "write_kit"):
        return getattr(importlib.import_module(f"{__name__}.write"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
