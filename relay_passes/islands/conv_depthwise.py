"""A convolution whose planes one depthwise convolution alone reads: both become one operator.

That is done on processors where the planes between them exceed L2; their halves would each wait for
the memory. What was measured stands in ``docs/performance.md``.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from tvm import relax
from tvm.ir import Call, Var

from topi_kernels.operator import ConvPlan
from topi_kernels.schedules.choose import vector_facts
from topi_kernels.schedules.conv_depthwise import (
    DepthwiseStage,
    groups_together,
    schedule_conv_depthwise,
    why_not_followed,
)

from ..dataflow import Uses, array_of, shape_of
from ..markers import ConvParams, Marker, epilogue_tensors, layout_from_list, parse
from . import conv2d, depthwise
from .scheduling import Scheduling

#: What the report says of such a convolution.
TOGETHER = "computed together with the depthwise layer that alone reads it"
# How much dearer than the best configuration one may be that computes a filter's planes at once.
MOST_DEARER = 1.25


def pairs_of(
    block: Sequence[relax.Binding], uses: Uses, scheduling: Scheduling
) -> dict[Var, relax.Binding]:
    """Convolutions of a block that could go on in a depthwise one, with the binding of that."""
    family = None if scheduling.naive else vector_facts(scheduling.backend.facts)
    if family is None:
        return {}
    markers = {binding.var: parse(binding.value) for binding in block}
    found = {}
    for binding in block:
        marker = markers[binding.var]
        if marker is None or marker.op != depthwise.NAME:
            continue
        source = marker.tensors[0]
        before = markers.get(source) if isinstance(source, Var) else None
        if before is None or before.op != conv2d.NAME or uses.sole_user(source) is None:
            continue
        (_, channels, plane), followed = shape_of(source), shape_of(binding.var)[1]
        if channels == followed and channels * plane > family.l2_floats:
            found[source] = binding
    return found


def _followable(marker: Marker, scheduling: Scheduling) -> ConvPlan | None:
    """The plan of a convolution that another may follow plane by plane, if one is good enough."""
    plan = conv2d.plan_of(marker, scheduling)
    if why_not_followed(plan.workload, plan.config) is None:
        return plan
    task = plan.task
    if scheduling.config_for(task) is not None:
        return None
    most = MOST_DEARER * task.cost(plan.config)
    fitting = [
        config
        for config in task.configs()
        if why_not_followed(plan.workload, config) is None and task.cost(config) <= most
    ]
    if not fitting:
        return None
    best = min(fitting, key=task.cost)
    weight, structure = array_of(marker.tensors[1]), plan.structure
    return scheduling.backend.plan(task, weight, best, structure)


def lower(conv: Marker, follower: relax.Binding, scheduling: Scheduling) -> Call | None:
    """The call that computes a convolution and the depthwise one after it; None if it would lose.

    Parameters
    ----------
    conv : Marker
    follower : relax.Binding
        Of the depthwise convolution.
    scheduling : Scheduling
    """
    family = vector_facts(scheduling.backend.facts)
    plan = _followable(conv, scheduling)
    second = parse(follower.value)
    if plan is None or second is None or family is None:
        return None
    params = ConvParams.from_dict(second.params)
    out_layout = layout_from_list(second.params["out_layout"])
    stage = DepthwiseStage(params.geometry, out_layout, params.epilogue)
    target = scheduling.backend.planes(plan.workload.dtype)
    together = groups_together(plan.workload, plan.group, family, target.num_threads)
    gv = scheduling.function(
        (plan.workload, plan.config, stage),
        lambda: schedule_conv_depthwise(plan.workload, plan.config, stage, target, together),
    )
    conv2d.record(plan, conv, scheduling)
    scheduling.report.update(conv.params["layer"], reason=TOGETHER)
    _, weight, *bias = second.tensors
    kernels = relax.const(np.ascontiguousarray(array_of(weight)[:, 0]))
    packed = (relax.const(array) for array in plan.arrays)
    arguments = [conv.tensors[0], *packed, *epilogue_tensors(conv), kernels, *bias]
    out = follower.var
    return scheduling.builder.normalize(relax.call_tir(gv, arguments, out_ty=out.ty))
