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
        (owner, name, buffer, version_of(buffer), buffer.detach().clone())
        for owner in model.modules()
        for name, buffer in owner.named_buffers(recurse=False)
    ]
    try:
        yield
    finally:
        for owner, name, buffer, version, value in before:
            if getattr(owner, name) is not buffer:
                setattr(owner, name, buffer)
            if version is None or version_of(buffer) != version:
                # Tensors of this mode are written in it alone; to leave it switches gradients on.
                with torch.inference_mode(buffer.is_inference()), torch.no_grad():
                    buffer.copy_(value)


def version_of(tensor: Any) -> int | None:
    """torch's count of what was written into a tensor; None for those of ``inference_mode``."""
    return None if tensor.is_inference() else tensor._version
