"""Tuning: search the configurations of a network's convolutions by measuring them.

``tune`` writes records, one JSON line per measurement; ``tvm_pattern.compile(..., tuning_log=...)``
reads them. See ``docs/tuning.md``.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .lookup import config_lookup
    from .records import LogError, Record, TuningLog
    from .session import TuneOptions, TuneResult, tune

# Measuring processes import this package too: names are loaded when they are used.
_NAMES = {
    "LogError": "records",
    "Record": "records",
    "TuneOptions": "session",
    "TuneResult": "session",
    "TuningLog": "records",
    "config_lookup": "lookup",
    "tune": "session",
}

__all__ = [
    "LogError",
    "Record",
    "TuneOptions",
    "TuneResult",
    "TuningLog",
    "config_lookup",
    "tune",
]


def __getattr__(name: str) -> Any:
    if name in _NAMES:
        return getattr(importlib.import_module(f"{__name__}.{_NAMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_NAMES})
