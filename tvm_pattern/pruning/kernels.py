"""How the weight of a layer is a grid of kernels ``[filters, in_channels, kh, kw]``.

A 1-D convolution has kernels of height 1, a linear layer kernels of 1x1. A transposed convolution
is one of stride 1 whose filters are its phases: an output pixel only sees every ``stride``-th tap,
so the taps of one remainder, last one first, are a kernel. That is what the compiler makes of them
too, and in the same order.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .modules import Layer, is_transposed


@dataclass(frozen=True)
class KernelView:
    """How a weight is read as kernels.

    Parameters
    ----------
    stride : tuple of int, optional
        Rows and columns, of a transposed convolution; None for other layers.
    groups : int
        Convolution groups of a transposed convolution; its weight does not show them.
    """

    stride: tuple[int, int] | None = None
    groups: int = 1

    @classmethod
    def of(cls, layer: Layer) -> KernelView:
        """The view of a layer's weight."""
        if not is_transposed(layer):
            return cls()
        rows, columns = (1, *layer.stride)[-2:]
        return cls((int(rows), int(columns)), int(layer.groups))

    def shape(self, weight: tuple[int, ...]) -> tuple[int, int, int, int]:
        """``(filters, in_channels, kh, kw)`` of the kernels of a weight of that shape.

        Raises
        ------
        ValueError
            If the weight cannot be read like that.
        """
        first, second, *size = weight
        kh, kw = (1, 1, *size)[-2:]
        if self.stride is None:
            return first, second, kh, kw
        (sh, sw), groups = self.stride, self.groups
        if first % groups or kh % sh or kw % sw:
            raise ValueError(
                f"a weight of shape {weight} has no kernels of one size for stride {self.stride}"
                f" and {groups} groups"
            )
        return groups * second * sh * sw, first // groups, kh // sh, kw // sw

    def kernels(self, weight: torch.Tensor) -> torch.Tensor:
        """The kernels of a weight: a view, or a copy where they do not stand together.

        Parameters
        ----------
        weight : Tensor
            ``[O, I]``, ``[O, I, k]`` or ``[O, I, kh, kw]``; ``[I, O / groups, ...]`` of a
            transposed convolution.
        """
        shape = self.shape(tuple(weight.shape))
        if self.stride is None:
            return weight.reshape(shape)
        split = self._split(weight, self.stride)
        return split.permute(0, 2, 4, 6, 1, 3, 5).flip(5, 6).reshape(shape)

    def weight(self, kernels: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        """Inverse of :meth:`kernels`: what is said of kernels, in the shape of ``like``.

        Raises
        ------
        ValueError
            If the kernels are those of another weight.
        """
        expected = self.shape(tuple(like.shape))
        if tuple(kernels.shape) != expected:
            raise ValueError(
                f"weight is {tuple(like.shape)}, with kernels {expected}, the patterns are for"
                f" {tuple(kernels.shape)}"
            )
        if self.stride is None:
            return kernels.reshape(like.shape)
        split = self._split(like, self.stride)
        groups, inputs, outputs, th, sh, tw, sw = split.shape
        apart = kernels.reshape(groups, outputs, sh, sw, inputs, th, tw).flip(5, 6)
        return apart.permute(0, 4, 1, 5, 2, 6, 3).reshape(like.shape)

    def _split(self, weight: torch.Tensor, stride: tuple[int, int]) -> torch.Tensor:
        """``[groups, inputs, outputs, taps, phases, taps, phases]`` of a transposed weight."""
        first, second, *size = weight.shape
        kh, kw = (1, 1, *size)[-2:]
        (sh, sw), groups = stride, self.groups
        return weight.reshape(groups, first // groups, second, kh // sh, sh, kw // sw, sw)


PLAIN = KernelView()
"""Of layers whose weight is the kernels."""


def kernels_of(layer: Layer) -> torch.Tensor:
    """The kernels of a layer's weight."""
    return KernelView.of(layer).kernels(layer.weight)


def kernel_shape(layer: Layer) -> tuple[int, int, int, int]:
    """``(filters, in_channels, kh, kw)`` of a layer; one of another size than its phases have is
    rounded up."""
    view = KernelView.of(layer)
    first, second, *size = (int(n) for n in layer.weight.shape)
    if view.stride is None:
        return view.shape((first, second, *size))
    whole = [-(-n // s) * s for n, s in zip((1, *size)[-2:], view.stride, strict=True)]
    return view.shape((first, second, *whole))


def why_no_kernels(layer: Layer) -> str:
    """Why a layer's weight is no grid of kernels of one size; empty if it is."""
    if not is_transposed(layer):
        return ""
    if any(k % s for k, s in zip(layer.kernel_size, layer.stride, strict=True)):
        return (
            f"transposed: kernel {tuple(layer.kernel_size)} is no multiple of stride"
            f" {tuple(layer.stride)}, its phases have kernels of several sizes"
        )
    if any(d != 1 for d in layer.dilation):
        return f"transposed with dilation {tuple(layer.dilation)}: the compiler leaves it dense"
    return ""
