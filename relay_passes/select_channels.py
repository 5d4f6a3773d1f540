"""SelectChannels: concatenations, slices and shuffles of channels -> ``channel_select`` markers.

Preconditions: FuseEpilogue has run. What follows each other becomes one: of a concatenation that
is shuffled and split, each half is taken from the images that were concatenated::

    concat, strided_slice, split along channels
    reshape([n, g, c / g, h, w]) -> permute_dims([0, 2, 1, 3, 4]) -> reshape([n, c, h, w])

PlaneLayout turns markers that end up outside an island back into Relax operators.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import tvm
from tvm import relax
from tvm.ir import Expr, Var

from topi_kernels.channel_select import Pick

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
from .islands.channel_select import marker_of


@dataclass(frozen=True)
class Selection:
    """The channels of an image, as channels of others."""

    images: tuple[Expr, ...]
    picks: tuple[Pick, ...]

    @classmethod
    def of(cls, image: Expr) -> Selection:
        """An image as it is."""
        return cls((image,), tuple((0, c) for c in range(shape_of(image)[1])))

    @classmethod
    def joined(cls, parts: Sequence[Selection]) -> Selection:
        """One behind the other; an image that several have is one of the images once."""
        images = list(dict.fromkeys(image for part in parts for image in part.images))
        picks = [(images.index(part.images[i]), c) for part in parts for i, c in part.picks]
        return cls(tuple(images), tuple(picks))

    def taken(self, channels: Sequence[int]) -> Selection:
        """Some of the channels, in any order."""
        return Selection.joined([Selection(self.images, tuple(self.picks[c] for c in channels))])

    @property
    def used(self) -> Selection:
        """Without the images of which nothing is taken."""
        kept = sorted({i for i, _ in self.picks})
        picks = tuple((kept.index(i), c) for i, c in self.picks)
        return Selection(tuple(self.images[i] for i in kept), picks)


class _Selector:
    def __init__(self, func: relax.Function) -> None:
        self.uses = Uses(func)
        self.found: dict[Expr, Selection] = {}

    def source(self, image: Expr) -> Selection:
        return self.found.get(image) or Selection.of(image)

    def selection(self, var: Var) -> Selection | None:
        """How a value is made of channels of others, or None."""
        value = self.uses.value[var]
        if not is_float_image(var):
            return None
        if op_name(value) == "relax.concat":
            return self.concatenated(value)
        if op_name(value) == "relax.strided_slice":
            return self.sliced(value, shape_of(var)[1])
        if op_name(value) == "relax.reshape":
            return self.shuffled(var)
        if isinstance(value, relax.TupleGetItem):
            return self.part(value)
        return None

    def concatenated(self, call: Expr) -> Selection | None:
        images = self.uses.definition(call.args[0]) or call.args[0]
        if not isinstance(images, relax.Tuple) or call.attrs.axis is None:
            return None
        if int(call.attrs.axis) % 4 != 1 or not all(map(_is_variable_image, images.fields)):
            return None
        return Selection.joined([self.source(image) for image in images.fields])

    def sliced(self, call: Expr, count: int) -> Selection | None:
        image, axes, begin, _end, *strides = call.args
        numbers = [_numbers(tuple_) for tuple_ in (axes, begin, *strides)]
        if not _is_variable_image(image) or numbers[0] not in ([1], [-3]):
            return None
        if numbers[1] is None or numbers[2:] not in ([], [[1]]):
            return None
        channels = shape_of(image)[1]
        first = numbers[1][0]
        first = max(0, first + channels) if first < 0 else min(first, channels)
        return self.source(image).taken(range(first, first + count))

    def part(self, item: relax.TupleGetItem) -> Selection | None:
        """One of the results of a split."""
        call = self.uses.definition(item.tuple_value)
        if op_name(call) != "relax.split" or int(call.attrs.axis) % 4 != 1:
            return None
        if not _is_variable_image(call.args[0]):
            return None
        counts = [int(field.shape[1]) for field in item.tuple_value.ty.fields]
        first = sum(counts[: item.index])
        return self.source(call.args[0]).taken(range(first, first + counts[item.index]))

    def shuffled(self, var: Var) -> Selection | None:
        turned = self.uses.definition(self.uses.value[var].args[0])
        if op_name(turned) != "relax.permute_dims" or turned.attrs.axes is None:
            return None
        apart = self.uses.definition(turned.args[0])
        if op_name(apart) != "relax.reshape" or not _is_variable_image(apart.args[0]):
            return None
        image, shape = apart.args[0], static_shape(turned.args[0])
        axes, whole = [int(axis) for axis in turned.attrs.axes], shape_of(image)
        if axes != [0, 2, 1, 3, 4] or shape_of(var) != whole:
            return None
        if shape is None or (shape[0], *shape[3:]) != (whole[0], *whole[2:]):
            return None
        groups, each = shape[1:3]
        return self.source(image).taken([g * each + i for i in range(each) for g in range(groups)])

    def run(self, func: relax.Function) -> relax.Function:
        blocks = bindings_of(func)
        for block in blocks:
            self.found.clear()  # what a block binds may be unknown in the next
            for i, binding in enumerate(block):
                selection = self.selection(binding.var)
                if selection is None or not selection.picks:
                    continue
                self.found[binding.var] = selection
                used = selection.used
                if used == Selection.of(used.images[0]):
                    continue
                marker = marker_of(used.images, used.picks)
                block[i] = relax.VarBinding(binding.var, marker.call(binding.var.ty))
        return rebuild(func, blocks)


def _is_variable_image(expr: Expr) -> bool:
    return isinstance(expr, Var) and is_float_image(expr)


def _numbers(expr: Expr) -> list[int] | None:
    """The integers of a tuple."""
    fields = expr.fields if isinstance(expr, relax.Tuple) else []
    if not fields or not all(isinstance(f, tvm.tirx.IntImm) for f in fields):
        return None
    return [int(f) for f in fields]


@tvm.transform.module_pass(opt_level=0, name="SelectChannels")
class SelectChannels:
    """Concatenations, slices and shuffles of channels become one marker each."""

    def transform_module(self, mod: tvm.IRModule, _ctx: tvm.transform.PassContext) -> tvm.IRModule:
        selected = map_functions(mod, lambda func: _Selector(func).run(func))
        return relax.transform.DeadCodeElimination()(selected)
