"""The switch for interleaved lanes, as the command line names it."""

from __future__ import annotations

from enum import Enum
from typing import Annotated

import typer


class Lanes(str, Enum):
    """Which order the pixels of a tensor may have."""

    AUTO = "auto"
    PLAIN = "plain"
    INTERLEAVED = "interleaved"

    @property
    def choice(self) -> bool | None:
        """What ``interleaved_lanes`` is called with."""
        return None if self is Lanes.AUTO else self is Lanes.INTERLEAVED


LanesOption = Annotated[
    Lanes,
    typer.Option(
        help="Order of pixels: plain rows, interleaved lanes where the cost model expects a gain,"
        " or auto: interleaved where that was measured (x86)."
    ),
]
