"""Quantised networks as Relax modules, and what integer arithmetic makes of them, side by side."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import tvm
from conv_cases import pattern_weights
from tvm import relax


@dataclass
class Tensor:
    """A quantised image: its variable, its bytes, how they stand for reals."""

    var: Any
    values: np.ndarray
    scale: float
    zero_point: int

    @property
    def real(self) -> np.ndarray:
        return (self.values.astype(np.float64) - self.zero_point) * self.scale


class QdqNetwork:
    """Builds a module operator by operator, with what each of them gives for one input.

    Parameters
    ----------
    x : numpy.ndarray
        float32 ``[n, c, h, w]``: the input that results are kept for.
    activations : str
        ``uint8`` or ``int8``.
    """

    def __init__(self, x: np.ndarray, activations: str = "uint8", seed: int = 0) -> None:
        self.x, self.dtype = x, activations
        self.rng = np.random.default_rng(seed)
        self.builder = relax.BlockBuilder()
        self.input = relax.Var("x", relax.TensorType(x.shape, "float32"))
        self.offset = 128 if activations == "int8" else 0
        self.function = self.builder.function("main", [self.input])
        self.function.__enter__()
        self.block = self.builder.dataflow()
        self.block.__enter__()

    def emit(self, value: Any, name: str = "") -> Any:
        return self.builder.emit(value, name)

    def parameters(self, scale: float, zero_point: int) -> tuple[Any, Any]:
        return relax.const(np.float32(scale)), relax.const(
            np.array(zero_point - self.offset, self.dtype)
        )

    def quantize(self, real: Any, scale: float, zero_point: int) -> Any:
        call = relax.op.quantize(
            real, *self.parameters(scale, zero_point), axis=1, out_dtype=self.dtype
        )
        return self.emit(call)

    def dequantize(self, x: Tensor) -> Any:
        call = relax.op.dequantize(x.var, *self.parameters(x.scale, x.zero_point), axis=1)
        return self.emit(call)

    def enter(self, scale: float = 0.03, zero_point: int = 120) -> Tensor:
        """The input, quantised."""
        values = np.rint(self.x / np.float32(scale)) + zero_point
        values = np.clip(values, 0, 255).astype(np.uint8)
        return Tensor(self.quantize(self.input, scale, zero_point), values, scale, zero_point)

    def requantized(self, sums: np.ndarray, factor: np.ndarray, added: Any, to: Any) -> np.ndarray:
        """Bytes of scaled sums: float32 factors, rounded half to even."""
        scale, zero_point, low, high = to
        value = sums.astype(np.float32).astype(np.float64) * factor.astype(np.float32)
        if added is not None:
            value = (value + added).astype(np.float32).astype(np.float64)
        limits = [np.clip(np.rint(v / scale) + zero_point, 0, 255) for v in (low, high)]
        return np.clip(np.rint(value) + zero_point, *limits).astype(np.uint8)

    def conv(
        self,
        x: Tensor,
        out_channels: int,
        *,
        kernel: int = 3,
        stride: int = 1,
        group: int = 1,
        kept: np.ndarray | None = None,
        residual: Tensor | None = None,
        activation: str = "relu",
        name: str = "",
        groups: int = 1,
        weight_zero: int = 0,
    ) -> Tensor:
        """A convolution with bias, an image that may be added, an activation."""
        rng, in_channels = self.rng, x.values.shape[1]
        shape = (out_channels, in_channels // groups, kernel, kernel)
        if kept is None:
            kept = np.ones(shape)
            if kernel == 3 and groups == 1:
                kept = pattern_weights(out_channels, in_channels, group=group, seed=len(name))
        weight = (rng.integers(-127, 128, shape) * (kept != 0)).astype(np.int8)
        scales = rng.uniform(0.5, 1.5, out_channels).astype(np.float32) / 200
        bias = rng.standard_normal(out_channels).astype(np.float32)
        unit = scales.astype(np.float64) * x.scale
        pad = kernel // 2
        sums = torch.nn.functional.conv2d(
            torch.tensor(x.values.astype(np.float64) - x.zero_point),
            torch.tensor(weight.astype(np.float64)),
            torch.tensor(np.rint(bias / unit)),
            stride,
            pad,
            groups=groups,
        ).numpy()
        scale = float(np.float32(np.std(sums) * unit.mean() / 40 + 1e-6))
        zero_point = 3 if activation == "relu" else 110
        low, high = {"none": (-np.inf, np.inf), "relu": (0, np.inf), "relu6": (0, 6)}[activation]
        added = None
        if residual is not None:
            shifted = residual.values.astype(np.float32) - np.float32(residual.zero_point)
            added = (shifted * np.float32(residual.scale / scale)).astype(np.float64)
        values = self.requantized(
            sums, (unit / scale)[:, None, None], added, (scale, zero_point, low, high)
        )
        real = self.dequantize(x)
        packed = relax.op.dequantize(
            relax.const(weight),
            relax.const(scales),
            relax.const(np.full(out_channels, weight_zero, np.int8)),
            axis=0,
        )
        real_weight = self.emit(packed)
        call = relax.op.nn.conv2d(
            real, real_weight, strides=stride, padding=pad, groups=groups, out_dtype="float32"
        )
        y = self.emit(call, name)
        y = self.emit(relax.op.add(y, relax.const(bias.reshape(1, -1, 1, 1))))
        if residual is not None:
            y = self.emit(relax.op.add(y, self.dequantize(residual)))
        if activation == "relu":
            y = self.emit(relax.op.nn.relu(y))
        if activation == "relu6":
            y = self.emit(relax.op.clip(y, 0.0, 6.0))
        return Tensor(self.quantize(y, scale, zero_point), values, scale, zero_point)

    def add(self, a: Tensor, b: Tensor, scale: float, zero_point: int = 4) -> Tensor:
        """The sum of two images, then a relu."""
        first, second = (t.values.astype(np.float32) - np.float32(t.zero_point) for t in (a, b))
        total = (first * np.float32(a.scale / scale)).astype(np.float64)
        total = (second.astype(np.float64) * np.float32(b.scale / scale) + total).astype(np.float32)
        values = np.clip(np.rint(total) + zero_point, zero_point, 255).astype(np.uint8)
        y = self.emit(relax.op.add(self.dequantize(a), self.dequantize(b)))
        y = self.emit(relax.op.nn.relu(y))
        return Tensor(self.quantize(y, scale, zero_point), values, scale, zero_point)

    def rescale(self, x: Tensor, scale: float, zero_point: int) -> Tensor:
        """The same image in another scale."""
        shifted = x.values.astype(np.float32) - np.float32(x.zero_point)
        value = shifted.astype(np.float64) * np.float32(x.scale / scale)
        values = np.clip(np.rint(value) + zero_point, 0, 255).astype(np.uint8)
        y = self.quantize(self.dequantize(x), scale, zero_point)
        return Tensor(y, values, scale, zero_point)

    def max_pool(self, x: Tensor, size: int, stride: int, pad: int = 0) -> Tensor:
        pooled = torch.nn.functional.max_pool2d(
            torch.tensor(x.values.astype(np.float32)), size, stride, pad
        )
        y = relax.op.nn.max_pool2d(self.dequantize(x), (size, size), stride, pad)
        y = self.quantize(self.emit(y), x.scale, x.zero_point)
        return Tensor(y, pooled.numpy().astype(np.uint8), x.scale, x.zero_point)

    def module(self, *results: Any) -> tvm.IRModule:
        """The module whose outputs are these, real images of tensors."""
        real = [self.dequantize(r) if isinstance(r, Tensor) else r for r in results]
        out = self.builder.emit_output(real[0] if len(real) == 1 else relax.Tuple(real))
        self.block.__exit__(None, None, None)
        self.builder.emit_func_output(out)
        self.function.__exit__(None, None, None)
        return self.builder.get()
