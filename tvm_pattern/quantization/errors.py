"""What quantisation refuses."""

from __future__ import annotations


class QuantizationError(ValueError):
    """A model or calibration data that cannot be quantised."""
