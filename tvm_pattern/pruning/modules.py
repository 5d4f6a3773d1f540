"""The modules of a model: inside its wrappers, by clean name, and what cannot be pruned at all."""

from __future__ import annotations

from typing import TypeAlias

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel
from torch.nn.parameter import is_lazy

from topi_kernels.eligibility import is_depthwise

from .config import ConfigError

FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def unwrap(model: nn.Module) -> nn.Module:
    """The model inside DistributedDataParallel, DataParallel or torch.compile wrappers."""
    while True:
        if isinstance(model, nn.parallel.DistributedDataParallel | nn.DataParallel):
            model = model.module
        elif isinstance(getattr(model, "_orig_mod", None), nn.Module):
            model = model._orig_mod
        else:
            return model


def clean_name(name: str) -> str:
    """Module or parameter name without the ``_orig_mod`` parts that torch.compile inserts."""
    return ".".join(part for part in name.split(".") if part != "_orig_mod")


CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.ConvTranspose1d, nn.ConvTranspose2d)
"""Layers that are pruned as convolutions."""

Convolution: TypeAlias = nn.Conv1d | nn.Conv2d | nn.ConvTranspose1d | nn.ConvTranspose2d
Layer: TypeAlias = Convolution | nn.Linear


def convolutions(model: nn.Module) -> dict[str, Convolution]:
    """Every convolution by clean name, transposed ones too, in the order of ``named_modules``."""
    inner = unwrap(model)
    found: dict[str, Convolution] = {
        clean_name(name): module
        for name, module in inner.named_modules()
        if isinstance(module, CONVOLUTIONS)
    }
    if not found:
        raise ConfigError(
            f"{type(inner).__name__} has no nn.Conv2d, nn.Conv1d or transposed one; give a model"
            " with convolutions"
        )
    return found


def layers_of(model: nn.Module) -> dict[str, Layer]:
    """Every convolution and linear layer by clean name, in the order of ``named_modules``."""
    inner = unwrap(model)
    found: dict[str, Layer] = {
        clean_name(name): module
        for name, module in inner.named_modules()
        if isinstance(module, (*CONVOLUTIONS, nn.Linear))
    }
    if not found:
        raise ConfigError(
            f"{type(inner).__name__} has no nn.Conv2d and no nn.Linear; give a model with"
            " convolutions"
        )
    return found


def is_transposed(layer: Layer) -> bool:
    """Whether a layer is a transposed convolution."""
    return isinstance(layer, nn.ConvTranspose1d | nn.ConvTranspose2d)


def refuse_lazy(layers: dict[str, Layer]) -> None:
    """Refuse layers that have not seen an input yet.

    Raises
    ------
    ConfigError
        Naming the first one.
    """
    for name, layer in layers.items():
        if any(map(is_lazy, layer.parameters())):
            raise ConfigError(f"{name} is lazy and has no weight yet; run the model on an example")


def refuse_unusable_model(model: nn.Module) -> None:
    """Refuse models whose convolutions have no whole float weights to choose from.

    Raises
    ------
    ConfigError
        Naming the layer and what to do: sharded, quantised or not yet initialised models, and
        what is no module.
    """
    if not isinstance(model, nn.Module):
        raise ConfigError(
            f"got a {type(model).__name__}, expected a torch.nn.Module: prune the module, then"
            " export it"
        )
    for name, module in unwrap(model).named_modules():
        if isinstance(module, FullyShardedDataParallel | FSDPModule):
            raise ConfigError(
                f"{clean_name(name) or 'the model'} is sharded by FSDP, and patterns are chosen on"
                " whole weights; use DistributedDataParallel, or prune the model before it is"
                " sharded"
            )
        if isinstance(module, torch.ao.nn.quantized.Conv2d):
            raise ConfigError(
                f"{clean_name(name)} is quantised to int8; prune the float model, then quantise it"
            )
        if isinstance(module, CONVOLUTIONS) and any(map(is_lazy, module.parameters())):
            raise ConfigError(
                f"{clean_name(name)} is lazy and has no weight yet; run the model on an example"
            )


def refuse_unusable_weight(name: str, conv: Layer) -> None:
    """Refuse a weight that cannot be projected.

    Raises
    ------
    ConfigError
        Naming the layer and what to do.
    """
    for weight in conv.parameters():
        if weight.layout != torch.strided:
            raise ConfigError(f"{name}: its weight is stored as {weight.layout}; call to_dense()")
        if weight.is_meta:
            raise ConfigError(
                f"{name}: its weight is on the meta device, without values; load a checkpoint first"
            )
        if weight.dtype not in FLOATS:
            raise ConfigError(
                f"{name}: its weight is {weight.dtype}; expected one of"
                f" {', '.join(str(d).removeprefix('torch.') for d in FLOATS)}"
            )


def layer_kind(conv: Layer) -> str:
    """``linear``, ``pointwise``, ``depthwise`` or ``conv``."""
    if isinstance(conv, nn.Linear):
        return "linear"
    if is_depthwise(conv.groups, conv.in_channels):
        return "depthwise"
    size = tuple(conv.kernel_size)
    taps = [-(-k // s) for k, s in zip(size, conv.stride, strict=True)]
    return "pointwise" if all(n == 1 for n in (taps if is_transposed(conv) else size)) else "conv"
