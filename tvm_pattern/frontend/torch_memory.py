"""Running a torch model that may not fit: an operator is refused before it allocates."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ..memory import Footprint, check_fits
from .shared import describe

_LARGE = (
    torch.ops.aten.convolution.default,
    torch.ops.aten.addmm.default,
    torch.ops.aten.mm.default,
    torch.ops.aten.bmm.default,
    torch.ops.aten.clone.default,
)
# Bytes from which on a tensor is worth the question, which reads a dozen files of the system.
_ASKED = 1 << 24


class WithinMemory(TorchDispatchMode):
    """While it is entered, convolutions, products and copies that fit no memory are refused.

    Raises
    ------
    NotEnoughMemoryError
        From within the model, before the allocation.
    """

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func in _LARGE:
            result = func(*map(_without_data, args), **(kwargs or {}))
            size = result.numel() * result.element_size()
            if size >= _ASKED:
                check_fits(Footprint(0, size), f"the network's tensor {describe(result)}")
        return func(*args, **(kwargs or {}))


def _without_data(value: Any) -> Any:
    return value.to("meta") if isinstance(value, torch.Tensor) else value
