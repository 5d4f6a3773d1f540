"""The study's networks: one description, as a plain module and as the layout of a flat vector.

A batched model holds ``S`` members, each a vector of ``P`` parameters, as one ``[S, P]`` tensor.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

CLASSES = 10
EPSILON = 1e-5


@dataclass(frozen=True)
class ConvSpec:
    """A convolution without bias and its batch norm.

    ``source`` and ``residual`` name the layers whose outputs are its input and what is added before
    the ReLU; an empty name is the image or nothing.
    """

    name: str
    in_channels: int
    out_channels: int
    kernel: int = 3
    stride: int = 1
    source: str = ""
    residual: str = ""
    relu: bool = True
    pool: bool = False

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Shape of the weight, ``[O, I, kh, kw]``."""
        return self.out_channels, self.in_channels, self.kernel, self.kernel


@dataclass(frozen=True)
class Network:
    """Convolutions in order of execution; the last one is pooled and classified."""

    name: str
    convs: tuple[ConvSpec, ...]

    @property
    def prunable(self) -> tuple[ConvSpec, ...]:
        """3x3 convolutions but the first."""
        return tuple(c for c in self.convs[1:] if c.kernel == 3)

    def conv_weights(self) -> int:
        """Weights of all convolutions of one member."""
        return sum(math.prod(c.shape) for c in self.convs)


def resnet20(widths: Sequence[int] = (16, 32, 64), inner: Sequence[int] | None = None) -> Network:
    """ResNet-20 for 32x32 images, with 1x1 convolutions where the shape changes.

    Parameters
    ----------
    widths : sequence of 3 ints
        Channels of the residual stream of each stage.
    inner : sequence of 3 ints, optional
        Channels between the two convolutions of a block; ``widths`` unless given.
    """
    inner = inner or widths
    convs = [ConvSpec("stem", 3, widths[0])]
    before = widths[0]
    for stage, (width, middle) in enumerate(zip(widths, inner, strict=True)):
        for block in range(3):
            name, source = f"stage{stage}_block{block}", convs[-1].name
            stride = 2 if stage and not block else 1
            residual = source
            if stride != 1:
                residual = f"{name}_shortcut"
                convs.append(ConvSpec(residual, before, width, 1, 2, source=source, relu=False))
            convs.append(ConvSpec(f"{name}_conv1", before, middle, 3, stride, source=source))
            convs.append(
                ConvSpec(f"{name}_conv2", middle, width, source=f"{name}_conv1", residual=residual)
            )
            before = width
    return Network("resnet20", tuple(convs))


VGG_WIDTHS = (64, 64, 128, 128, 256, 256)


def vgg(widths: Sequence[int] = VGG_WIDTHS) -> Network:
    """Six 3x3 convolutions with batch norm, 2x2 max pooling after each second one."""
    convs, before, source = [], 3, ""
    for index, width in enumerate(widths):
        pool = index in (1, 3)
        convs.append(ConvSpec(f"conv{index}", before, width, source=source, pool=pool))
        before, source = width, convs[-1].name
    return Network("vgg", tuple(convs))


NETWORKS = {"resnet20": resnet20, "vgg": vgg}


@dataclass(frozen=True)
class Slot:
    """Where a parameter lies in a member's vector."""

    start: int
    shape: tuple[int, ...]

    @property
    def stop(self) -> int:
        return self.start + math.prod(self.shape)

    def of(self, flat: torch.Tensor) -> torch.Tensor:
        """View ``[S, *shape]`` of ``flat`` (``[S, P]``)."""
        return flat[:, self.start : self.stop].view(len(flat), *self.shape)


