"""A model is run to be looked at, and is afterwards as it was."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def buffers_kept(model: Any) -> Iterator[None]:
    """Buffers that a forward pass writes, or replaces, are what they were again.

    Parameters
    ----------
    model : torch.nn.Module
    """
    import torch

    before = [
        (owner, name, buffer, _version(buffer), buffer.detach().clone())
        for owner in model.modules()
        for name, buffer in owner.named_buffers(recurse=False)
    ]
    try:
        yield
    finally:
        with torch.no_grad():
            for owner, name, buffer, version, value in before:
                if getattr(owner, name) is not buffer:
                    setattr(owner, name, buffer)
                if version is None or _version(buffer) != version:
                    buffer.copy_(value)


def _version(tensor: Any) -> int | None:
    """torch counts what is written into a tensor, except into those of ``inference_mode``."""
    return None if tensor.is_inference() else tensor._version
