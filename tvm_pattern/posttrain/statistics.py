"""Second-order statistics of one convolution's input, in the dense and in the pruned network.

The convolution is a product of its weights ``w [K]`` and patches ``x [K]``, K = in_channels * kh *
kw. Its output changes by ``E[(w' x' - w x)^2]``, where x' is what the pruned layers before it
deliver, and that is a quadratic form of w' whose coefficients are the moments gathered here.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.hooks import RemovableHandle

Forward = Callable[[nn.Module, Any], Any]

# Of a batch norm's first statistics, in standard deviations; random batches of trained data are
# below 0.3.
_FAR = 1.0


@dataclass
class Moments:
    """Moments of a layer's patches, one set per convolution group.

    Attributes
    ----------
    gram : Tensor ``[groups, K, K]``
        E[x' x'^T] of the pruned network.
    cross : Tensor ``[groups, K, K]``
        E[x x'^T]: patches of the dense network against those of the pruned one.
    mean, dense_mean : Tensor ``[groups, K]``
        E[x'] and E[x].
    power : Tensor ``[O]``
        E[y^2] of the dense layer's output, without its bias.
    count : int
        Patches.
    """

    gram: torch.Tensor
    cross: torch.Tensor
    mean: torch.Tensor
    dense_mean: torch.Tensor
    power: torch.Tensor
    count: int = 0

    @classmethod
    def zeros(cls, conv: nn.Conv2d) -> Moments:
        weight = conv.weight
        size = weight[0].numel()
        square = (conv.groups, size, size)
        vector = (conv.groups, size)
        shapes = (square, square, vector, vector, (conv.out_channels,))
        return cls(*(torch.zeros(s, device=weight.device) for s in shapes))

    def add(self, patches: torch.Tensor, dense: torch.Tensor, weight: torch.Tensor) -> None:
        """Add patches ``[groups, rows, K]`` of both networks; ``weight`` is the dense layer's."""
        groups, rows, size = patches.shape
        self.gram += patches.transpose(1, 2) @ patches
        self.cross += dense.transpose(1, 2) @ patches
        self.mean += patches.sum(1)
        self.dense_mean += dense.sum(1)
        filters = weight.reshape(groups, -1, size)
        self.power += (dense @ filters.transpose(1, 2)).square().sum(1).reshape(-1)
        self.count += rows

    def of_group(self, index: int) -> Moments:
        """Those of one convolution group alone."""
        filters = self.power.chunk(len(self.gram))[index]
        whole = (self.gram, self.cross, self.mean, self.dense_mean)
        gram, cross, mean, dense_mean = (total[index : index + 1] for total in whole)
        return Moments(gram, cross, mean, dense_mean, filters, self.count)

    def finish(self) -> None:
        """Sums to means."""
        for total in (self.gram, self.cross, self.mean, self.dense_mean, self.power):
            total /= self.count

    def centre(self, weight: torch.Tensor) -> None:
        """Moments about the means, for a layer whose bias takes the means up."""
        filters = weight.reshape(self.mean.shape[0], -1, self.mean.shape[1])
        self.gram -= self.mean[:, :, None] * self.mean[:, None, :]
        self.cross -= self.dense_mean[:, :, None] * self.mean[:, None, :]
        offset = (filters @ self.dense_mean[:, :, None]).squeeze(2)
        self.power -= offset.square().reshape(-1)


def on_images(conv: Any) -> nn.Conv2d:
    """The layer itself, or a 1-D convolution as one of images of height 1 with the same weights."""
    if isinstance(conv, nn.Conv2d):
        return conv
    padding = conv.padding if isinstance(conv.padding, str) else (0, *conv.padding)
    lifted = nn.Conv2d(
        conv.in_channels,
        conv.out_channels,
        (1, *conv.kernel_size),
        stride=(1, *conv.stride),
        padding=padding,
        dilation=(1, *conv.dilation),
        groups=conv.groups,
        bias=conv.bias is not None,
        padding_mode=conv.padding_mode,
        device="meta",
    )
    lifted.weight = nn.Parameter(conv.weight.detach()[:, :, None], requires_grad=False)
    if conv.bias is not None:
        lifted.bias = nn.Parameter(conv.bias.detach(), requires_grad=False)
    return lifted


def _padding(conv: nn.Conv2d) -> list[int]:
    """Padding as ``F.pad`` takes it: left, right, top, bottom."""
    if conv.padding == "valid":
        return [0, 0, 0, 0]
    if conv.padding == "same":
        both = [d * (k - 1) for d, k in zip(conv.dilation, conv.kernel_size, strict=True)]
        return [both[1] // 2, both[1] - both[1] // 2, both[0] // 2, both[0] - both[0] // 2]
    rows, columns = conv.padding
    return [int(columns), int(columns), int(rows), int(rows)]


def patches_of(conv: nn.Conv2d, image: torch.Tensor, chosen: torch.Tensor | None) -> torch.Tensor:
    """What the convolution multiplies, of one image ``[I, H, W]``.

    Parameters
    ----------
    conv : nn.Conv2d
    image : Tensor
    chosen : Tensor of int64, optional
        Output positions to take; all by default.

    Returns
    -------
    Tensor
        float32 ``[groups, rows, K]``.
    """
    mode = "constant" if conv.padding_mode == "zeros" else conv.padding_mode
    padded = F.pad(image[None].float(), _padding(conv), mode=mode)
    columns = F.unfold(padded, conv.kernel_size, conv.dilation, 0, conv.stride)[0]
    if chosen is not None:
        columns = columns[:, chosen]
    return columns.reshape(conv.groups, -1, columns.shape[1]).transpose(1, 2)


class _Reached(Exception):
    """The last call of the layer was seen; the rest of the network need not run."""


@contextmanager
def _inputs_of(conv: nn.Module, calls: int) -> Iterator[list[torch.Tensor]]:
    seen: list[torch.Tensor] = []

    def look(_: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        seen.append(args[0].detach())
        if len(seen) == calls:
            raise _Reached

    handle = conv.register_forward_pre_hook(look)
    try:
        yield seen
    finally:
        handle.remove()


def _run_to(
    model: nn.Module, conv: nn.Module, calls: int, batch: Any, forward: Forward
) -> list[torch.Tensor]:
    with _inputs_of(conv, calls) as seen, suppress(_Reached):
        forward(model, batch)
    return seen


@torch.no_grad()
def inputs_from_the_start(
    pair: tuple[nn.Module, nn.Module],
    convs: tuple[nn.Module, nn.Module],
    calls: int,
    batches: Iterable[Any],
    forward: Forward,
) -> Iterator[tuple[list[torch.Tensor], list[torch.Tensor]]]:
    """Inputs of a layer in both networks, batch by batch; both run up to it, each time anew.

    Parameters
    ----------
    pair : tuple of nn.Module
        The dense network and the one that is being pruned.
    convs : tuple of nn.Conv2d
        The layer in each of them.
    calls : int
        Times that a forward calls the layer.
    batches : iterable
    forward : callable
        ``forward(model, batch)``.
    """
    for batch in batches:
        dense, pruned = (
            _run_to(model, conv, calls, batch, forward)
            for model, conv in zip(pair, convs, strict=True)
        )
        yield dense, pruned


@torch.no_grad()
def layer_moments(
    layers: tuple[nn.Module, nn.Module],
    inputs: Iterable[tuple[list[torch.Tensor], list[torch.Tensor]]],
    positions: int,
) -> Moments:
    """Moments of one layer.

    Parameters
    ----------
    layers : tuple of nn.Conv2d or nn.Conv1d
        The layer in the dense and in the pruned network.
    inputs : iterable
        What reaches it in each of them, batch by batch and call by call.
    positions : int
        Output positions to take per image and call, chosen evenly by a fixed seed; the same in
        both networks.
    """
    convs = on_images(layers[0]), on_images(layers[1])
    moments = Moments.zeros(convs[0])
    weight = convs[0].weight.float()
    generator = torch.Generator().manual_seed(0)
    for pair in inputs:
        for dense, pruned in zip(*pair, strict=True):
            for before, now in zip(dense, pruned, strict=True):
                if isinstance(layers[0], nn.Conv1d):
                    before, now = before[:, None], now[:, None]
                height, width = _output_size(convs[0], before)
                chosen = None
                if height * width > positions:
                    order = torch.randperm(height * width, generator=generator)[:positions]
                    chosen = order.to(before.device)
                moments.add(
                    patches_of(convs[1], now, chosen),
                    patches_of(convs[0], before, chosen),
                    weight,
                )
    moments.finish()
    return moments


def _output_size(conv: nn.Conv2d, image: torch.Tensor) -> tuple[int, int]:
    left, right, top, bottom = _padding(conv)
    spans = (image.shape[-2] + top + bottom, image.shape[-1] + left + right)
    height, width = (
        (span - d * (k - 1) - 1) // s + 1
        for span, k, d, s in zip(spans, conv.kernel_size, conv.dilation, conv.stride, strict=True)
    )
    return height, width


def watch_first_norm(model: nn.Module) -> list[RemovableHandle]:
    """Warn if what reaches the first batch norm looks unlike what it was trained on."""
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]

    def compare(norm: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        values = args[0].detach().float().transpose(0, 1).flatten(1)
        spread = (norm.running_var.float() + norm.eps).sqrt()
        shift = ((values.mean(1) - norm.running_mean.float()) / spread).abs().mean()
        ratio = values.std(1) / spread
        if shift > _FAR or not 0.25 < ratio.median() < 4:
            warnings.warn(
                "the calibration data look unlike those of the training: at the first batch norm"
                f" they are off by {shift:.1f} standard deviations and {ratio.median():.2g} times"
                " as wide; check mean, scale and order of the colours",
                stacklevel=2,
            )

    return [norm.register_forward_pre_hook(compare) for norm in norms[:1]]
