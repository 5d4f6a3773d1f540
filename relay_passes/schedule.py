"""Schedule: ``plane_*`` markers -> calls of scheduled PrimFuncs with packed constants.

Preconditions: PlaneLayout has run. Layers with equal workload and config share one PrimFunc, so a
network that repeats a layer compiles it once. No marker is left afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import asdict
from typing import Any

import numpy as np
import tvm
from tvm import relax, tirx
from tvm.ir import Call, Expr, GlobalVar, Var

from topi_kernels import plane_operators
from topi_kernels.backend import Backend
from topi_kernels.conv_task import ConvTask
from topi_kernels.geometry import ConvGeometry
from topi_kernels.operator import ConvPlan
from topi_kernels.plane_ops import PlaneTarget

from .dataflow import array_of, bindings_of, rebuild, relax_functions, shape_of
from .markers import (
    ConvParams,
    Marker,
    epilogue_tensors,
    layout_from_list,
    parse,
    structure_of,
)
from .report import ReportBuilder

#: Tuned config of a task, or None for the default.
ConfigFor = Callable[[ConvTask], Any]


def no_records(_task: ConvTask) -> None:
    """The lookup that knows no tuned config."""


def plan_marker(
    marker: Marker, batch: int, backend: Backend, config_for: ConfigFor = no_records
) -> ConvPlan:
    """Plan of a ``plane_conv2d`` marker, with the tuned config if there is one."""
    weight, structure = array_of(marker.tensors[1]), structure_of(marker)
    params = ConvParams.from_dict(marker.params)
    task = params.task(weight, batch, backend.name, structure)
    return backend.plan(task, weight, config_for(task), structure)


class _Scheduler:
    def __init__(
        self,
        mod: tvm.IRModule,
        backend: Backend,
        config_for: ConfigFor,
        report: ReportBuilder,
    ) -> None:
        self.builder = relax.BlockBuilder(mod)
        self.backend = backend
        self.config_for = config_for
        self.report = report
        self.functions: dict[Hashable, GlobalVar] = {}

    def function(self, key: Hashable, make: Callable[[], tirx.PrimFunc]) -> GlobalVar:
        """The module's function for ``key``; made and added at its first use."""
        if key not in self.functions:
            primfunc = make()
            name = str(dict(primfunc.attrs)["global_symbol"])
            anonymous = primfunc.without_attr("global_symbol")
            self.functions[key] = self.builder.add_func(anonymous, name)
        return self.functions[key]

    def lower(self, marker: Marker, out: Var) -> Call:
        """The call that replaces a marker bound to ``out``."""
        if marker.op == "plane_conv2d":
            gv, args = self.conv(marker)
        elif marker.op == "plane_depthwise":
            gv, args = self.depthwise(marker, out)
        elif marker.op in _PLANE_OPS:
            batch, channels = shape_of(out)[:2]
            target = self.backend.planes(str(out.ty.dtype))
            key = (marker.op, batch, channels, target, repr(marker.params))
            make = _PLANE_OPS[marker.op]
            gv = self.function(key, lambda: make((batch, channels), marker, target))
            args = list(marker.tensors)
        else:
            raise ValueError(
                f"the marker {marker.op!r} cannot be scheduled; expected one of"
                f" {sorted([*_PLANE_OPS, 'plane_conv2d', 'plane_depthwise'])}: run PlaneLayout"
                " before"
            )
        return self.builder.normalize(relax.call_tir(gv, args, out_ty=out.ty))

    def conv(self, marker: Marker) -> tuple[GlobalVar, list[Expr]]:
        x = marker.tensors[0]
        plan = plan_marker(marker, shape_of(x)[0], self.backend, self.config_for)
        gv = self.function((plan.workload, plan.config), plan.primfunc)
        config = asdict(plan.config) if hasattr(plan.config, "__dataclass_fields__") else {}
        self.report.update(
            marker.params["layer"],
            pattern_set=tuple(str(p) for p in plan.workload.patterns),
            group=plan.group,
            config=config,
        )
        constants = (relax.const(array) for array in plan.arrays)
        return gv, [x, *constants, *epilogue_tensors(marker)]

    def depthwise(self, marker: Marker, out: Var) -> tuple[GlobalVar, list[Expr]]:
        params = ConvParams.from_dict(marker.params)
        in_layout = layout_from_list(marker.params["in_layout"])
        out_layout = layout_from_list(marker.params["out_layout"])
        x, weight, *bias = marker.tensors
        value = array_of(weight)
        (batch, in_channels), channels = shape_of(x)[:2], shape_of(out)[1]
        target = self.backend.planes(str(value.dtype))
        window, epilogue = params.geometry, params.epilogue
        key = (batch, channels, window, target, in_layout, out_layout, epilogue)

        def make() -> tirx.PrimFunc:
            return plane_operators.depthwise_conv(
                batch,
                channels,
                in_layout,
                out_layout,
                window,
                target,
                bias=epilogue.bias,
                activation=epilogue.activation,
                multiplier=channels // in_channels,
            )

        gv = self.function(("plane_depthwise", in_channels, key), make)
        return gv, [x, relax.const(np.ascontiguousarray(value[:, 0])), *bias]


