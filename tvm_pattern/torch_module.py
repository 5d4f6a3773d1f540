"""A compiled library as a module of torch: tensors in, tensors out."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from .library import Library


class LibraryModule(nn.Module):
    """A library among other modules; made by :meth:`tvm_pattern.Library.as_module`.

    It has no parameters and computes no gradients. Outputs share the memory that the library wrote.

    Attributes
    ----------
    library : Library
    """

    def __init__(self, library: Library) -> None:
        super().__init__()
        self.library = library
        self.eval()

    def forward(self, *inputs: torch.Tensor) -> Any:
        """Run the model.

        Parameters
        ----------
        *inputs : torch.Tensor
            On the CPU, of exactly the compiled shapes and dtypes.

        Returns
        -------
        torch.Tensor or tuple of torch.Tensor

        Raises
        ------
        RuntimeError
            If a gradient is asked for.
        ValueError
            As a call of the library.
        """
        return self.library(*inputs)

    def extra_repr(self) -> str:
        return repr(self.library)


def as_tensor(value: Any) -> torch.Tensor:
    """What a library wrote, as a tensor on the CPU that shares its memory where that is there."""
    return torch.from_numpy(value.numpy())


def refuse_gradients(inputs: Any) -> None:
    """Refuse a call that autograd would follow.

    Raises
    ------
    RuntimeError
        If gradients are recorded and one of the tensors wants one.
    """
    tensors = (value for value in inputs if isinstance(value, torch.Tensor))
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        raise RuntimeError(
            "a compiled library computes no gradients; call it under torch.no_grad() or"
            " torch.inference_mode(), and train the model itself"
        )
