"""What the process that rows are forked from has imported already."""

from __future__ import annotations

import importlib.util

from .zoo import import_torchvision

if importlib.util.find_spec("torchvision") is not None:
    import_torchvision()
if importlib.util.find_spec("timm") is not None:
    import timm  # noqa: F401
