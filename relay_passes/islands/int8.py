"""Operators on planes of bytes; :mod:`relay_passes.quantised` puts them into a module.

========================= =========================================== =============================
marker                    tensors                                     parameters
========================= =========================================== =============================
int8_conv2d, depthwise    planes, weight, scales, bias, kept[, added] layer, geometry, bounds, ...
int8_add, int8_max_pool   planes[, planes]                            limits; window
int8_global_pool          planes                                      keep_dims
int8_matvec               rows, weight, scales                        layer
int8_quantize, dequantize image; planes                               layout
========================= =========================================== =============================

Scales and zero points are parameters: ``sources`` of the planes that are read, ``result``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm import relax, tirx
from tvm.ir import Expr, GlobalVar, Var

from topi_kernels.backend import Backend
from topi_kernels.geometry import ConvGeometry
from topi_kernels.layout import PlaneLayout
from topi_kernels.schedules.cpu_int8 import planes
from topi_kernels.schedules.cpu_int8.matvec import plan_int8_matvec
from topi_kernels.schedules.cpu_int8.plan import (
    Int8Layer,
    plan_int8_conv,
    plan_int8_depthwise,
)
from topi_kernels.schedules.cpu_int8.quantisation import Quantisation
from topi_kernels.schedules.cpu_int8.task import Int8Task
from topi_kernels.structure import Structure

from ..dataflow import array_of, shape_of
from ..markers import Marker, layout_from_list
from .operator import IslandOperator, Islands
from .scheduling import Scheduling

CONV = "int8_conv2d"
DEPTHWISE = "int8_depthwise"
MATVEC = "int8_matvec"
ADD = "int8_add"
MAX_POOL = "int8_max_pool"
GLOBAL_POOL = "int8_global_pool"
QUANTIZE = "int8_quantize"
DEQUANTIZE = "int8_dequantize"


def _sources(marker: Marker) -> list[Quantisation]:
    return [Quantisation(**values) for values in marker.params["sources"]]


def layer_of(marker: Marker) -> Int8Layer:
    """The convolution that a marker describes."""
    weight, scales, bias, bits = (array_of(tensor) for tensor in marker.tensors[1:5])
    source, *residual = _sources(marker)
    params = marker.params
    return Int8Layer(
        weight=weight,
        weight_scale=scales,
        bias=bias,
        geometry=ConvGeometry.from_dict(params["geometry"]),
        source=source,
        result=Quantisation(**params["result"]),
        structure=Structure.from_bits(bits, weight.shape, params["structure"]),
        low=params["bounds"][0],
        high=params["bounds"][1],
        residual=residual[0] if residual else None,
    )


def _layouts(marker: Marker) -> tuple[PlaneLayout, PlaneLayout]:
    source, result = (layout_from_list(marker.params[n]) for n in ("in_layout", "out_layout"))
    return source, result


def task_of(marker: Marker, layer: Int8Layer, backend: Backend) -> Int8Task:
    """The task of a marker of :data:`CONV` or :data:`DEPTHWISE`, and of its layer."""
    batch, channels = shape_of(marker.tensors[0])[:2]
    layouts, where = _layouts(marker), (backend.int8, backend.name)
    if marker.op == DEPTHWISE:
        return Int8Task.of_depthwise(layer, (batch, channels), layouts, *where)
    return Int8Task.of(layer, batch, layouts, *where)


def lower_conv(marker: Marker, _out: Var, scheduling: Scheduling) -> tuple[GlobalVar, list[Expr]]:
    """The planned convolution with its packed weights; its row of the report says the choice."""
    backend, layer, x = scheduling.backend, layer_of(marker), marker.tensors[0]
    task = task_of(marker, layer, backend)
    plan = plan_int8_conv(
        layer,
        task.batch,
        _layouts(marker),
        backend.int8,
        config=scheduling.config_for(task) or task.default_config(),
        num_threads=backend.num_threads,
    )
    gv = scheduling.function((plan.workload, plan.config), plan.primfunc)
    by_pattern = layer.structure.kind == "pattern" and not plan.workload.by_rows
    scheduling.report.update(
        marker.params["layer"],
        pattern_set=tuple(map(str, layer.structure.tap_sets)) if by_pattern else (),
        group=plan.packed.group,
        config={**plan.config.as_dict(), "isa": plan.workload.isa},
    )
    constants = [relax.const(array) for array in plan.arrays]
    return gv, [x, *constants, *marker.tensors[5:]]


def lower_depthwise(
    marker: Marker, _out: Var, scheduling: Scheduling
) -> tuple[GlobalVar, list[Expr]]:
    """The planned depthwise convolution with its words."""
    backend, layer, x = scheduling.backend, layer_of(marker), marker.tensors[0]
    task = task_of(marker, layer, backend)
    plan = plan_int8_depthwise(
        layer,
        (task.batch, task.in_channels),
        _layouts(marker),
        backend.int8,
        config=scheduling.config_for(task),
        num_threads=backend.num_threads,
    )
    gv = scheduling.function((DEPTHWISE, plan.workload, plan.config), plan.primfunc)
    scheduling.report.update(
        marker.params["layer"],
        config={**plan.config.as_dict(), "isa": plan.workload.isa},
    )
    return gv, [x, *(relax.const(array) for array in plan.arrays)]


def lower_matvec(marker: Marker, _out: Var, scheduling: Scheduling) -> tuple[GlobalVar, list[Expr]]:
    """The packed matrix."""
    x, weight, scales = marker.tensors
    backend = scheduling.backend
    plan = plan_int8_matvec(
        array_of(weight),
        array_of(scales),
        _sources(marker)[0],
        shape_of(x)[0],
        backend.int8,
        backend.num_threads,
    )
    key = (MATVEC, plan.rows, plan.k, plan.n, plan.source, plan.isa)
    gv = scheduling.function(key, plan.primfunc)
    scheduling.report.update(marker.params["layer"], config={"isa": plan.isa})
    return gv, [x, *(relax.const(array) for array in plan.arrays)]


Make = Callable[[Marker, tuple[int, int], Any], tirx.PrimFunc]


def _quantize(marker: Marker, dims: tuple[int, int], target: Any) -> tirx.PrimFunc:
    layout = layout_from_list(marker.params["layout"])
    return planes.quantise(*dims, layout, target, Quantisation(**marker.params["result"]))


def _dequantize(marker: Marker, dims: tuple[int, int], target: Any) -> tirx.PrimFunc:
    layout = layout_from_list(marker.params["layout"])
    return planes.dequantise(*dims, layout, target, Quantisation(**marker.params["source"]))


def _add(marker: Marker, dims: tuple[int, int], target: Any) -> tirx.PrimFunc:
    low, high = marker.params["limits"]
    return planes.add(
        *dims,
        layout_from_list(marker.params["out_layout"]),
        target,
        tuple(_sources(marker)),
        Quantisation(**marker.params["result"]),
        (low, high),
    )


def _max_pool(marker: Marker, dims: tuple[int, int], target: Any) -> tirx.PrimFunc:
    layouts = [layout_from_list(marker.params[name]) for name in ("in_layout", "out_layout")]
    window = ConvGeometry.from_dict(marker.params["window"])
    zero_point = Quantisation(**marker.params["result"]).zero_point
    return planes.max_pool(*dims, (layouts[0], layouts[1]), target, window, zero_point)


def _global_pool(marker: Marker, dims: tuple[int, int], target: Any) -> tirx.PrimFunc:
    layout = layout_from_list(marker.params["in_layout"])
    keep_dims = bool(marker.params["keep_dims"])
    return planes.global_avg_pool(*dims, layout, target, _sources(marker)[0], keep_dims=keep_dims)


def _on_bytes(name: str, make: Make) -> IslandOperator:
    """An operator whose PrimFunc takes the marker's tensors."""

    def lower(marker: Marker, out: Var, scheduling: Scheduling) -> tuple[GlobalVar, list[Expr]]:
        batch, channels = shape_of(out)[:2]
        target = scheduling.backend.planes()
        key = (name, batch, channels, target, repr(marker.params))
        gv = scheduling.function(key, lambda: make(marker, (batch, channels), target))
        return gv, list(marker.tensors)

    return IslandOperator(name, lower)


def register(islands: Islands) -> None:
    """Add all of them."""
    islands.add(IslandOperator(CONV, lower_conv))
    islands.add(IslandOperator(DEPTHWISE, lower_depthwise))
    islands.add(IslandOperator(MATVEC, lower_matvec))
    for name, make in (
        (ADD, _add),
        (MAX_POOL, _max_pool),
        (GLOBAL_POOL, _global_pool),
        (QUANTIZE, _quantize),
        (DEQUANTIZE, _dequantize),
    ):
        islands.add(_on_bytes(name, make))
