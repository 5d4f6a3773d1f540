"""PatternRewrite: ``nn.conv2d`` -> ``conv2d`` / ``depthwise_conv2d`` markers, or a recorded reason.

Preconditions: parameters are bound (a weight that is no constant is left dense), batch norms are
folded. Run before FuseEpilogue. Every convolution of the module, of whatever kind, gets its row in
the report here; nothing is skipped silently.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import tvm
from tvm import relax
from tvm.ir import Call, Expr

from topi_kernels.backend import Backend
from topi_kernels.conv_task import ConvTask
from topi_kernels.eligibility import is_depthwise, why_dense
from topi_kernels.geometry import ConvGeometry
from topi_kernels.report import LayerRow
from topi_kernels.structure import Structure, count_kept, density_of, determine, over_all_channels

from .dataflow import (
    FLOATS,
    array_of,
    bindings_of,
    constant,
    height_width,
    map_functions,
    op_name,
    rebuild,
    shape_of,
    static_shape,
)
from .markers import ConvParams, Marker
from .report import ReportBuilder
from .transposed_by_phases import Origin

# Leaves room for the padding of the planes; the operator itself refuses what still exceeds 2**31.
MAX_ELEMENTS = 2**29
NO_FLOAT16 = "no target is known to compute in float16"
_NOT_2D = {
    "relax.nn.conv1d": "1-D convolution",
    "relax.nn.conv3d": "3-D convolution",
    "relax.nn.conv1d_transpose": "transposed convolution",
    "relax.nn.conv2d_transpose": "transposed convolution",
    "relax.nn.conv3d_transpose": "transposed convolution",
}
CONV_OPS = ("relax.nn.conv2d", *_NOT_2D)


def rejection(call: Call, out: Expr, no_float16: str = "") -> str:
    """Why a convolution cannot become a marker; empty if it can.

    Parameters
    ----------
    call : Call
        A call of one of :data:`CONV_OPS`.
    out : Expr
        The variable bound to it.
    no_float16 : str
        Why float16 is not to be rewritten; empty if it is.
    """
    name = op_name(call)
    if name in _NOT_2D:
        return f"{_NOT_2D[name]}; only 2-D convolutions are rewritten"
    data, weight = call.args
    attrs = call.attrs
    layouts = (str(attrs.data_layout), str(attrs.kernel_layout), str(attrs.out_layout))
    if layouts != ("NCHW", "OIHW", "NCHW"):
        return f"layouts {'/'.join(layouts)}; expected NCHW/OIHW/NCHW"
    dtypes = [str(e.ty.dtype) for e in (data, weight, out)]
    if len(set(dtypes)) > 1 or dtypes[0] not in FLOATS:
        return f"dtypes {'/'.join(dtypes)}; expected all of them to be one of {'/'.join(FLOATS)}"
    if dtypes[0] == "float16" and no_float16:
        return no_float16
    if static_shape(data, 4) is None or static_shape(out, 4) is None:
        return "dynamic shape; compile with fixed shapes"
    if max(np.prod(shape_of(e), dtype=np.int64) for e in (data, out)) > MAX_ELEMENTS:
        return "an activation exceeds 32-bit indexing; reduce the batch"
    value = constant(weight)
    if value is None:
        return "the weight is not a constant; bind the parameters before compiling"
    if not np.isfinite(value).all():
        return "the weight holds NaN or Inf"
    return why_dense(_pair(attrs.strides))


def _pair(values: Any) -> Any:
    return tuple(int(v) for v in values)


def describe(
    call: Call, out: Expr, layer: str, reason: str, structure: Structure | None = None
) -> LayerRow:
    """The report's row of a convolution, before it is planned."""
    in_shape, out_shape = static_shape(call.args[0]) or (), static_shape(out) or ()
    weight_shape = static_shape(call.args[1]) or ()
    value = constant(call.args[1])
    density = 1.0
    if structure is not None:
        # Between groups there are no weights: those of the layer are what counts.
        density = structure.kept_weights / int(np.prod(weight_shape, dtype=np.int64))
    elif value is not None:
        density = density_of(value)
    flops = 0
    if weight_shape and out_shape:
        # Every weight is used once per output pixel of a convolution; per input pixel of a
        # transposed one.
        transposed = op_name(call).endswith("_transpose")
        pixels = np.prod((in_shape if transposed else out_shape)[2:], dtype=np.int64)
        flops = 2 * out_shape[0] * int(pixels) * int(np.prod(weight_shape, dtype=np.int64))
    return LayerRow(
        layer=layer,
        op=op_name(call).removeprefix("relax."),
        taken=not reason,
        reason=reason or ("not pruned: runs dense in the same operator" if density == 1.0 else ""),
        in_shape=in_shape,
        out_shape=out_shape,
        kernel_size=weight_shape[2:],
        stride=_pair(call.attrs.strides),
        sparsity=1.0 - density,
        dense_equivalent_gflop=flops / 1e9,
        effective_gflop=flops * density / 1e9,
        structure="" if structure is None else structure.source,
        dtype=str(call.args[0].ty.dtype),
    )


