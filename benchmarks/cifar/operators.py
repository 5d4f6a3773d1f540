"""Convolution, batch norm and ReLU of all members: by torch's operators, and fused.

:class:`PlainOperators` is the specification, :class:`ModuleOperators` what a CPU runs.
:class:`FusedOperators` runs the kernels of
:mod:`benchmarks.cifar.kernels`, or cuDNN member by member, whichever a measurement finds faster for
the shape, after comparing the two.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import torch
import torch.nn.functional as F

from .networks import EPSILON

MOMENTUM = 0.1


@dataclass
class Norm:
    """A batch norm's parameters and running statistics, each ``[S, C]``."""

    gamma: torch.Tensor
    beta: torch.Tensor
    mean: torch.Tensor
    variance: torch.Tensor

    @torch.no_grad()
    def track(self, mean: torch.Tensor, variance: torch.Tensor, count: int) -> None:
        """Running averages as ``nn.BatchNorm2d`` keeps them."""
        self.mean.lerp_(mean, MOMENTUM)
        self.variance.lerp_(variance * (count / max(1, count - 1)), MOMENTUM)

    def running(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Scale and shift in evaluation mode."""
        scale = self.gamma * torch.rsqrt(self.variance + EPSILON)
        return scale, self.beta - self.mean * scale


class Operators(Protocol):
    """What a batched network is made of; activations are ``[S or 1, N, H, W, C]``."""

    image_channels: int

    def layer(
        self,
        x: torch.Tensor,
        w: torch.Tensor,
        norm: Norm,
        residual: torch.Tensor | None,
        stride: int,
        relu: bool,
        training: bool,
    ) -> torch.Tensor:
        """``relu(batch_norm(conv(x, w)) + residual)``; ``w`` is ``[S, O, I, k, k]``."""


def convolve_each(x: torch.Tensor, w: torch.Tensor, stride: int) -> torch.Tensor:
    """One library convolution per member."""
    padding = w.shape[-1] // 2
    images = x.permute(0, 1, 4, 2, 3)
    shared = x.shape[0] == 1
    outputs = [
        F.conv2d(images[0 if shared else s], w[s], None, stride, padding).permute(0, 2, 3, 1)
        for s in range(w.shape[0])
    ]
    return torch.stack(outputs).contiguous()


class PlainOperators:
    """Plain torch with autograd, on any device."""

    image_channels = 3

    def layer(
        self,
        x: torch.Tensor,
        w: torch.Tensor,
        norm: Norm,
        residual: torch.Tensor | None,
        stride: int,
        relu: bool,
        training: bool,
    ) -> torch.Tensor:
        y = convolve_each(x, w.to(x.dtype), stride)
        if training:
            variance, mean = torch.var_mean(y.float(), (1, 2, 3), correction=0)
            norm.track(mean, variance, y[0, ..., 0].numel())
            scale = norm.gamma * torch.rsqrt(variance + EPSILON)
            shift = norm.beta - mean * scale
        else:
            scale, shift = norm.running()
        out = y.float() * scale[:, None, None, None] + shift[:, None, None, None]
        if residual is not None:
            out = out + residual.float()
        return (torch.relu(out) if relu else out).to(x.dtype)


class ModuleOperators:
    """What ``nn.Conv2d`` and ``nn.BatchNorm2d`` run, member by member: faster on a CPU."""

    image_channels = 3

    def layer(
        self,
        x: torch.Tensor,
        w: torch.Tensor,
        norm: Norm,
        residual: torch.Tensor | None,
        stride: int,
        relu: bool,
        training: bool,
    ) -> torch.Tensor:
        count = len(w)
        images, residuals = _each(x, count), _each(residual, count)
        weights, gammas, betas = (_each(v, count) for v in (w.to(x.dtype), norm.gamma, norm.beta))
        outputs = []
        for s in range(count):
            y = F.batch_norm(
                F.conv2d(images[s].permute(0, 3, 1, 2), weights[s], None, stride, w.shape[-1] // 2),
                norm.mean[s],
                norm.variance[s],
                gammas[s],
                betas[s],
                training,
                MOMENTUM,
                EPSILON,
            )
            if residual is not None:
                y = y + residuals[s].permute(0, 3, 1, 2)
            outputs.append((F.relu(y) if relu else y).permute(0, 2, 3, 1))
        return outputs[0][None] if count == 1 else torch.stack(outputs)


def _each(values: torch.Tensor | None, count: int) -> list[torch.Tensor]:
    """Values of each member; of a single one without a copy, in the backward pass too."""
    if values is None:
        return []
    return [values.squeeze(0)] * count if len(values) == 1 else list(values.unbind())


def taps_first(w: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """``[S, O, I, k, k]`` -> ``[S, k * k, I, O]``."""
    return w.to(dtype).permute(0, 3, 4, 2, 1).flatten(1, 2).contiguous()


@dataclass
class Choice:
    """One way to run a convolution: a tile of the kernel, or None for the library."""

    tile: Any
    milliseconds: float = float("nan")


@dataclass
class ConvEngine:
    """Convolutions of all members and their gradients, by the fastest known way per shape.

    ``measure`` False takes the first tile everywhere, which needs no clock.
    """

    measure: bool = True
    library: bool = True
    tiles: dict[str, list[Any]] = field(default_factory=dict)
    chosen: dict[tuple[Any, ...], Choice] = field(default_factory=dict)
    measured: dict[tuple[Any, ...], list[Choice]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def forward(
        self, x: torch.Tensor, w: torch.Tensor, stride: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Output and its sums and sums of squares ``[S, 2, O]``."""
        from . import kernels

        size = (_out(x.shape[2], stride), _out(x.shape[3], stride))
        packed = taps_first(w, x.dtype)

        def run(tile: Any) -> tuple[torch.Tensor, torch.Tensor]:
            if tile is not None:
                y, sums = kernels.gather(x, packed, size, stride, tile, sums=True)
                assert sums is not None  # asked for
                return y, sums
            y = convolve_each(x, w.to(x.dtype), stride)
            flat = y.flatten(1, 3)
            wide = flat.float()
            return y, torch.stack([wide.sum(1), wide.square().sum(1)], 1)

        return self._best("forward", (x.shape, w.shape, stride), run)

    def input_gradient(
        self, dy: torch.Tensor, w: torch.Tensor, size: tuple[int, int], stride: int
    ) -> torch.Tensor:
        """Gradient of ``x``, ``[S, N, *size, I]``."""
        from . import kernels

        packed = w.to(dy.dtype).permute(0, 3, 4, 1, 2).flatten(1, 2).contiguous()

        def run(tile: Any) -> torch.Tensor:
            if tile is not None:
                return kernels.gather(dy, packed, size, stride, tile, transposed=True)[0]
            images = dy.new_empty(dy.shape[1], *size, w.shape[2]).permute(0, 3, 1, 2)
            narrow = w.to(dy.dtype)
            outputs = [
                _library_gradient(dy[s], images, narrow[s], stride, 0).permute(0, 2, 3, 1)
                for s in range(len(w))
            ]
            return torch.stack(outputs).contiguous()

        return self._best("input", (dy.shape, w.shape, stride), run)

    def weight_gradient(
        self, x: torch.Tensor, dy: torch.Tensor, w: torch.Tensor, stride: int
    ) -> torch.Tensor:
        """Gradient of ``w``, float32 ``[S, O, I, k, k]``."""
        from . import kernels

        kernel = w.shape[-1]

        def run(tile: Any) -> torch.Tensor:
            if tile is not None:
                dw = kernels.weight_gradient(x, dy, kernel, stride, tile)
                return dw.unflatten(1, (kernel, kernel)).permute(0, 4, 3, 1, 2)
            narrow = w.to(dy.dtype)
            outputs = [
                _library_gradient(
                    dy[s], x[0 if len(x) == 1 else s].permute(0, 3, 1, 2), narrow[s], stride, 1
                )
                for s in range(len(w))
            ]
            return torch.stack(outputs).float()

        return self._best("weight", (x.shape, w.shape, stride), run)

    def _best(self, kind: str, shapes: tuple[Any, ...], run: Callable[[Any], Any]) -> Any:
        # The number of images is in the key: the last batch of an evaluation may be a smaller one.
        key = (kind, *(tuple(s) if isinstance(s, torch.Size) else s for s in shapes))
        if key not in self.chosen:
            tiles = self.tiles[kind]
            self.chosen[key] = self._measured(key, run) if self.measure else Choice(tiles[0])
        return run(self.chosen[key].tile)

    def _measured(self, key: tuple[Any, ...], run: Callable[[Any], Any]) -> Choice:
        from . import kernels

        reference = _first(run(None))
        options = [Choice(None, _time(partial(run, None)))] if self.library else []
        for tile in self.tiles[key[0]]:
            try:
                result = _first(run(tile))
            except kernels.TILE_ERRORS as error:
                self.notes.append(f"{key} {tile}: {type(error).__name__}: {str(error)[:200]}")
                continue
            difference = (result.float() - reference.float()).norm() / reference.float().norm()
            if not float(difference) < 2e-2:  # bfloat16 rounds to 2 ** -8
                self.notes.append(f"{key} {tile}: differs from the library by {difference:.2g}")
                continue
            options.append(Choice(tile, _time(partial(run, tile))))
        if not options:
            raise RuntimeError(f"no way to run {key} works: {self.notes[-3:]}")
        self.measured[key] = options
        return min(options, key=lambda choice: choice.milliseconds)


def _library_gradient(
    dy: torch.Tensor, images: torch.Tensor, w: torch.Tensor, stride: int, which: int
) -> torch.Tensor:
    """Gradient of one member's images (``which`` 0) or weight (1); ``dy`` is ``[N, H, W, O]``."""
    w = w.contiguous(memory_format=torch.channels_last)
    pads, wanted = [w.shape[-1] // 2] * 2, [which == 0, which == 1, False]
    found = torch.ops.aten.convolution_backward(
        dy.permute(0, 3, 1, 2),
        images,
        w,
        None,
        [stride] * 2,
        pads,
        [1, 1],
        False,
        [0, 0],
        1,
        wanted,
    )
    return found[which]


def _out(size: int, stride: int) -> int:
    return (size - 1) // stride + 1


def _first(value: Any) -> torch.Tensor:
    return value[0] if isinstance(value, tuple) else value


def _time(run: Callable[[], Any], repeats: int = 5) -> float:
    """Milliseconds of one call on the GPU, after a first call."""
    run()
    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(repeats):
        run()
    stop.record()
    stop.synchronize()
    return float(start.elapsed_time(stop)) / repeats


class _FusedLayer(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        w: torch.Tensor,
        gamma: torch.Tensor,
        beta: torch.Tensor,
        residual: torch.Tensor | None,
        norm: Norm,
        stride: int,
        relu: bool,
        engine: ConvEngine,
    ) -> torch.Tensor:
        from . import kernels

        y, sums = engine.forward(x, w, stride)
        count = y[0, ..., 0].numel()
        mean = sums[:, 0] / count
        variance = (sums[:, 1] / count - mean.square()).clamp_min(0)
        norm.track(mean, variance, count)
        inverse = torch.rsqrt(variance + EPSILON)
        scale = gamma * inverse
        shift = beta - mean * scale
        out = kernels.affine(y, scale, shift, residual, relu)
        ctx.save_for_backward(x, w, gamma, y, out, mean, inverse)
        ctx.settings = (stride, relu, residual is not None, engine)
        return out

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        from . import kernels

        x, w, gamma, y, out, mean, inverse = ctx.saved_tensors
        stride, relu, has_residual, engine = ctx.settings
        grad = grad.contiguous()
        count = y[0, ..., 0].numel()
        sums = kernels.norm_sums(grad, out, y, relu)
        dgamma = (sums[:, 1] - mean * sums[:, 0]) * inverse
        factor = gamma * inverse
        slope = -factor * inverse * dgamma / count
        offset = -factor * sums[:, 0] / count - slope * mean
        dy, dresidual = kernels.norm_gradient(
            grad, out, y, (factor, slope, offset), relu, has_residual
        )
        dx = None
        if ctx.needs_input_grad[0]:
            dx = engine.input_gradient(dy, w, (x.shape[2], x.shape[3]), stride)
        dw = engine.weight_gradient(x, dy, w, stride)
        return dx, dw, dgamma, sums[:, 0], dresidual, None, None, None, None


class FusedOperators:
    """Kernels of :mod:`benchmarks.cifar.kernels`, bfloat16 or float32 activations."""

    image_channels = 16  # a tensor core's shortest reduction

    def __init__(self, measure: bool = True, library: bool = True) -> None:
        from .kernels import Tile

        self.engine = ConvEngine(measure, library)
        gather = [Tile(128, 64, 32), Tile(256, 64, 64, 8), Tile(128, 128, 64, 8)]
        self.engine.tiles = {
            "forward": gather,
            "input": gather,
            "weight": [Tile(64, 64, 64), Tile(128, 64, 64, 8), Tile(256, 16, 64, 8)],
        }

    def layer(
        self,
        x: torch.Tensor,
        w: torch.Tensor,
        norm: Norm,
        residual: torch.Tensor | None,
        stride: int,
        relu: bool,
        training: bool,
    ) -> torch.Tensor:
        from . import kernels

        if w.shape[2] < x.shape[4]:
            w = F.pad(w, (0, 0, 0, 0, 0, x.shape[4] - w.shape[2]))
        if training:
            return _FusedLayer.apply(
                x.contiguous(), w, norm.gamma, norm.beta, residual, norm, stride, relu, self.engine
            )
        y, _ = self.engine.forward(x.contiguous(), w, stride)
        scale, shift = norm.running()
        return kernels.affine(y, scale.contiguous(), shift.contiguous(), residual, relu)
