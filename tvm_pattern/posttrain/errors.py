"""What pruning by pictures refuses."""

from __future__ import annotations


class PosttrainError(ValueError):
    """Calibration data that cannot be used, or an interrupted run that does not fit."""
