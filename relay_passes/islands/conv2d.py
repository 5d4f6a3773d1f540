"""Pattern-sparse and dense convolutions: ``conv2d`` -> ``plane_conv2d``."""

from __future__ import annotations

import math
from dataclasses import asdict, replace
from typing import Any

from tvm import relax
from tvm.ir import Expr, GlobalVar, Var

from topi_kernels.conv_task import ConvTask
from topi_kernels.expected_gain import DENSE, better_dense, expected
from topi_kernels.layout import PlaneLayout
from topi_kernels.layout_choice import ConvNeed
from topi_kernels.operator import ConvPlan

from ..dataflow import array_of, constant, shape_of
from ..markers import ConvParams, Marker, epilogue_tensors, parse, structure_of
from .operator import IslandOperator, Islands, Order, PlaneOp
from .scheduling import Scheduling

NAME = "plane_conv2d"


def conv_on_planes(
    marker: Marker, name: str, order: Order = Order.PLAIN, need: ConvNeed | None = None
) -> PlaneOp:
    """How a convolution marker works on planes: a residual comes as planes too."""
    params = ConvParams.from_dict(marker.params)
    x, weight, *rest = marker.tensors
    residual = rest.pop() if params.epilogue.residual else None

    def build(planes: list[Expr], layouts: list[PlaneLayout], out: PlaneLayout | None) -> Marker:
        where = replace(
            params,
            in_layout=layouts[0],
            out_layout=out,
            residual_layout=None if residual is None else layouts[1],
        )
        return Marker(name, (planes[0], weight, *rest, *planes[1:]), where.to_dict())

    images = (x,) if residual is None else (x, residual)
    return PlaneOp(images, build, (params.pad,), order=order, need=need)


#: By how much an output may be smaller than its input, for its pixels to lie in any order.
_ORDERS = {(1, 1): Order.SAME, (2, 2): Order.STRIDED}


def _order(marker: Marker, out: Expr) -> tuple[Order, ConvNeed | None]:
    """What the convolution asks of its pixels: stride 1 and 2 without loss at the edges: little."""
    x, weight = marker.tensors[:2]
    geometry = ConvParams.from_dict(marker.params).geometry
    order = _ORDERS.get(geometry.stride, Order.PLAIN)
    sizes = zip(shape_of(x)[2:], shape_of(out)[2:], geometry.stride, strict=True)
    whole = all(-(-extent // step) == result for extent, result, step in sizes)
    if order is Order.PLAIN or not whole or constant(weight) is None:
        return Order.PLAIN, None
    out_channels, in_channels = shape_of(weight)[:2]
    return order, ConvNeed(geometry, (out_channels, in_channels), structure_of(marker), 0)


def recognize(value: Expr, out: Expr) -> PlaneOp | None:
    """A ``conv2d`` marker."""
    marker = parse(value)
    if marker is None or marker.op != "conv2d":
        return None
    return conv_on_planes(marker, NAME, *_order(marker, out))


def plan_of(marker: Marker, scheduling: Scheduling) -> ConvPlan:
    """Plan of a ``plane_conv2d`` marker, with the tuned config if there is one.

    Without one, a layer that is expected to be slower than with all of its weights gets them.
    """
    backend, weight = scheduling.backend, array_of(marker.tensors[1])
    structure = structure_of(marker)
    params = ConvParams.from_dict(marker.params)
    batch = shape_of(marker.tensors[0])[0]
    task = params.task(weight, batch, backend.name, structure, winograd=backend.winograd)
    config = scheduling.config_for(task)
    whole = better_dense(task, _own_weights(task, scheduling, params.layer))
    if config is None and whole is not None:
        task = whole
    return backend.plan(task, weight, config, structure)


def _own_weights(task: ConvTask, scheduling: Scheduling, layer: str) -> int:
    """Weights of the layer that a task stands for, which may be fewer than the task has kernels."""
    every = math.prod(task.weight_shape)
    density = 1.0 - scheduling.report.row(layer).sparsity
    return min(every, round(task.kept_weights / density)) if density > 0 else every


def _expectation(plan: ConvPlan, scheduling: Scheduling, layer: str) -> dict[str, Any]:
    """What the report says of a plan's estimated time."""
    task = plan.task
    row = scheduling.report.row(layer)
    if task.structure == DENSE and plan.structure.kind != DENSE:
        loss = f"expected to be slower pruned than dense: {row.sparsity:.0%} of the weights are"
        return {
            "reason": f"{loss} removed, which is too little here; all are computed",
            "expected_cost": task.cost(plan.config),
            "expected_gain": 1.0,
            "effective_gflop": row.dense_equivalent_gflop,
        }
    found = expected(task, plan.config, _own_weights(task, scheduling, layer))
    if found is None:
        return {}
    return {"expected_cost": found.cost, "expected_gain": found.gain}


def record(plan: ConvPlan, marker: Marker, scheduling: Scheduling) -> None:
    """Say in the report how a layer is computed."""
    scheduling.report.update(
        marker.params["layer"],
        pattern_set=tuple(str(p) for p in plan.workload.patterns),
        group=plan.group,
        config=asdict(plan.config),
        **_expectation(plan, scheduling, marker.params["layer"]),
    )


def lower(marker: Marker, _out: Var, scheduling: Scheduling) -> tuple[GlobalVar, list[Expr]]:
    """The planned convolution with its packed weights; its row of the report says the choice."""
    plan = plan_of(marker, scheduling)
    make = plan.naive_primfunc if scheduling.naive else plan.primfunc
    gv = scheduling.function((plan.workload, plan.config), make)
    record(plan, marker, scheduling)
    constants = (relax.const(array) for array in plan.arrays)
    return gv, [marker.tensors[0], *constants, *epilogue_tensors(marker)]


def register(islands: Islands) -> None:
    """Add the operator."""
    islands.add(IslandOperator(NAME, lower, recognize, starts=True))
