"""Pattern and connectivity pruning for PyTorch models; torch and numpy only, never TVM."""

from __future__ import annotations

from .assignment import Assignment, LayerAssignment, SparsityError
from .config import ConfigError, LibrarySpec, PatternConfig, Rule
from .oneshot import oneshot
from .report import PruneReport

__all__ = [
    "Assignment",
    "ConfigError",
    "LayerAssignment",
    "LibrarySpec",
    "PatternConfig",
    "PruneReport",
    "Rule",
    "SparsityError",
    "oneshot",
]
