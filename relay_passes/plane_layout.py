"""PlaneLayout: islands of supported operators work on planes; pack and unpack at their borders.

Preconditions: FuseEpilogue has run. A convolution marker always works on planes. Addition and
multiplication of images, activations, pooling and the global mean join the island if one of their
inputs is there. A tensor's padding is the largest that any of its readers on planes needs, so no
layer copies to pad. A value that is also used outside (another operator, another block, the
function's output) is unpacked once. Activation markers outside every island become Relax
operators again; after this pass only ``plane_*`` markers are left.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import tvm
from tvm import relax
from tvm.ir import Call, Expr, Var

from topi_kernels.geometry import ConvGeometry
from topi_kernels.layout import PlaneLayout as Layout

from .dataflow import (
    Uses,
    bindings_of,
    is_float_image,
    map_functions,
    op_name,
    rebuild,
    shape_of,
    static_shape,
)
from .markers import ConvParams, Marker, layout_to_list, parse

LayoutChooser = Callable[..., Layout]


@dataclass(frozen=True)
class _PlaneOp:
    """An operator that works on planes.

    ``images`` are the inputs that come as planes, ``pads`` the padding each of them needs;
    ``build`` makes the marker from the planes, their layouts and the layout of the output (None
    where the output is no plane).
    """

    images: tuple[Expr, ...]
    pads: tuple[int, ...]
    build: Callable[[list[Expr], list[Layout], Layout | None], Marker]
    makes_plane: bool = True


def _conv(marker: Marker) -> _PlaneOp:
    params = ConvParams.from_dict(marker.params)
    x, weight, *rest = marker.tensors
    residual = rest.pop() if params.epilogue.residual else None
    images = (x,) if residual is None else (x, residual)
    pad = max(*params.geometry.padding, *params.end_padding)

    def build(planes: list[Expr], layouts: list[Layout], out: Layout | None) -> Marker:
        placed = replace(
            params,
            in_layout=layouts[0],
            out_layout=out,
            residual_layout=layouts[1] if residual is not None else None,
        )
        op = "plane_conv2d" if marker.op == "conv2d" else "plane_depthwise"
        return Marker(op, (planes[0], weight, *rest, *planes[1:]), placed.to_dict())

    return _PlaneOp(images, (pad, 0)[: len(images)], build)


def _elementwise(images: tuple[Expr, ...], params: dict[str, Any]) -> _PlaneOp:
    def build(planes: list[Expr], layouts: list[Layout], out: Layout | None) -> Marker:
        placed = {
            **params,
            "in_layouts": [layout_to_list(layout) for layout in layouts],
            "out_layout": layout_to_list(out),
        }
        return Marker("plane_elementwise", tuple(planes), placed)

    return _PlaneOp(images, (0,) * len(images), build)


def _windows_see_pixels(call: Call, out: Expr) -> bool:
    """Whether every window of a pool covers at least one pixel of the image."""
    attrs = call.attrs
    size, out_size = shape_of(call.args[0])[2:], shape_of(out)[2:]
    return all(
        int(attrs.padding[i]) < int(attrs.pool_size[i])
        and (out_size[i] - 1) * int(attrs.strides[i]) - int(attrs.padding[i]) < size[i]
        for i in (0, 1)
    )


def _pool(call: Call, out: Expr) -> _PlaneOp | None:
    attrs = call.attrs
    padding = [int(p) for p in attrs.padding]
    average = op_name(call) == "relax.nn.avg_pool2d"
    if str(attrs.layout) != "NCHW" or str(attrs.out_layout) != "NCHW":
        return None
    if any(int(d) != 1 for d in attrs.dilation) or not _windows_see_pixels(call, out):
        return None
    # With ceil_mode an average's last window may leave the padding, where its divisor changes.
    if average and bool(attrs.ceil_mode):
        return None
    moves = (attrs.pool_size, attrs.strides, padding[:2])
    window = ConvGeometry(*((int(first), int(second)) for first, second in moves))
    params: dict[str, Any] = {"window": asdict(window)}
    if average:
        params["count_include_pad"] = bool(attrs.count_include_pad)

    def build(planes: list[Expr], layouts: list[Layout], out: Layout | None) -> Marker:
        placed = {
            **params,
            "in_layout": layout_to_list(layouts[0]),
            "out_layout": layout_to_list(out),
        }
        return Marker("plane_avg_pool" if average else "plane_max_pool", tuple(planes), placed)

    return _PlaneOp((call.args[0],), (max(padding),), build)


def _global_pool(x: Expr, keep_dims: bool) -> _PlaneOp:
    def build(planes: list[Expr], layouts: list[Layout], _out: Layout | None) -> Marker:
        params = {"in_layout": layout_to_list(layouts[0]), "keep_dims": keep_dims}
        return Marker("plane_global_pool", tuple(planes), params)

    return _PlaneOp((x,), (0,), build, makes_plane=False)


def plane_op(value: Expr, out: Expr) -> _PlaneOp | None:
    """How ``value`` (bound to ``out``) would work on planes, or None."""
    marker = parse(value)
    if marker is not None:
        if marker.op in ("conv2d", "depthwise_conv2d"):
            return _conv(marker)
        return _elementwise(marker.tensors, dict(marker.params, operator="add"))
    name = op_name(value)
    if name in ("relax.add", "relax.multiply"):
        images = tuple(value.args)
        shapes = {static_shape(image) for image in images}
        if len(shapes) > 1 or not all(is_float_image(image) for image in images):
            return None
        operator = name.removeprefix("relax.")
        params = {"operator": operator, "activation": "none", "bounds": [0.0, 0.0]}
        return _elementwise(images, params)
    if name in ("relax.nn.max_pool2d", "relax.nn.avg_pool2d"):
        return _pool(value, out) if is_float_image(value.args[0]) else None
    if name == "relax.mean" and is_float_image(value.args[0]):
        axes = {int(a) % 4 for a in value.attrs.axis} if value.attrs.axis is not None else set()
        return _global_pool(value.args[0], bool(value.attrs.keepdims)) if axes == {2, 3} else None
    if name == "relax.nn.adaptive_avg_pool2d" and is_float_image(value.args[0]):
        is_global = str(value.attrs.layout) == "NCHW" and shape_of(out)[2:] == (1, 1)
        return _global_pool(value.args[0], True) if is_global else None
    return None


def _relax_activation(marker: Marker) -> Expr:
    """The Relax operators of an activation marker that no island took."""
    (x,), name = marker.tensors, marker.params["activation"]
    low, high = marker.params["bounds"]
    three, six = (relax.const(value, str(x.ty.dtype)) for value in (3.0, 6.0))
    gate = relax.op.clip(relax.op.add(x, three), 0.0, 6.0)
    spelled = {
        "relu": lambda: relax.op.nn.relu(x),
        "relu6": lambda: relax.op.clip(x, 0.0, 6.0),
        "clip": lambda: relax.op.clip(x, low, high),
        "silu": lambda: relax.op.nn.silu(x),
        "sigmoid": lambda: relax.op.sigmoid(x),
        "hardsigmoid": lambda: relax.op.divide(gate, six),
        "hardswish": lambda: relax.op.divide(relax.op.multiply(x, gate), six),
    }
    return spelled[name]()


class _Block:
    """Rewrites the bindings of one dataflow block."""

    def __init__(self, bindings: list[relax.Binding], uses: Uses, choose: LayoutChooser) -> None:
        self.bindings = bindings
        self.uses = uses
        self.choose = choose
        self.ops = self._islands()
        self.layouts = self._layouts()
        self.planes: dict[Expr, Expr] = {}
        self.result: list[relax.Binding] = []

    def _islands(self) -> dict[Var, _PlaneOp]:
        """Operators that join: convolutions, and what reads the planes of another."""
        ops: dict[Var, _PlaneOp] = {}
        for binding in self.bindings:
            op = plane_op(binding.value, binding.var)
            if op is None:
                continue
            marker = parse(binding.value)
            is_conv = marker is not None and marker.op != "activation"
            if is_conv or any(i in ops and ops[i].makes_plane for i in op.images):
                ops[binding.var] = op
        return ops

    def _layouts(self) -> dict[Expr, Layout]:
        """Layout of every tensor that lives as planes."""
        pads: dict[Expr, int] = {var: 0 for var, op in self.ops.items() if op.makes_plane}
        for op in self.ops.values():
            for image, pad in zip(op.images, op.pads, strict=True):
                pads[image] = max(pads.get(image, 0), pad)
        return {
            image: self.choose(*_height_width(image), pad, dtype=str(image.ty.dtype))
            for image, pad in pads.items()
        }

    def run(self) -> list[relax.Binding]:
        for binding in self.bindings:
            op = self.ops.get(binding.var)
            marker = parse(binding.value)
            if op is not None:
                self._emit_plane_op(binding.var, op)
            elif marker is not None and marker.op == "activation":
                value = _relax_activation(marker)
                self.result.append(relax.VarBinding(binding.var, _Normal.of(value, self.result)))
            else:
                self.result.append(binding)
        return self.result

    def _plane_type(self, image: Expr) -> relax.TensorType:
        batch, channels = shape_of(image)[:2]
        return relax.TensorType((batch, channels, self.layouts[image].size), image.ty.dtype)

    def _planes_of(self, image: Expr) -> Expr:
        """Planes of a tensor; packed at its first use if it comes from outside."""
        if image not in self.planes:
            params = {"out_layout": layout_to_list(self.layouts[image])}
            self.planes[image] = self._emit(
                Marker("plane_pack", (image,), params), _name(image), self._plane_type(image)
            )
        return self.planes[image]

    def _emit(self, marker: Marker, name: str, ty: relax.TensorType) -> Var:
        var = relax.DataflowVar(name, ty)
        self.result.append(relax.VarBinding(var, marker.call(ty)))
        return var

    def _emit_plane_op(self, var: Var, op: _PlaneOp) -> None:
        planes = [self._planes_of(image) for image in op.images]
        layouts = [self.layouts[image] for image in op.images]
        if not op.makes_plane:
            marker = op.build(planes, layouts, None)
            self.result.append(relax.VarBinding(var, marker.call(var.ty)))
            return
        layout = self.layouts[var]
        marker = op.build(planes, layouts, layout)
        self.planes[var] = self._emit(marker, _name(var), self._plane_type(var))
        outside = [u for u in self.uses.users.get(var, []) if u not in self.ops]
        if outside:
            unpack = Marker(
                "plane_unpack", (self.planes[var],), {"in_layout": layout_to_list(layout)}
            )
            self.result.append(relax.VarBinding(var, unpack.call(var.ty)))


class _Normal:
    """Nested calls as bindings."""

    @staticmethod
    def of(value: Expr, result: list[relax.Binding]) -> Expr:
        builder = relax.BlockBuilder()

        def flatten(expr: Expr, top: bool) -> Expr:
            if not isinstance(expr, Call):
                return expr
            args = [flatten(arg, False) for arg in expr.args]
            call = builder.normalize(Call(expr.op, args, expr.attrs, expr.ty_args))
            if top:
                return call
            var = relax.DataflowVar("activation", call.ty)
            result.append(relax.VarBinding(var, call))
            return var

        return flatten(value, True)


def _height_width(image: Expr) -> tuple[int, int]:
    height, width = shape_of(image)[2:]
    return height, width


def _name(expr: Expr) -> str:
    return f"{expr.name}_planes" if isinstance(expr, Var) else "constant_planes"


@tvm.transform.module_pass(opt_level=0, name="PlaneLayout")
class PlaneLayout:
    """Markers and their neighbours -> ``plane_*`` markers with layouts, pack and unpack.

    Parameters
    ----------
    choose : callable
        ``(height, width, pad, dtype=...) -> topi_kernels.layout.PlaneLayout``.
    """

    def __init__(self, choose: LayoutChooser) -> None:
        self.choose = choose

    def transform_module(self, mod: tvm.IRModule, _ctx: tvm.transform.PassContext) -> tvm.IRModule:
        return map_functions(mod, self._transform)

    def _transform(self, func: relax.Function) -> relax.Function:
        uses = Uses(func)
        blocks = [_Block(block, uses, self.choose).run() for block in bindings_of(func)]
        return rebuild(func, blocks)