def _of_origin(row: LayerRow, origin: Origin | None, kept_weights: int) -> LayerRow:
    """The row of the layer that a convolution stands for; both keep the same weights."""
    if origin is None:
        return row
    density = kept_weights / origin.weights
    dense = "not pruned: runs dense in the same operator"
    return replace(
        row,
        op=origin.op,
        reason=dense if row.taken and density == 1 else row.reason,
        in_shape=origin.in_shape,
        out_shape=origin.out_shape,
        kernel_size=origin.kernel_size,
        stride=origin.stride,
        sparsity=1 - density,
        dense_equivalent_gflop=origin.flops / 1e9,
        effective_gflop=origin.flops * density / 1e9,
    )


def marker_of(call: Call, layer: str, structure: Structure | None = None) -> Marker:
    """The marker of an accepted convolution; it carries the structure of its weights."""
    attrs = call.attrs
    depthwise = _is_depthwise(call)
    top, left, bottom, right = (int(p) for p in attrs.padding)
    kh, kw = shape_of(call.args[1])[2:]
    geometry = ConvGeometry((kh, kw), _pair(attrs.strides), (top, left), _pair(attrs.dilation))
    params = ConvParams(layer, geometry, (bottom, right))
    if depthwise or structure is None:
        op = "depthwise_conv2d" if depthwise else "conv2d"
        return Marker(op, tuple(call.args), params.to_dict())
    params = replace(params, structure=structure.source)
    data, weight = call.args
    if int(attrs.groups) > 1:
        weight = relax.const(over_all_channels(array_of(weight), int(attrs.groups)))
    kept = relax.const(structure.to_bits())
    return Marker("conv2d", (data, weight, kept), params.to_dict())


def _is_depthwise(call: Call) -> bool:
    return is_depthwise(int(call.attrs.groups), shape_of(call.args[0])[1])


def structure_of(call: Call, assigned: Structure | None = None) -> Structure:
    """Structure of an accepted convolution; a grouped one is that of all in_channels together."""
    weight, groups = array_of(call.args[1]), int(call.attrs.groups)
    structure = determine(weight, assigned)
    if groups == 1 or _is_depthwise(call):
        return structure
    return Structure(over_all_channels(structure.kept, groups), structure.source)


@tvm.transform.module_pass(opt_level=0, name="PatternRewrite")
class PatternRewrite:
    """Convolutions -> markers.

    Parameters
    ----------
    report : ReportBuilder
        Receives one row per convolution.
    unsupported : str
        Non-empty: no convolution is rewritten, for this reason (a target without schedules).
    structures : mapping, optional
        What the pruner assigned, by the name of the variable that a convolution is bound to. The
        others, and those that their weights contradict, get what the weights say.
    backend : Backend, optional
        Says whether it computes in float16, and has a schedule for a convolution. Default: no
        float16, and any convolution.
    origins : mapping, optional
        What convolutions stand for, by the name of their variable: the report speaks of that.
    """

    def __init__(
        self,
        report: ReportBuilder,
        unsupported: str = "",
        structures: Mapping[str, Structure] | None = None,
        backend: Backend | None = None,
        origins: Mapping[str, Origin] | None = None,
    ) -> None:
        self.origins = {} if origins is None else origins
        self.structures = structures or {}
        self.report = report
        self.unsupported = unsupported
        self.backend = backend
        self.no_float16 = NO_FLOAT16 if backend is None else backend.no_float16

    def transform_module(self, mod: tvm.IRModule, _ctx: tvm.transform.PassContext) -> tvm.IRModule:
        return map_functions(mod, self._transform)

    def _transform(self, func: relax.Function) -> relax.Function:
        blocks = []
        for block in bindings_of(func):
            for i, binding in enumerate(block):
                if op_name(binding.value) not in CONV_OPS:
                    continue
                reason = self.unsupported or rejection(binding.value, binding.var, self.no_float16)
                name = str(binding.var.name)
                structure = None
                if not reason:
                    structure = structure_of(binding.value, self.structures.get(name))
                    reason = self._unscheduled(binding, structure)
                known = None if reason else structure
                row = describe(binding.value, binding.var, name, reason, known)
                value = constant(binding.value.args[1])
                nonzero = 0 if value is None else count_kept(value)
                kept = nonzero if structure is None else structure.kept_weights
                layer = self.report.add(_of_origin(row, self.origins.get(name), kept))
                if not reason:
                    marker = marker_of(binding.value, layer, structure)
                    block[i] = relax.VarBinding(binding.var, marker.call(binding.var.ty))
            blocks.append(block)
        return rebuild(func, blocks)

    def _unscheduled(self, binding: relax.Binding, structure: Structure) -> str:
        """Why the device has no schedule for a convolution that is otherwise accepted."""
        marker = marker_of(binding.value, str(binding.var.name), structure)
        if self.backend is None or marker.op != "conv2d":
            return ""
        params = ConvParams.from_dict(marker.params)
        x, weight = marker.tensors[0], array_of(marker.tensors[1])
        dtype = str(weight.dtype)
        task = ConvTask.from_weight(
            weight,
            params.geometry,
            self.backend.layout_for(*height_width(x), params.pad, dtype),
            self.backend.layout_for(*height_width(binding.var), 0, dtype),
            family=self.backend.name,
            batch=shape_of(x)[0],
            structure=structure,
        )
        return self.backend.why_not(task)
