"""PlaneLayout: islands of supported operators work on planes; pack and unpack at their borders.

Preconditions: FuseEpilogue has run. Which operators there are, and what they ask of their planes,
is said in :mod:`relay_passes.islands`. Some of them, such as convolutions, always work on planes;
the others join an island if one of their inputs is there. A tensor's padding is the largest that
any of its readers on planes needs, so no layer copies to pad. Tensors that convolutions of stride
1, additions and activations connect have their pixels in one order, which is chosen for all of
them, together with those that convolutions of stride 2 lead to; an operator that needs plain rows
gets or leaves these, and a copy changes the order. A value
that is also used outside (another operator, another block, the function's output) is unpacked once.
Markers that no island took become Relax operators again; after this pass only ``plane_*`` markers
are left.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import tvm
from tvm import relax
from tvm.ir import Call, Expr, Var

from topi_kernels.layout import PlaneLayout as Layout
from topi_kernels.layout_choice import ConvNeed, LaneOrder, TensorSet
from topi_kernels.layout_links import StridedLink

from .dataflow import Uses, bindings_of, height_width, map_functions, rebuild, shape_of
from .islands import ISLANDS
from .islands.borders import pack, unpack
from .islands.elementwise import change_of_order
from .islands.operator import Order, PlaneOp
from .markers import Marker, parse

LayoutChooser = Callable[..., Layout]
LaneChooser = Callable[[Sequence[TensorSet], Sequence[StridedLink]], list[LaneOrder | None]]


def plain_rows(sets: Sequence[TensorSet], _links: Sequence[StridedLink]) -> list[LaneOrder | None]:
    """The lane chooser that leaves all tensors in plain rows."""
    return [None] * len(sets)


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

    def _islands(self) -> dict[Var, PlaneOp]:
        """Operators that join: those that start islands, and what reads the planes of another."""
        ops: dict[Var, PlaneOp] = {}
        for binding in self.bindings:
            found = ISLANDS.recognize(binding.value, binding.var)
            if found is None:
                continue
            operator, op = found
            # A gate, an image of another size, alone is no reason to put an image on planes.
            size = height_width(op.images[0])
            joined = [i for i in op.images if i in ops and height_width(i) == size]
            if operator.starts or any(ops[i].makes_plane for i in joined):
                ops[binding.var] = op
        return ops

    def _pads(self) -> dict[Expr, tuple[int, int]]:
        """Rows and columns of padding of every tensor that lives as planes."""
        pads = {var: (0, 0) for var, op in self.ops.items() if op.makes_plane}
        for op in self.ops.values():
            for image, (rows, columns) in op.padded_images():
                most = pads.get(image, (0, 0))
                pads[image] = max(most[0], rows), max(most[1], columns)
        for var, op in reversed(self.ops.items()):
            for image in op.images if op.copies else ():
                rows, columns = pads[image]
                pads[image] = max(rows, pads[var][0]), max(columns, pads[var][1])
        return pads

    def _connected(self) -> list[list[Expr]]:
        """Tensors that have their pixels in one order; images of another size have their own."""
        set_of: dict[Expr, list[Expr]] = {image: [image] for image in self.pads}
        for var, op in self.ops.items():
            if op.order not in (Order.SAME, Order.STRIDED):
                continue
            for image in op.images if op.order is Order.SAME else op.images[1:]:
                ours, others = set_of[var], set_of[image]
                if ours is others or height_width(image) != height_width(var):
                    continue
                ours.extend(others)
                set_of.update((member, ours) for member in others)
        return list({id(members): members for members in set_of.values()}.values())

    def _need(self, var: Expr, order: Order) -> ConvNeed | None:
        """The convolution that a tensor comes from, if its order can be chosen like this."""
        op = self.ops.get(var)
        if op is None or op.need is None or op.order is not order:
            return None
        return replace(op.need, out_pad=self.pads[var])

    def _orders(self) -> dict[Expr, LaneOrder | None]:
        """Order of the pixels of every tensor; None for plain rows."""
        connected = self._connected()
        number = {member: i for i, members in enumerate(connected) for member in members}
        sets, links = [], []
        for i, members in enumerate(connected):
            needs = [need for var in members if (need := self._need(var, Order.SAME))]
            pad = max(self.pads[member][0] for member in members)
            changed = sum(shape_of(m)[0] * shape_of(m)[1] for m in members if self._is_changed(m))
            dtype = str(members[0].ty.dtype)
            sets.append(TensorSet(needs, height_width(members[0]), pad, changed, dtype))
            links += [
                StridedLink(need, number[self.ops[var].images[0]], i)
                for var in members
                if (need := self._need(var, Order.STRIDED))
            ]
        orders = self.choose_lanes(sets, links)
        return {member: orders[i] for member, i in number.items()}

    def _is_plain(self, var: Expr, op: PlaneOp) -> bool:
        """Whether an operator works on plain rows, whatever order its tensors have."""
        if op.order is not Order.STRIDED or op.need is None:
            return op.order is Order.PLAIN
        source, result = self.layouts[op.images[0]], self.layouts[var]
        return not result.keeps_lanes_of(source, op.need.geometry.stride)

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
        return order.layout(*height_width(image), pad[0], self._border(image))

    def _plain_layout(self, image: Expr) -> Layout:
        return self.choose(*height_width(image), self.pads[image], dtype=str(image.ty.dtype))

    def run(self) -> list[relax.Binding]:
        for binding in self.bindings:
            op = self.ops.get(binding.var)
            marker = None if op is not None else parse(binding.value)
            value = None if marker is None else ISLANDS.outside(marker)
            if op is not None:
                self._emit_plane_op(binding.var, op)
            elif value is not None:
                self.result.append(relax.VarBinding(binding.var, _Normal.of(value, self.result)))
            else:
                self.result.append(binding)
        return self.result

    def _layout_for(self, image: Expr, *, plain: bool) -> Layout:
        return self._plain_layout(image) if plain else self.layouts[image]

    def _plane_type(self, image: Expr, layout: Layout) -> relax.TensorType:
        batch, channels = shape_of(image)[:2]
        return relax.TensorType((batch, channels, layout.size), image.ty.dtype)

    def _planes_of(self, image: Expr, *, plain: bool) -> Expr:
        """Planes of a tensor, in plain rows or its own order.

        Packed at the first use if it comes from outside, copied where the order changes.
        """
        plain = plain and self.orders[image] is not None
        if (image, plain) not in self.planes:
            layout = self._layout_for(image, plain=plain)
            other = self.planes.get((image, not plain))
            marker = pack(image, layout)
            if other is not None:
                marker = change_of_order(other, self._layout_for(image, plain=not plain), layout)
            self.planes[image, plain] = self._emit(
                marker, _name(image), self._plane_type(image, layout)
            )
        return self.planes[image, plain]

    def _emit(self, marker: Marker, name: str, ty: relax.TensorType) -> Var:
        var = relax.DataflowVar(name, ty)
        self.result.append(relax.VarBinding(var, marker.call(ty)))
        return var

    def _emit_plane_op(self, var: Var, op: PlaneOp) -> None:
        plain = self._is_plain(var, op)
        planes = [self._planes_of(image, plain=plain) for image in op.images]
        layouts = [self._layout_for(image, plain=plain) for image in op.images]
        if not op.makes_plane:
            marker = op.build(planes, layouts, None)
            self.result.append(relax.VarBinding(var, marker.call(var.ty)))
            return
        layout = self._layout_for(var, plain=plain)
        marker = op.build(planes, layouts, layout)
        written = plain and self.orders[var] is not None
        self.planes[var, written] = self._emit(marker, _name(var), self._plane_type(var, layout))
        outside = [u for u in self.uses.users.get(var, []) if u not in self.ops]
        if outside:
            marker = unpack(self.planes[var, written], layout)
            self.result.append(relax.VarBinding(var, marker.call(var.ty)))


class _Normal:
    """Nested calls as bindings."""

    @staticmethod
    def of(value: Call, result: list[relax.Binding]) -> Expr:
        builder = relax.BlockBuilder()

        def flat(call: Call) -> Expr:
            args = [bound(arg) for arg in call.args]
            return builder.normalize(Call(call.op, args, call.attrs, call.ty_args))

        def bound(expr: Expr) -> Expr:
            if isinstance(expr, relax.Tuple):
                return relax.Tuple([bound(field) for field in expr.fields])
            if not isinstance(expr, Call):
                return expr
            call = flat(expr)
            var = relax.DataflowVar("activation", call.ty)
            result.append(relax.VarBinding(var, call))
            return var

        return flat(value)


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
        ``(sets of tensors, links between them) -> LaneOrder or None for each set``, see
        :func:`topi_kernels.layout_links.choose_lane_orders`. By default all rows are plain.
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