class Layout:
    """Slots of a network's parameters and of its batch norms' running statistics."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self.slots: dict[str, Slot] = {}
        self.statistics: dict[str, Slot] = {}
        self.size = self.statistics_size = 0
        for conv in network.convs:
            self._add(conv.name, conv.shape)
            self._add(f"{conv.name}.gamma", (conv.out_channels,))
            self._add(f"{conv.name}.beta", (conv.out_channels,))
            slot = Slot(self.statistics_size, (conv.out_channels,))
            self.statistics[conv.name] = slot
            self.statistics_size = slot.stop
        self._add("classifier", (CLASSES, network.convs[-1].out_channels))
        self._add("classifier.bias", (CLASSES,))

    def _add(self, name: str, shape: tuple[int, ...]) -> None:
        self.slots[name] = Slot(self.size, shape)
        self.size = self.slots[name].stop

    def initialise(self, seed: int) -> torch.Tensor:
        """Fresh parameters ``[P]``: He normal weights, gamma 1, beta and bias 0."""
        generator = torch.Generator().manual_seed(seed)
        flat = torch.zeros(1, self.size)
        for name, slot in self.slots.items():
            if name.endswith(".gamma"):
                slot.of(flat).fill_(1.0)
            elif not name.endswith((".beta", ".bias")):
                fan_in = math.prod(slot.shape[1:])
                gain = 1.0 if name == "classifier" else 2.0
                values = torch.randn(slot.shape, generator=generator)
                slot.of(flat)[0] = values * math.sqrt(gain / fan_in)
        return flat[0]

    def decayed(self) -> torch.Tensor:
        """Float ``[P]``, 1 where weight decay acts: on weights, not on gamma, beta and bias."""
        flat = torch.zeros(1, self.size)
        for name, slot in self.slots.items():
            if not name.endswith((".gamma", ".beta", ".bias")):
                slot.of(flat).fill_(1.0)
        return flat[0]


class PlainNetwork(nn.Module):
    """One member as an ordinary module, ``[N, 3, 32, 32]`` to logits."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network
        for conv in network.convs:
            layer = nn.Conv2d(
                conv.in_channels,
                conv.out_channels,
                conv.kernel,
                conv.stride,
                conv.kernel // 2,
                bias=False,
            )
            self.add_module(conv.name, layer)
            self.add_module(f"{conv.name}_norm", nn.BatchNorm2d(conv.out_channels, EPSILON))
        self.classifier = nn.Linear(network.convs[-1].out_channels, CLASSES)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        values: dict[str, torch.Tensor] = {"": images}
        for conv in self.network.convs:
            x = self.get_submodule(conv.name)(values[conv.source])
            x = self.get_submodule(f"{conv.name}_norm")(x)
            if conv.residual:
                x = x + values[conv.residual]
            if conv.relu:
                x = torch.relu(x)
            if conv.pool:
                x = nn.functional.max_pool2d(x, 2)
            values[conv.name] = x
        return self.classifier(nn.functional.adaptive_avg_pool2d(x, 1).flatten(1))


def to_plain(
    layout: Layout, parameters: torch.Tensor, mean: torch.Tensor, variance: torch.Tensor
) -> PlainNetwork:
    """Module of one member from its vectors ``[P]`` and running statistics, in evaluation mode."""
    module = PlainNetwork(layout.network)
    state: dict[str, Any] = {}
    for conv in layout.network.convs:
        norm = f"{conv.name}_norm"
        state[f"{conv.name}.weight"] = layout.slots[conv.name].of(parameters[None])[0]
        state[f"{norm}.weight"] = layout.slots[f"{conv.name}.gamma"].of(parameters[None])[0]
        state[f"{norm}.bias"] = layout.slots[f"{conv.name}.beta"].of(parameters[None])[0]
        state[f"{norm}.running_mean"] = layout.statistics[conv.name].of(mean[None])[0]
        state[f"{norm}.running_var"] = layout.statistics[conv.name].of(variance[None])[0]
        state[f"{norm}.num_batches_tracked"] = torch.tensor(0)
    state["classifier.weight"] = layout.slots["classifier"].of(parameters[None])[0]
    state["classifier.bias"] = layout.slots["classifier.bias"].of(parameters[None])[0]
    module.load_state_dict(state)
    return module.eval()