Dims = tuple[int, int]


def _pack(dims: Dims, marker: Marker, target: PlaneTarget) -> tirx.PrimFunc:
    return plane_operators.pack(*dims, layout_from_list(marker.params["out_layout"]), target)


def _unpack(dims: Dims, marker: Marker, target: PlaneTarget) -> tirx.PrimFunc:
    return plane_operators.unpack(*dims, layout_from_list(marker.params["in_layout"]), target)


def _elementwise(dims: Dims, marker: Marker, target: PlaneTarget) -> tirx.PrimFunc:
    params = marker.params
    return plane_operators.elementwise(
        *dims,
        tuple(layout_from_list(values) for values in params["in_layouts"]),
        layout_from_list(params["out_layout"]),
        target,
        params["operator"],
        params["activation"],
        tuple(params["bounds"]),
    )


def _pool(dims: Dims, marker: Marker, target: PlaneTarget) -> tirx.PrimFunc:
    params = marker.params
    window = ConvGeometry.from_dict(params["window"])
    layouts = (layout_from_list(params["in_layout"]), layout_from_list(params["out_layout"]))
    if marker.op == "plane_max_pool":
        return plane_operators.max_pool(*dims, *layouts, window, target)
    include_pad = params["count_include_pad"]
    return plane_operators.avg_pool(*dims, *layouts, window, target, include_pad)


def _global_pool(dims: Dims, marker: Marker, target: PlaneTarget) -> tirx.PrimFunc:
    layout = layout_from_list(marker.params["in_layout"])
    return plane_operators.global_avg_pool(*dims, layout, target, marker.params["keep_dims"])


_PLANE_OPS = {
    "plane_pack": _pack,
    "plane_unpack": _unpack,
    "plane_elementwise": _elementwise,
    "plane_max_pool": _pool,
    "plane_avg_pool": _pool,
    "plane_global_pool": _global_pool,
}


@tvm.transform.module_pass(opt_level=0, name="Schedule")
class Schedule:
    """``plane_*`` markers -> ``call_tir`` of scheduled PrimFuncs.

    Parameters
    ----------
    backend : Backend
        Device and threads to schedule for.
    report : ReportBuilder
        Receives pattern set, group and config of every convolution.
    config_for : callable, optional
        ``ConvTask -> config or None``: tuned configs.
    """

    def __init__(
        self, backend: Backend, report: ReportBuilder, config_for: ConfigFor = no_records
    ) -> None:
        self.backend = backend
        self.report = report
        self.config_for = config_for

    def transform_module(self, mod: tvm.IRModule, _ctx: tvm.transform.PassContext) -> tvm.IRModule:
        scheduler = _Scheduler(mod, self.backend, self.config_for, self.report)
        for gv, func in relax_functions(mod):
            blocks = []
            for block in bindings_of(func):
                for i, binding in enumerate(block):
                    marker = parse(binding.value)
                    if marker is not None:
                        call = scheduler.lower(marker, binding.var)
                        block[i] = relax.VarBinding(binding.var, call)
                blocks.append(block)
            scheduler.builder.update_func(gv, rebuild(func, blocks))
        return scheduler.builder.get()
