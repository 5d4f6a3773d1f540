"""Pattern and connectivity pruning for PyTorch models; torch and numpy only, never TVM."""

from __future__ import annotations

from .assignment import Assignment, LayerAssignment, SparsityError, apply_assignment
from .batchnorm import recalibrate_bn
from .budget import Candidate, LatencyRow, Plan, plan
from .carried import StalePatternsError, carried_assignment, forget_assignment
from .checkpoint import (
    CheckpointError,
    load_pruned,
    load_training,
    load_weights,
    save_pruned,
    save_training,
)
from .config import ConfigError, LibrarySpec, PatternConfig, Rule
from .ema import MaskedEma
from .libraries import greedy_library, model_library, natural_library
from .methods import Admm, Gradual, OneShot
from .oneshot import oneshot
from .onnx_network import OnnxNetwork
from .pruner import Pruner
from .report import PruneReport
from .weights import bake_weights

__all__ = [
    "Admm",
    "Assignment",
    "Candidate",
    "CheckpointError",
    "ConfigError",
    "Gradual",
    "LatencyRow",
    "LayerAssignment",
    "LibrarySpec",
    "MaskedEma",
    "OneShot",
    "OnnxNetwork",
    "PatternConfig",
    "Plan",
    "PruneReport",
    "Pruner",
    "Rule",
    "SparsityError",
    "StalePatternsError",
    "apply_assignment",
    "bake_weights",
    "carried_assignment",
    "forget_assignment",
    "greedy_library",
    "load_pruned",
    "load_training",
    "load_weights",
    "model_library",
    "natural_library",
    "oneshot",
    "plan",
    "recalibrate_bn",
    "save_pruned",
    "save_training",
]
