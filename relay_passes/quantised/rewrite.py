"""QuantisedIslands: ``dequantize -> operator -> quantize`` becomes an operator on bytes.

Preconditions: parameters are bound. Run before FoldConstants, which would turn quantised weights
into real ones. Between the operators that are taken, images live as planes of unsigned bytes with
the zero point around them, wide enough for every reader; all images of one size have the same
padding. A real image is quantised at the first of them, and made real again where anything else
reads it. What is not taken stays as it is, in float32, with the reason in the report's notes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

import tvm
from tvm import relax
from tvm.ir import Expr, Var

from topi_kernels.backend import Backend
from topi_kernels.layout import PlaneLayout
from topi_kernels.report import LayerRow
from topi_kernels.schedules.cpu_int8.byte_layout import byte_layout
from topi_kernels.schedules.cpu_int8.isa import isa_named
from topi_kernels.structure import Structure

from ..dataflow import (
    OUTPUT,
    Uses,
    bindings_of,
    height_width,
    map_functions,
    op_name,
    rebuild,
    relax_functions,
    shape_of,
    static_shape,
)
from ..islands import int8
from ..markers import Marker, layout_to_list
from ..name_layers import PLANES_SUFFIX
from ..pattern_rewrite import describe
from ..report import ReportBuilder
from .match import CONV, MATMUL, Matcher, Node
from .qdq import Unsupported, is_dequantize, is_quantize, per_tensor


class _Block:
    """Rewrites the bindings of one dataflow block."""

    def __init__(self, bindings: list[relax.Binding], uses: Uses, matcher: Matcher) -> None:
        self.bindings = bindings
        self.uses = uses
        self.matcher = matcher
        self.local = {binding.var for binding in bindings}
        self.nodes = self._nodes()
        self.images = self._images()
        self.pads = self._pads()
        self.planes: dict[Var, Var] = {}
        self.result: list[relax.Binding] = []

    def _may_be_bytes(self, var: Var) -> bool:
        """Whether only ``dequantize``, in this block, reads a quantised image."""
        users = self.uses.users.get(var, [])
        return var in self.local and all(
            user is not OUTPUT and user in self.local and is_dequantize(self.uses.value[user])
            for user in users
        )

    def _nodes(self) -> dict[Var, Node]:
        nodes = {}
        for binding in self.bindings:
            if not isinstance(binding, relax.VarBinding) or not op_name(binding.value):
                continue
            node = self.matcher.node_of(binding.var)
            if node is None or not all(self._may_be_bytes(image) for image in node.images):
                continue
            if node.result is None or self._may_be_bytes(binding.var):
                nodes[binding.var] = node
        # Sums and pools alone gain nothing: an island has weights.
        return nodes if any(node.layer or node.weight for node in nodes.values()) else {}

    def _images(self) -> set[Var]:
        """Quantised images that live as planes."""
        images = {image for node in self.nodes.values() for image in node.images}
        return images | {var for var, node in self.nodes.items() if node.result is not None}

    def _pads(self) -> dict[tuple[int, int], int]:
        """Padding of the images of each size."""
        pads: dict[tuple[int, int], int] = {}
        for node in self.nodes.values():
            if not node.images:
                continue
            size = height_width(node.images[0])
            pads[size] = max(pads.get(size, 0), node.pad)
        return pads

    def layout(self, image: Expr) -> PlaneLayout:
        """Layout of a quantised image."""
        size = height_width(image)
        return byte_layout(*size, self.pads.get(size, 0))

    def run(self, report: ReportBuilder) -> list[relax.Binding]:
        for binding in self.bindings:
            var = binding.var
            node = self.nodes.get(var)
            if node is not None and node.kind == "matmul":
                self._emit_matmul(var, node, binding.value, report)
            elif node is not None:
                self._emit_node(var, node, report)
            elif var in self.images:
                source = per_tensor(binding.value)
                params = {"layout": layout_to_list(self.layout(var)), "result": asdict(source)}
                self._emit_planes(var, Marker(int8.QUANTIZE, (binding.value.args[0],), params))
            elif is_dequantize(binding.value) and binding.value.args[0] in self.images:
                image = binding.value.args[0]
                params = {
                    "layout": layout_to_list(self.layout(image)),
                    "source": asdict(per_tensor(binding.value)),
                }
                marker = Marker(int8.DEQUANTIZE, (self.planes[image],), params)
                self.result.append(relax.VarBinding(var, marker.call(var.ty)))
            else:
                self.result.append(binding)
        return self.result

    def _emit_planes(self, var: Var, marker: Marker) -> None:
        batch, channels = shape_of(var)[:2]
        ty = relax.TensorType((batch, channels, self.layout(var).size), "uint8")
        name = marker.params.get("layer") or str(var.name) + PLANES_SUFFIX
        planes = relax.DataflowVar(name, ty)
        self.result.append(relax.VarBinding(planes, marker.call(ty)))
        self.planes[var] = planes

    def _emit_matmul(self, var: Var, node: Node, call: Any, report: ReportBuilder) -> None:
        weight = node.weight
        if weight is None:
            raise ValueError("a node of the kind matmul has a weight")
        rows, k = shape_of(call.args[0])
        n = weight.values.shape[0]
        gflop = 2e-9 * rows * n * k
        row = LayerRow(
            str(var.name),
            "matmul",
            taken=True,
            in_shape=(rows, k),
            out_shape=(rows, n),
            dense_equivalent_gflop=gflop,
            effective_gflop=gflop,
            dtype="int8",
        )
        params = {"layer": report.add(row), "sources": [asdict(node.sources[0])]}
        tensors = (call.args[0], relax.const(weight.values), relax.const(weight.scale))
        marker = Marker(int8.MATVEC, tensors, params)
        self.result.append(relax.VarBinding(var, marker.call(var.ty)))

    def _emit_node(self, var: Var, node: Node, report: ReportBuilder) -> None:
        params: dict[str, Any] = {
            "in_layout": layout_to_list(self.layout(node.images[0])),
            "sources": [asdict(source) for source in node.sources],
        }
        planes = tuple(self.planes[image] for image in node.images)
        if node.result is None:
            marker = Marker(int8.GLOBAL_POOL, planes, {**params, "keep_dims": node.keep_dims})
            self.result.append(relax.VarBinding(var, marker.call(var.ty)))
            return
        params |= {
            "out_layout": layout_to_list(self.layout(var)),
            "result": asdict(node.result),
            "limits": list(node.byte_limits),
        }
        if node.layer is not None:
            marker = self._conv(node, planes, params, report)
        elif node.kind == "max_pool" and node.window is not None:
            marker = Marker(int8.MAX_POOL, planes, {**params, "window": asdict(node.window)})
        else:
            marker = Marker(int8.ADD, planes, params)
        self._emit_planes(var, marker)

    def _conv(
        self, node: Node, planes: tuple[Var, ...], params: dict[str, Any], report: ReportBuilder
    ) -> Marker:
        layer, call, out = node.layer, node.conv, node.conv_var
        if layer is None or call is None or out is None:
            raise ValueError(f"a node of the kind {node.kind!r} has no convolution")
        row = describe(call, out, str(out.name), "", layer.structure)
        name = report.add(replace(row, dtype="int8"))
        tensors = (
            planes[0],
            relax.const(layer.weight),
            relax.const(layer.weight_scale),
            relax.const(layer.bias),
            relax.const(layer.structure.to_bits()),
            *planes[1:],
        )
        params |= {
            "layer": name,
            "geometry": asdict(layer.geometry),
            "structure": layer.structure.source,
            "bounds": [layer.low, layer.high],
        }
        return Marker(int8.DEPTHWISE if node.kind == "depthwise" else int8.CONV, tensors, params)


def _has_quantize(func: relax.Function) -> bool:
    return any(
        isinstance(b, relax.VarBinding) and (is_quantize(b.value) or is_dequantize(b.value))
        for block in bindings_of(func)
        for b in block
    )


@tvm.transform.module_pass(opt_level=0, name="QuantisedIslands")
class QuantisedIslands:
    """Quantised operators -> markers of operators on bytes.

    Parameters
    ----------
    backend : Backend
        Says whether it multiplies bytes.
    report : ReportBuilder
        Receives a row for each convolution that is taken, and a note for each that is not.
    structures : mapping, optional
        What the pruner assigned, by the name of the variable of a convolution. Others are covered
        by their patterns: zeros of rounded weights say nothing.
    """

    def __init__(
        self,
        backend: Backend,
        report: ReportBuilder,
        structures: Mapping[str, Structure] | None = None,
    ) -> None:
        self.backend = backend
        self.report = report
        self.structures = structures or {}

    def transform_module(self, mod: tvm.IRModule, _ctx: tvm.transform.PassContext) -> tvm.IRModule:
        if not any(_has_quantize(func) for _, func in relax_functions(mod)):
            return mod
        if not self.backend.int8:
            self.report.note(
                f"quantised operators run in float32: the device {self.backend.name!r} has no"
                " instructions that multiply bytes, or the project no kernels for them"
            )
            return mod
        mod = relax.transform.CanonicalizeBindings()(mod)
        mod = map_functions(mod, self._transform)
        return relax.transform.DeadCodeElimination()(mod)

    def _transform(self, func: relax.Function) -> relax.Function:
        uses = Uses(func)
        matcher = Matcher(uses.value, self.structures, isa_named(self.backend.int8))
        blocks, taken = [], set()
        for old, bindings in zip(func.body.blocks, bindings_of(func), strict=True):
            if not isinstance(old, relax.DataflowBlock):
                blocks.append(bindings)
                continue
            block = _Block(bindings, uses, matcher)
            taken |= {node.conv_var for node in block.nodes.values()}
            blocks.append(block.run(self.report))
        self._note_others(uses, matcher, taken)
        return rebuild(func, blocks)

    def _note_others(self, uses: Uses, matcher: Matcher, taken: set[Any]) -> None:
        """A line for each layer with a quantised input or weight that stays in float32."""
        for var, value in uses.value.items():
            if var in taken or op_name(value) not in (CONV, MATMUL):
                continue
            reason = matcher.reasons.get(var)
            if op_name(value) == CONV and not reason:
                if not any(is_dequantize(matcher.value(a)) for a in value.args[:2]):
                    continue
                reason = _why_left(value, matcher)
            if reason:
                self.report.note(f"{var.name}: runs in float32: {reason}")


def _why_left(call: Any, matcher: Matcher) -> str:
    """Why a convolution that no node ends in is left."""
    if static_shape(call, 4) is None:
        return "its shape is not static"
    try:
        if matcher.image_of(call.args[0]) is None:
            return "its input is not quantised"
    except Unsupported as reason:
        return str(reason)
    return (
        "its result is not quantised, or something else than additions and activations that limit"
        " a value stands before that"
    )
