"""The list of passes, and its registration as the Relax pipeline ``pattern_sparse``."""

from __future__ import annotations

from collections.abc import Mapping

import tvm
from tvm import relax
from tvm.ir.transform import Pass
from tvm.target import Target

from topi_kernels.backend import Backend
from topi_kernels.report import RewriteReport
from topi_kernels.structure import Structure

from .center_norms import CenterNorms
from .fold_affine import FoldAffine
from .fold_batch_norm import FoldBatchNorm
from .fold_constants import FoldConstants
from .fuse_channelwise import FuseChannelwise
from .fuse_epilogue import FuseEpilogue
from .into_dataflow import IntoDataflow
from .islands.scheduling import ConfigFor, no_records
from .keep_nan import KeepNaN
from .lift_to_2d import LiftTo2D
from .lower_matmul import LowerMatmul
from .name_layers import NameLayers
from .pattern_rewrite import PatternRewrite
from .plane_layout import PlaneLayout
from .quantised import QuantisedIslands
from .recognize_activations import RecognizeActivations
from .report import ReportBuilder
from .schedule import Schedule
from .select_channels import SelectChannels
from .strides_to_channels import StridesToChannels
from .targets import resolve
from .transposed_by_phases import Origin, TransposedByPhases
from .vector_rows import VectorRows
from .widen_half import WidenHalf

PIPELINE = "pattern_sparse"
#: Module attribute in which the pipeline leaves its report.
REPORT_ATTRIBUTE = f"{PIPELINE}.report"


def normalize_passes() -> list[Pass]:
    """Constants and tuples out of the way, batch norms and factors folded, activations named."""
    return [
        FoldConstants(),
        LiftTo2D(),
        FoldBatchNorm(),
        RecognizeActivations(),
        FoldAffine(),
    ]


def marker_passes(
    backend: Backend,
    report: ReportBuilder,
    structures: Mapping[str, Structure] | None = None,
) -> list[Pass]:
    """From Relax operators to ``plane_*`` markers: what a choice of configurations starts from.

    The one list that compiling and tuning share, so that the tuner measures the convolutions that
    the compiler asks for. A device without schedules gets its convolutions reported and left to
    TVM.
    """
    if reason := backend.why_not():
        return [IntoDataflow(), PatternRewrite(report, reason)]
    origins: dict[str, Origin] = {}
    on_processor = backend.device_kind == "cpu"
    return [
        IntoDataflow(),
        QuantisedIslands(backend, report, structures),
        LowerMatmul(backend.planes(), report=report, structures=structures),
        *normalize_passes(),
        StridesToChannels(origins, structures or ()),
        TransposedByPhases(origins, on_planes=on_processor),
        PatternRewrite(report, structures=structures, backend=backend, origins=origins),
        FuseEpilogue(),
        FuseChannelwise(),
        *([SelectChannels()] if on_processor else []),
        NameLayers(),
        PlaneLayout(backend.layout_for, backend.lane_orders_for),
    ]


def sparse_passes(
    backend: Backend,
    report: ReportBuilder,
    config_for: ConfigFor = no_records,
    structures: Mapping[str, Structure] | None = None,
) -> list[Pass]:
    """Every pass of this project for a device, in order; the device's own come last."""
    passes = marker_passes(backend, report, structures)
    if not backend.why_not():
        passes.append(Schedule(backend, report, config_for))
        if backend.device_kind == "cpu":
            passes.append(VectorRows(backend))
    return [CenterNorms(), *passes, WidenHalf(), *backend.passes()]


def lower(
    mod: tvm.IRModule,
    target: str | dict | Target,
    *,
    num_threads: int | None = None,
    config_for: ConfigFor = no_records,
    structures: Mapping[str, Structure] | None = None,
    interleaved_lanes: bool | None = None,
    winograd: bool = True,
) -> tuple[tvm.IRModule, RewriteReport]:
    """Rewrite a module for ``target``; what this project does not take is legalised by TVM.

    Build the result with ``tvm.compile(result, target)``.

    Parameters
    ----------
    mod : tvm.IRModule
        Relax module with its parameters bound as constants; it is not changed.
    target : str, dict or tvm.target.Target
        See :func:`relay_passes.targets.resolve`.
    num_threads : int, optional
        Threads to schedule for; 1 gives serial code. Default: the target's ``num-cores``.
    config_for : callable, optional
        ``ConvTask -> config or None``; None means the default config.
    structures : mapping, optional
        What the pruner assigned, by the name of the variable of a convolution; the others are
        analysed.
    interleaved_lanes : bool, optional
        Let tensors have interleaved lanes where the cost model expects a gain, see
        :mod:`topi_kernels.layout`. Default: on devices where that was measured.
    winograd : bool
        Let dense 3x3 layers be computed by Winograd's filtering where the cost model expects a
        gain, see :mod:`topi_kernels.winograd`.

    Returns
    -------
    tuple of (tvm.IRModule, RewriteReport)

    Raises
    ------
    ValueError
        If the target is not usable or ``num_threads`` is not positive.
    """
    resolved = resolve(target)
    if num_threads is not None and num_threads < 1:
        raise ValueError(f"num_threads must be at least 1, got {num_threads}")
    report = ReportBuilder()
    backend = Backend.of(
        resolved, num_threads, interleaved_lanes=interleaved_lanes, winograd=winograd
    )
    passes = sparse_passes(backend, report, config_for, structures)
    given = mod
    with resolved:
        mod = tvm.transform.Sequential(
            [
                *passes,
                *relax.pipeline.library_dispatch_passes(resolved),
                *relax.pipeline.legalize_passes(resolved),
                KeepNaN(),
            ]
        )(mod)
    report.order(given)
    return mod, report.build()


def current_target() -> Target:
    """The target in scope, resolved.

    Raises
    ------
    ValueError
        If there is none.
    """
    target = Target.current(allow_none=True)
    if target is None:
        raise ValueError(
            f"the pipeline {PIPELINE!r} needs a target; pass one to tvm.compile or enter it by"
            " `with target:`"
        )
    return resolve(target)


def pattern_sparse() -> Pass:
    """The whole Relax pipeline, for ``tvm.compile(mod, target, relax_pipeline="pattern_sparse")``.

    It takes the target in scope and leaves the report as JSON in the module attribute
    ``pattern_sparse.report`` (:meth:`RewriteReport.from_json`).
    """

    @tvm.transform.module_pass(opt_level=0, name="PatternSparse")
    def run(mod: tvm.IRModule, _ctx: tvm.transform.PassContext) -> tvm.IRModule:
        lowered, report = lower(mod, current_target())
        lowered = relax.pipeline.default_build_pipeline()(lowered)
        return lowered.with_attr(REPORT_ATTRIBUTE, report.to_json())

    return run


if PIPELINE not in relax.pipeline.PIPELINE_MAP:
    relax.register_pipeline(PIPELINE)(pattern_sparse)
