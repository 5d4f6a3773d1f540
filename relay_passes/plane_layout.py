"""PlaneLayout: islands of supported operators work on planes; pack and unpack at their borders.

Preconditions: FuseEpilogue has run. A convolution marker always works on planes. Addition and
multiplication of images, activations, pooling and the global mean join the island if one of their
inputs is there. A tensor's padding is the largest that any of its readers on planes needs, so no
layer copies to pad. Tensors that convolutions of stride 1, additions and activations connect have
their pixels in one order, which is chosen for all of them; an operator that needs plain rows gets
or leaves these, and a copy changes the order. A value that is also used outside (another operator,
another block, the function's output) is unpacked once. Activation markers outside every island
become Relax operators again; after this pass only ``plane_*`` markers are left.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from enum import Enum
from typing import Any

import tvm
from tvm import relax
from tvm.ir import Call, Expr, Var

from topi_kernels.geometry import ConvGeometry
from topi_kernels.layout import PlaneLayout as Layout
from topi_kernels.layout_choice import ConvNeed, LaneOrder

from .dataflow import (
    Uses,
    bindings_of,
    constant,
    height_width,
    is_float_image,
    map_functions,
    op_name,
    rebuild,
    shape_of,
    static_shape,
)
from .markers import ConvParams, Marker, layout_to_list, parse, structure_of

LayoutChooser = Callable[..., Layout]
LaneChooser = Callable[..., LaneOrder | None]


def plain_rows(*_needs: Any, **_options: Any) -> None:
    """The lane chooser that leaves all tensors in plain rows."""


class Order(Enum):
    """What an operator asks of the order of the pixels in its planes."""

    #: Any order in, any order out.
    ANY = "any"
    #: All its planes in one order.
    SAME = "same"
    #: Plain rows in and out.
    PLAIN = "plain"


@dataclass(frozen=True)
class _PlaneOp:
    """An operator that works on planes.

    ``images`` are the inputs that come as planes, ``pads`` the padding each of them needs;
    ``build`` makes the marker from the planes, their layouts and the layout of the output (None
    where the output is no plane). ``need`` describes a convolution whose order can be chosen.
    """

    images: tuple[Expr, ...]
    pads: tuple[int, ...]
    build: Callable[[list[Expr], list[Layout], Layout | None], Marker]
    makes_plane: bool = True
    order: Order = Order.ANY
    need: ConvNeed | None = None


def _need(marker: Marker, params: ConvParams, out: Expr) -> ConvNeed | None:
    """The convolution, if its pixels may lie in any order: stride 1, output as large as input."""
    x, weight = marker.tensors[:2]
    if params.geometry.stride != (1, 1) or shape_of(x)[2:] != shape_of(out)[2:]:
        return None
    if constant(weight) is None:
        return None
    out_channels, in_channels = shape_of(weight)[:2]
    return ConvNeed(params.geometry, (out_channels, in_channels), structure_of(marker), 0)


def _conv(marker: Marker, out: Expr) -> _PlaneOp:
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

    need = _need(marker, params, out) if marker.op == "conv2d" else None
    return _PlaneOp(
        images,
        (pad, 0)[: len(images)],
        build,
        order=Order.SAME if need is not None else Order.PLAIN,
        need=need,
    )


def _elementwise(images: tuple[Expr, ...], params: dict[str, Any]) -> _PlaneOp:
    def build(planes: list[Expr], layouts: list[Layout], out: Layout | None) -> Marker:
        placed = {
            **params,
            "in_layouts": [layout_to_list(layout) for layout in layouts],
            "out_layout": layout_to_list(out),
        }
        return Marker("plane_elementwise", tuple(planes), placed)

    return _PlaneOp(images, (0,) * len(images), build, order=Order.SAME)


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
            return _conv(marker, out)
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

    def __init__(
        self,
        bindings: list[relax.Binding],
        uses: Uses,
        choose: LayoutChooser,
        choose_lanes: LaneChooser,
    ) -> None:
        self.bindings = bindings
        self.uses = uses
        self.choose = choose
        self.choose_lanes = choose_lanes
        self.ops = self._islands()
        self.pads = self._pads()
        self.orders = self._orders()
        self.layouts = {image: self._layout(image) for image in self.pads}
        self.planes: dict[tuple[Expr, bool], Expr] = {}
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

    def _pads(self) -> dict[Expr, int]:
        """Padding of every tensor that lives as planes."""
        pads: dict[Expr, int] = {var: 0 for var, op in self.ops.items() if op.makes_plane}
        for op in self.ops.values():
            for image, pad in zip(op.images, op.pads, strict=True):
                pads[image] = max(pads.get(image, 0), pad)
        return pads

    def _connected(self) -> list[list[Expr]]:
        """Tensors that have their pixels in one order."""
        set_of: dict[Expr, list[Expr]] = {image: [image] for image in self.pads}
        for var, op in self.ops.items():
            if op.order is not Order.SAME:
                continue
            for image in op.images:
                ours, others = set_of[var], set_of[image]
                if ours is others:
                    continue
                ours.extend(others)
                set_of.update((member, ours) for member in others)
        return list({id(members): members for members in set_of.values()}.values())

    def _orders(self) -> dict[Expr, LaneOrder | None]:
        """Order of the pixels of every tensor; None for plain rows."""
        orders: dict[Expr, LaneOrder | None] = {}
        for members in self._connected():
            needs = [
                replace(op.need, out_pad=self.pads[var])
                for var in members
                if (op := self.ops.get(var)) is not None and op.need is not None
            ]
            changed = sum(shape_of(m)[0] * shape_of(m)[1] for m in members if self._is_changed(m))
            order = self.choose_lanes(
                needs,
                height_width(members[0]),
                max(self.pads[member] for member in members),
                changed,
                dtype=str(members[0].ty.dtype),
            )
            orders.update((member, order) for member in members)
        return orders

    def _is_changed(self, image: Expr) -> bool:
        """Whether an operator that needs plain rows writes or reads a tensor."""
        ops = [self.ops.get(image), *(self.ops.get(u) for u in self.uses.users.get(image, []))]
        return any(op is not None and op.order is Order.PLAIN for op in ops)

    def _border(self, image: Expr) -> int:
        """Vectors beside a row that the readers of a tensor want."""
        readers = (self.ops.get(user) for user in self.uses.users.get(image, []))
        needs = (op.need for op in readers if op is not None and op.images[0].same_as(image))
        return max((need.reach for need in needs if need is not None), default=0)

    def _layout(self, image: Expr) -> Layout:
        order, pad = self.orders[image], self.pads[image]
        if order is None:
            return self._plain_layout(image)
        return order.layout(*height_width(image), pad, self._border(image))

    def _plain_layout(self, image: Expr) -> Layout:
        return self.choose(*height_width(image), self.pads[image], dtype=str(image.ty.dtype))

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

    def _layout_for(self, image: Expr, plain: bool) -> Layout:
        return self._plain_layout(image) if plain else self.layouts[image]

    def _plane_type(self, image: Expr, layout: Layout) -> relax.TensorType:
        batch, channels = shape_of(image)[:2]
        return relax.TensorType((batch, channels, layout.size), image.ty.dtype)

    def _planes_of(self, image: Expr, plain: bool) -> Expr:
        """Planes of a tensor, in plain rows or its own order.

        Packed at the first use if it comes from outside, copied where the order changes.
        """
        plain = plain and self.orders[image] is not None
        if (image, plain) not in self.planes:
            layout = self._layout_for(image, plain)
            other = self.planes.get((image, not plain))
            marker = Marker("plane_pack", (image,), {"out_layout": layout_to_list(layout)})
            if other is not None:
                marker = _change(other, self._layout_for(image, not plain), layout)
            self.planes[image, plain] = self._emit(
                marker, _name(image), self._plane_type(image, layout)
            )
        return self.planes[image, plain]

    def _emit(self, marker: Marker, name: str, ty: relax.TensorType) -> Var:
        var = relax.DataflowVar(name, ty)
        self.result.append(relax.VarBinding(var, marker.call(ty)))
        return var

    def _emit_plane_op(self, var: Var, op: _PlaneOp) -> None:
        plain = op.order is Order.PLAIN
        planes = [self._planes_of(image, plain) for image in op.images]
        layouts = [self._layout_for(image, plain) for image in op.images]
        if not op.makes_plane:
            marker = op.build(planes, layouts, None)
            self.result.append(relax.VarBinding(var, marker.call(var.ty)))
            return
        layout = self._layout_for(var, plain)
        marker = op.build(planes, layouts, layout)
        written = plain and self.orders[var] is not None
        self.planes[var, written] = self._emit(marker, _name(var), self._plane_type(var, layout))
        outside = [u for u in self.uses.users.get(var, []) if u not in self.ops]
        if outside:
            unpack = Marker(
                "plane_unpack", (self.planes[var, written],), {"in_layout": layout_to_list(layout)}
            )
            self.result.append(relax.VarBinding(var, unpack.call(var.ty)))


def _change(planes: Expr, before: Layout, after: Layout) -> Marker:
    """A copy in another order."""
    params = {
        "operator": "add",
        "activation": "none",
        "bounds": [0.0, 0.0],
        "in_layouts": [layout_to_list(before)],
        "out_layout": layout_to_list(after),
    }
    return Marker("plane_elementwise", (planes,), params)


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


def _name(expr: Expr) -> str:
    return f"{expr.name}_planes" if isinstance(expr, Var) else "constant_planes"


@tvm.transform.module_pass(opt_level=0, name="PlaneLayout")
class PlaneLayout:
    """Markers and their neighbours -> ``plane_*`` markers with layouts, pack and unpack.

    Parameters
    ----------
    choose : callable
        ``(height, width, pad, dtype=...) -> topi_kernels.layout.PlaneLayout`` of plain rows.
    choose_lanes : callable, optional
        ``(needs, (height, width), pad, changed_channels, dtype=...) -> LaneOrder or None``, see
        :func:`topi_kernels.layout_choice.choose_lane_order`. By default all rows are plain.
    """

    def __init__(self, choose: LayoutChooser, choose_lanes: LaneChooser = plain_rows) -> None:
        self.choose = choose
        self.choose_lanes = choose_lanes

    def transform_module(self, mod: tvm.IRModule, _ctx: tvm.transform.PassContext) -> tvm.IRModule:
        return map_functions(mod, self._transform)

    def _transform(self, func: relax.Function) -> relax.Function:
        uses = Uses(func)
        blocks = [
            _Block(block, uses, self.choose, self.choose_lanes).run() for block in bindings_of(func)
        ]
        return rebuild(func, blocks)
