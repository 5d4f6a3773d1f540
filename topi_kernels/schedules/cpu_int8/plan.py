"""Plan one convolution of bytes: fold scales and zero points, choose, pack."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from tvm import tirx

from ...geometry import ConvGeometry
from ...layout import PlaneLayout
from ...structure import Structure
from .conv import schedule_int8_conv
from .isa import for_weights, isa_named
from .packing import PackedWeights, check_sums, pack
from .requantise import ROUNDING
from .tile_lines import tiling_of
from .workload import Int8Config, Int8Workload, default_config

LEVELS = 255


@dataclass(frozen=True)
class Quantisation:
    """``real = scale * (byte - zero_point)`` of a tensor of unsigned bytes.

    Raises
    ------
    ValueError
        If the scale is not positive and finite, or the zero point no byte.
    """

    scale: float
    zero_point: int

    def __post_init__(self) -> None:
        if not (np.isfinite(self.scale) and self.scale > 0):
            raise ValueError(f"a scale is positive and finite, got {self.scale}")
        if not 0 <= self.zero_point <= LEVELS:
            raise ValueError(f"a zero point is in 0..{LEVELS}, got {self.zero_point}")


@dataclass(frozen=True, eq=False)
class Int8Layer:
    """One convolution of bytes, before it is planned.

    Parameters
    ----------
    weight : numpy.ndarray
        int8 ``[out_channels, in_channels, kh, kw]``.
    weight_scale : numpy.ndarray
        float32 ``[out_channels]``.
    bias : numpy.ndarray
        float32 ``[out_channels]``, of the real numbers.
    geometry : ConvGeometry
    source, result : Quantisation
    structure : Structure
    low, high : float
        Limits of the real results, such as 0 and infinity for a relu.
    residual : Quantisation, optional
        Of a tensor that is added before the limits.
    """

    weight: np.ndarray
    weight_scale: np.ndarray
    bias: np.ndarray
    geometry: ConvGeometry
    source: Quantisation
    result: Quantisation
    structure: Structure
    low: float = -np.inf
    high: float = np.inf
    residual: Quantisation | None = None

    def folded_bias(self, flip: int = 0) -> np.ndarray:
        """float64 ``[out_channels]``: what the sums begin with, bias and zero point together."""
        unit = self.weight_scale.astype(np.float64) * self.source.scale
        weights = self.weight.astype(np.int64).sum(axis=(1, 2, 3))
        return np.rint(self.bias / unit) - (self.source.zero_point - flip) * weights

    def factors(self) -> np.ndarray:
        """float32 ``[out_channels]``: what the sums are multiplied by."""
        unit = self.weight_scale.astype(np.float64) * self.source.scale
        return (unit / self.result.scale).astype(np.float32)

    def limits(self) -> tuple[int, int]:
        """Least and largest byte of the result."""
        return byte_limits(self.result, self.low, self.high)

    def residual_factor(self) -> np.float32:
        """What residuals are multiplied by."""
        if self.residual is None:
            return np.float32(0)
        return np.float32(self.residual.scale / self.result.scale)


def byte_limits(result: Quantisation, low: float, high: float) -> tuple[int, int]:
    """Bytes that stand for the limits of an activation."""

    def byte(value: float) -> int:
        return int(np.clip(np.rint(value / result.scale) + result.zero_point, 0, LEVELS))

    return byte(low), byte(high)


@dataclass(frozen=True, eq=False)
class Int8Plan:
    """A convolution of bytes ready to be built."""

    workload: Int8Workload
    config: Int8Config
    packed: PackedWeights
    arrays: list[np.ndarray]
    num_threads: int

    def primfunc(self) -> tirx.PrimFunc:
        """The scheduled operator; parameters ``(x, *arrays, [residual], out)``."""
        return schedule_int8_conv(self.workload, self.config, self.num_threads)


def _check(layer: Int8Layer) -> None:
    for name in ("weight_scale", "bias"):
        values = getattr(layer, name)
        if values.shape != (layer.weight.shape[0],):
            raise ValueError(
                f"{name} has one value for each of {layer.weight.shape[0]} filters, got shape"
                f" {values.shape}"
            )
        if not np.isfinite(values).all():
            raise ValueError(f"{name} holds NaN or Inf")
    if not (layer.weight_scale > 0).all():
        raise ValueError("the scales of weights are positive")


def plan_int8_conv(
    layer: Int8Layer,
    batch: int,
    layouts: tuple[PlaneLayout, PlaneLayout],
    isa: str,
    *,
    config: Int8Config | None = None,
    group: int | None = None,
    num_threads: int = 1,
) -> Int8Plan:
    """Choose and pack.

    Parameters
    ----------
    layer : Int8Layer
    batch : int
    layouts : tuple of PlaneLayout
        Of input and output; a residual lies as the output.
    isa : str
        Name of the instructions.
    config : Int8Config, optional
        Default: the level-0 choice.
    group : int, optional
        Filters of a group; default: as many as share what they keep.
    num_threads : int

    Raises
    ------
    ValueError
        On scales, bias or weights that cannot be used, sums that may overflow, or a geometry that
        the instructions have no schedule for.
    """
    _check(layer)
    flip = isa_named(isa).flip
    bias = layer.folded_bias(flip)
    check_sums(layer.weight, bias)
    packed = pack(layer.weight, layer.structure, config.group if config else group)
    isa = for_weights(isa_named(isa), packed.words).name
    workload = Int8Workload(
        batch=batch,
        in_channels=layer.weight.shape[1],
        out_channels=layer.weight.shape[0],
        geometry=layer.geometry,
        in_layout=layouts[0],
        out_layout=layouts[1],
        chunks=packed.chunks,
        group=packed.group,
        groups=packed.groups,
        entries=packed.entries,
        unit_dtype=str(packed.units.dtype),
        count_dtype=str(packed.counts.dtype),
        isa=isa,
        residual=layer.residual is not None,
    )
    config = config or default_config(workload)
    picks = tiling_of(workload, config, isa_named(isa)).picks()
    low, high = (ROUNDING + limit - layer.result.zero_point for limit in layer.limits())
    order = packed.filter_order
    arrays = [
        *packed.arrays,
        bias.astype(np.int32)[order],
        layer.factors()[order],
        np.array([low, high, layer.residual_factor()], np.float32),
        np.array(
            [layer.result.zero_point, layer.residual.zero_point if layer.residual else 0], np.int32
        ),
        picks,
    ]
    return Int8Plan(workload, config, packed, arrays, num_threads)
