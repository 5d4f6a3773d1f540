"""What goes wrong while a kit is made or its results are read."""

from __future__ import annotations


class KitError(ValueError):
    """A network that no kit can hold, a tool that is missing, or results that are none."""
