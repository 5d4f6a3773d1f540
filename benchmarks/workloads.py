"""The layers and networks of ``workloads.toml``, and seeded sparse weights for the layers."""

from __future__ import annotations

import sys
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import nn

import tvm_pattern.models
from topi_kernels.geometry import ConvGeometry
from topi_kernels.pattern import fixed8_patterns

from . import sequences

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

WORKLOADS_FILE = Path(__file__).with_name("workloads.toml")

_Spec = TypeVar("_Spec", "LayerSpec", "NetworkSpec")


@dataclass(frozen=True)
class LayerSpec:
    """One convolution with bias and ReLU, batch 1.

    ``connectivity`` is in_channel kernels / kept kernels; ``size`` is the input's (height, width).
    """

    name: str
    in_channels: int
    out_channels: int
    size: tuple[int, int]
    connectivity: float
    groups: tuple[int, ...]
    kernel: int = 3
    stride: int = 1
    padding: int = 1

    @property
    def out_size(self) -> tuple[int, int]:
        h, w = ((n + 2 * self.padding - self.kernel) // self.stride + 1 for n in self.size)
        return h, w

    @property
    def geometry(self) -> ConvGeometry:
        """Kernel, stride and padding as the operator takes them."""
        return ConvGeometry((self.kernel,) * 2, (self.stride,) * 2, (self.padding,) * 2)

    @property
    def dense_flops(self) -> int:
        """Floating point operations of the dense layer, two per multiply-add, padding included."""
        h, w = self.out_size
        return 2 * self.out_channels * self.in_channels * self.kernel**2 * h * w

    def model(self, weight: np.ndarray, bias: np.ndarray) -> nn.Module:
        """The layer in torch: convolution, bias, ReLU."""
        conv = nn.Conv2d(
            self.in_channels, self.out_channels, self.kernel, self.stride, self.padding
        )
        with torch.no_grad():
            conv.weight.copy_(torch.from_numpy(weight))
            conv.bias.copy_(torch.from_numpy(bias))
        return nn.Sequential(conv, nn.ReLU()).eval()

    def example(self, seed: int = 0) -> torch.Tensor:
        """Input ``[1, in_channels, height, width]``, float32."""
        values = np.random.default_rng([seed, 1]).standard_normal(
            (1, self.in_channels, *self.size), dtype=np.float32
        )
        return torch.from_numpy(values)


@dataclass(frozen=True)
class NetworkSpec:
    """One network of :mod:`tvm_pattern.models` or :mod:`.sequences`, or its submodule ``part``."""

    name: str
    model: str
    input: tuple[int, ...]
    connectivity: float
    groups: tuple[int, ...]
    connectivity_1x1: float = 1.0
    connectivity_linear: float = 1.0
    part: str = ""
    #: Groups in which it is pruned and quantised to bytes; empty where only float32 is measured.
    groups_int8: tuple[int, ...] = ()

    def with_groups(self, groups: tuple[int, ...]) -> NetworkSpec:
        """The same network with other groups of filters that share kernels."""
        return replace(self, groups=groups)

    def with_batch(self, batch: int) -> NetworkSpec:
        """The same network for ``batch`` inputs at a time, named ``NAME-batchN``."""
        if batch == 1:
            return self
        return replace(self, name=f"{self.name}-batch{batch}", input=(batch, *self.input[1:]))

    def build(self) -> nn.Module:
        """The dense network; the same random weights at every call."""
        owner = sequences if hasattr(sequences, self.model) else tvm_pattern.models
        model = getattr(owner, self.model)()
        return (model.get_submodule(self.part) if self.part else model).eval()

    def example(self, seed: int = 0) -> torch.Tensor:
        """Input of shape ``input``, float32."""
        values = np.random.default_rng([seed, 2]).standard_normal(self.input, dtype=np.float32)
        return torch.from_numpy(values)


def _spec(cls: type[_Spec], entry: dict[str, Any], defaults: dict[str, Any], path: Path) -> _Spec:
    known = {f.name for f in fields(cls)}
    unknown = sorted(set(entry) - known)
    if unknown:
        raise ValueError(
            f"{path.name}: {entry.get('name', 'an entry')!r} has unknown keys {unknown};"
            f" expected {sorted(known)}"
        )
    values: dict[str, Any] = {
        k: tuple(v) if isinstance(v, list) else v for k, v in {**defaults, **entry}.items()
    }
    try:
        return cls(**values)
    except TypeError as error:
        raise ValueError(f"{path.name}: {entry.get('name', 'an entry')!r}: {error}") from error


def load_workloads(
    path: Path = WORKLOADS_FILE,
) -> tuple[tuple[LayerSpec, ...], tuple[NetworkSpec, ...]]:
    """Read a workloads file.

    Raises
    ------
    ValueError
        If an entry has unknown or missing keys, or a name occurs twice.
    """
    data = tomllib.loads(path.read_text(encoding="utf-8"))
    defaults = data.get("defaults", {})
    layers = tuple(_spec(LayerSpec, e, defaults, path) for e in data.get("layer", ()))
    networks = tuple(_spec(NetworkSpec, e, defaults, path) for e in data.get("network", ()))
    names = [s.name for s in layers] + [s.name for s in networks]
    twice = sorted({n for n in names if names.count(n) > 1})
    if twice:
        raise ValueError(f"{path.name}: the names {twice} occur twice; rename one of each")
    return layers, networks


def dense_weights(spec: LayerSpec, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Weight ``[out, in, k, k]`` and bias ``[out]``, float32, scaled to keep the input's size."""
    rng = np.random.default_rng([seed, 3])
    shape = (spec.out_channels, spec.in_channels, spec.kernel, spec.kernel)
    scale = np.float32((2.0 / (spec.in_channels * spec.kernel**2)) ** 0.5)
    weight = rng.standard_normal(shape, dtype=np.float32) * scale
    return weight, rng.standard_normal(spec.out_channels, dtype=np.float32) * np.float32(0.1)


def sparse_weights(spec: LayerSpec, group: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Like :func:`dense_weights`, pruned at random.

    ``group`` neighbouring filters share their kernels and patterns. The number of kept (group,
    in_channel) pairs is exact over the layer, so filter lengths vary as they do after magnitude
    pruning. A 3x3 kernel gets one of the ``fixed8`` patterns; other sizes keep all their taps.

    Raises
    ------
    ValueError
        If ``group`` does not divide the number of filters.
    """
    if group < 1 or spec.out_channels % group:
        raise ValueError(
            f"group {group} does not divide the {spec.out_channels} filters of {spec.name};"
            " expected a divisor"
        )
    weight, bias = dense_weights(spec, seed)
    rng = np.random.default_rng([seed, 4, group])
    pairs = (spec.out_channels // group) * spec.in_channels
    kept = np.zeros(pairs, bool)
    kept[rng.permutation(pairs)[: round(pairs / spec.connectivity)]] = True
    mask = np.broadcast_to(kept[:, None, None], (pairs, spec.kernel, spec.kernel))
    if spec.kernel == 3:
        patterns = fixed8_patterns().masks
        mask = mask & patterns[rng.integers(len(patterns), size=pairs)]
    mask = mask.reshape(-1, spec.in_channels, spec.kernel, spec.kernel).repeat(group, axis=0)
    return weight * mask, bias


def network_flops(model: nn.Module, example: torch.Tensor) -> tuple[int, int, float]:
    """Dense-equivalent FLOPs, effective (non-zero weight) FLOPs, and sparsity of a network.

    Counts convolutions and linear layers, two per multiply-add; the sparsity is that of their
    weights.
    """
    dense = effective = weights = kept = 0

    def count(module: nn.Module, _inputs: Any, output: torch.Tensor) -> None:
        nonlocal dense, effective, weights, kept
        total = module.weight.numel()
        nonzero = int(torch.count_nonzero(module.weight))
        uses = 1 if isinstance(module, nn.Linear) else output[0, 0].numel()
        dense += 2 * total * uses * len(output)
        effective += 2 * nonzero * uses * len(output)
        weights += total
        kept += nonzero

    hooks = [
        module.register_forward_hook(count)
        for module in model.modules()
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Linear)
    ]
    try:
        with torch.inference_mode():
            model(example)
    finally:
        for hook in hooks:
            hook.remove()
    if not weights:
        raise ValueError("the model has no convolution and no linear layer to count")
    return dense, effective, 1 - kept / weights
