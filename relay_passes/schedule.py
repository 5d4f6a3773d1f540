"""Schedule: ``plane_*`` markers -> calls of scheduled PrimFuncs with packed constants.

Preconditions: PlaneLayout has run. What a marker becomes is said by its operator, see
:mod:`relay_passes.islands`. Layers with equal workload and config share one PrimFunc, so a network
that repeats a layer compiles it once. No marker is left afterwards.
"""

from __future__ import annotations

import tvm
from tvm import relax
from tvm.ir import Call, Var

from topi_kernels.backend import Backend

from .dataflow import Uses, bindings_of, rebuild, relax_functions
from .islands import ISLANDS, conv_depthwise
from .islands.scheduling import ConfigFor, Scheduling, no_records
from .markers import Marker, parse
from .report import ReportBuilder


def _lowered(marker: Marker, out: Var, scheduling: Scheduling) -> Call:
    """The call that replaces a marker bound to ``out``."""
    gv, args = ISLANDS.named(marker.op).lower(marker, out, scheduling)
    return scheduling.builder.normalize(relax.call_tir(gv, args, out_ty=out.ty))


def _lowered_block(
    block: list[relax.Binding], uses: Uses, scheduling: Scheduling
) -> list[relax.Binding]:
    """The bindings of a block with calls instead of markers."""
    pairs = conv_depthwise.pairs_of(block, uses, scheduling)
    calls: dict[Var, Call] = {}
    result = []
    for binding in block:
        marker = parse(binding.value)
        if marker is None:
            result.append(binding)  # as it is: it may cast to a type that its value does not have
            continue
        follower = pairs.get(binding.var)
        if follower is not None:
            call = conv_depthwise.lower(marker, follower, scheduling)
            if call is not None:
                calls[follower.var] = call
                continue
        call = calls.get(binding.var)
        if call is None:
            call = _lowered(marker, binding.var, scheduling)
        result.append(relax.VarBinding(binding.var, call))
    return result


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
    naive : bool
        Every operator as :mod:`topi_kernels.compute` specifies it, to compare with.
    """

    def __init__(
        self,
        backend: Backend,
        report: ReportBuilder,
        config_for: ConfigFor = no_records,
        *,
        naive: bool = False,
    ) -> None:
        self.backend = backend
        self.report = report
        self.config_for = config_for
        self.naive = naive

    def transform_module(self, mod: tvm.IRModule, _ctx: tvm.transform.PassContext) -> tvm.IRModule:
        scheduling = Scheduling(mod, self.backend, self.report, self.config_for, naive=self.naive)
        for gv, func in relax_functions(mod):
            uses = Uses(func)
            blocks = [_lowered_block(block, uses, scheduling) for block in bindings_of(func)]
            scheduling.builder.update_func(gv, rebuild(func, blocks))
        return scheduling.builder.get()
