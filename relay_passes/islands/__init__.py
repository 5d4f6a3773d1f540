"""The operators that live on planes. A new one is a file beside these, and its name here."""

from __future__ import annotations

from . import (
    borders,
    channel_select,
    channelwise,
    conv2d,
    depthwise,
    elementwise,
    global_pool,
    int8,
    pixel_shuffle,
    pool,
)
from .operator import Islands

ISLANDS = Islands()
for _module in (
    borders,
    channel_select,
    channelwise,
    conv2d,
    depthwise,
    elementwise,
    global_pool,
    int8,
    pixel_shuffle,
    pool,
):
    _module.register(ISLANDS)

__all__ = ["ISLANDS"]
