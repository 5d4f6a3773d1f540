"""Workload: the frozen description of one convolution that schedules, tuner and records share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from .gemm_weights import GemmCode
from .geometry import ConvGeometry
from .layout import PlaneLayout
from .pattern import Pattern
from .tap_lists import TapCode

Activation = Literal["none", "relu", "relu6", "hardswish", "silu", "gelu", "gelu_tanh", "mish"]
ACTIVATIONS: tuple[Activation, ...] = get_args(Activation)
DTYPES = ("float32", "float16")


@dataclass(frozen=True)
class Epilogue:
    """What is applied to an output before its only store: ``act(conv + bias + residual)``."""

    bias: bool = False
    residual: bool = False
    activation: Activation = "none"

    def __post_init__(self) -> None:
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"activation {self.activation!r}: expected one of {ACTIVATIONS}")


NO_EPILOGUE = Epilogue()


@dataclass(frozen=True)
class ConvWorkload:
    """Shapes, dtype, sparsity facts and epilogue of one 2-D convolution on planes.

    Parameters
    ----------
    batch, in_channels, out_channels : int
    geometry : ConvGeometry
    in_layout, out_layout : PlaneLayout
        Input and output geometry. The residual has ``residual_layout``.
    patterns : tuple of Pattern
        The distinct patterns of the layer in FKW order; a dense layer has the one full pattern.
    group : int
        Filters of a filter_group: they share kernels and patterns.
    num_kernels : int
        Kept kernels, counted once per filter_group.
    num_weights : int
        Stored weights, empty filter slots included.
    num_slots : int
        Filter slots: ``out_channels`` plus the empty slots of incomplete filter_groups.
    structure, index_encoding, count_dtype : str
        How FKW stores the layer, see :mod:`topi_kernels.fkw`.
    tap_code : TapCode or None
        Of a layer that is stored as tap lists instead, see :mod:`topi_kernels.tap_lists`; its
        ``num_kernels`` are entries.
    gemm_code : GemmCode or None
        Of a dense layer that is stored as matrices, see :mod:`topi_kernels.gemm_weights`.
    """

    batch: int
    in_channels: int
    out_channels: int
    geometry: ConvGeometry
    in_layout: PlaneLayout
    out_layout: PlaneLayout
    patterns: tuple[Pattern, ...]
    group: int
    num_kernels: int
    num_weights: int
    num_slots: int
    structure: str
    index_encoding: str
    count_dtype: str
    epilogue: Epilogue = NO_EPILOGUE
    residual_layout: PlaneLayout | None = None
    dtype: str = "float32"
    tap_code: TapCode | None = None
    gemm_code: GemmCode | None = None

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype {self.dtype!r}: expected one of {DTYPES}")
        if self.epilogue.residual and self.residual_layout is None:
            raise ValueError("an epilogue with a residual needs residual_layout")
        if reason := self.in_layout.lacks(*self.geometry.padding):
            raise ValueError(reason)

    @property
    def num_groups(self) -> int:
        return self.num_slots // self.group

    @property
    def effective_flops(self) -> int:
        """Floating point operations on stored weights, without the empty slots of groups."""
        pixels = self.out_layout.height * self.out_layout.width
        if self.gemm_code is not None:
            kh, kw = self.geometry.kernel_size
            return 2 * self.batch * self.out_channels * self.in_channels * kh * kw * pixels
        share = self.out_channels / self.num_slots
        return round(2 * self.batch * self.num_weights * share * pixels)
