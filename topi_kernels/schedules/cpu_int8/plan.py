"""Plan one convolution of bytes: fold scales and zero points, choose, pack."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from tvm import tirx

from ...layout import PlaneLayout
from .conv import schedule_int8_conv
from .depthwise import schedule_int8_depthwise
from .isa import for_weights, isa_named
from .layer import Int8Layer
from .packing import PackedWeights, check_sums, chunk_words, pack, row_chunks
from .requantise import ROUNDING
from .task import Int8Task
from .tiling import tiling_of
from .workload import WINDOW, Int8Config, Int8Workload, default_config


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
    bias = layer.folded_bias(isa_named(isa).flip)
    check_sums(layer.weight, bias)
    if config is None:
        config = Int8Task.of(layer, batch, layouts, isa).default_config(group)
    by_rows = config.form == WINDOW
    workload, packed = _filed(layer, batch, layouts, isa, config.group, by_rows=by_rows)
    picks = tiling_of(workload, config, isa_named(workload.isa)).picks()
    order = packed.filter_order
    arrays = [
        *packed.arrays,
        bias.astype(np.int32)[order],
        layer.factors()[order],
        *_constants(layer),
        picks,
    ]
    return Int8Plan(workload, config, packed, arrays, num_threads)


def _filed(
    layer: Int8Layer,
    batch: int,
    layouts: tuple[PlaneLayout, PlaneLayout],
    isa: str,
    group: int | None,
    *,
    by_rows: bool,
) -> tuple[Int8Workload, PackedWeights]:
    """The packed weights and what they are for."""
    packed = pack(layer.weight, layer.structure, group, by_rows=by_rows)
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
        isa=for_weights(isa_named(isa), packed.words).name,
        residual=layer.residual is not None,
        by_rows=by_rows,
        far=layer.is_far(layer.folded_bias(isa_named(isa).flip)),
    )
    return workload, packed


def _constants(layer: Int8Layer) -> list[np.ndarray]:
    """``limits`` and ``zero_points``, see :func:`~topi_kernels.schedules.cpu_int8.conv.declare`."""
    low, high = (ROUNDING + limit - layer.result.zero_point for limit in layer.limits())
    residual = 0 if layer.residual is None else layer.residual.zero_point
    return [
        np.array([low, high, layer.residual_factor()], np.float32),
        np.array([layer.result.zero_point, residual], np.int32),
    ]


@dataclass(frozen=True, eq=False)
class Int8DepthwisePlan:
    """A depthwise convolution of bytes ready to be built."""

    workload: Int8Workload
    config: Int8Config
    arrays: list[np.ndarray]
    num_threads: int

    def primfunc(self) -> tirx.PrimFunc:
        """The scheduled operator; parameters ``(x, *arrays, out)``."""
        return schedule_int8_depthwise(self.workload, self.config, self.num_threads)


def plan_int8_depthwise(
    layer: Int8Layer,
    dims: tuple[int, int],
    layouts: tuple[PlaneLayout, PlaneLayout],
    isa: str,
    *,
    config: Int8Config | None = None,
    num_threads: int = 1,
) -> Int8DepthwisePlan:
    """Choose and pack a depthwise convolution.

    Parameters
    ----------
    layer : Int8Layer
        ``weight`` is ``[out_channels, 1, kh, kw]``; all of it is kept.
    dims : tuple of int
        Batch and in_channels, which divide out_channels.
    layouts, isa, config, num_threads
        See :func:`plan_int8_conv`.

    Raises
    ------
    ValueError
        As :func:`plan_int8_conv`.
    """
    _check(layer)
    if layer.residual is not None:
        raise ValueError("a depthwise convolution of bytes adds no residual; add it afterwards")
    bias = layer.folded_bias(isa_named(isa).flip)
    check_sums(layer.weight, bias)
    chunks = row_chunks(layer.geometry.kernel_size)
    words = np.ascontiguousarray(chunk_words(layer.weight, chunks)[:, :, 0].T).reshape(-1)
    isa = for_weights(isa_named(isa), words).name
    workload = Int8Workload(
        batch=dims[0],
        in_channels=dims[1],
        out_channels=layer.weight.shape[0],
        geometry=layer.geometry,
        in_layout=layouts[0],
        out_layout=layouts[1],
        chunks=chunks,
        group=1,
        groups=layer.weight.shape[0],
        entries=len(words),
        unit_dtype="uint16",
        count_dtype="uint8",
        isa=isa,
        by_rows=True,
        far=layer.is_far(bias),
    )
    config = config or default_config(workload)
    picks = tiling_of(workload, config, isa_named(isa)).picks()
    factors = layer.factors()
    arrays = [words.astype(np.int32), bias.astype(np.int32), factors, *_constants(layer), picks]
    return Int8DepthwisePlan(workload, config, arrays, num_threads)
