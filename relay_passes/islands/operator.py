"""What the layout and the schedule pass know of an operator that lives on planes, and a registry.

An operator is one file beside this one: how it is recognised in Relax, what it asks of the planes
that it reads, the marker that stands for it, and the PrimFuncs that it becomes, scheduled and as
:mod:`topi_kernels.compute` specifies it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from tvm import tirx
from tvm.ir import Expr, GlobalVar, Var

from topi_kernels.layout import PlaneLayout
from topi_kernels.layout_choice import ConvNeed
from topi_kernels.plane_ops import PlaneTarget

from ..dataflow import shape_of
from ..markers import Marker, layout_from_list, layout_to_list
from .scheduling import Scheduling

#: ``(planes, their layouts, layout of the output)`` -> the marker; no layout where it is no plane.
Build = Callable[[list[Expr], list[PlaneLayout], PlaneLayout | None], Marker]


class Order(Enum):
    """What an operator asks of the order of the pixels in its planes."""

    #: Any order in, any order out.
    ANY = "any"
    #: All its planes in one order.
    SAME = "same"
    #: Plain rows in and out.
    PLAIN = "plain"
    #: Input and output in lanes that hold the same pixels, see ``PlaneLayout.keeps_lanes_of``, and
    #: other images in the order of the output; or plain rows.
    STRIDED = "strided"


@dataclass(frozen=True)
class PlaneOp:
    """One occurrence of an operator that could work on planes.

    Parameters
    ----------
    images : sequence of Expr
        The inputs that come as planes.
    build : callable
        Makes the marker once the layouts are chosen.
    pads : tuple of (int, int)
        The rows and columns of padding that each of the images needs; none where fewer are named.
    makes_plane : bool
        Whether its output is an image that can stay on planes.
    order : Order
    need : ConvNeed, optional
        A convolution whose order of pixels can be chosen.
    copies : bool
        Whether it copies planes as they lie, if its images have the padding of its output.
    """

    images: Sequence[Expr]
    build: Build
    pads: tuple[tuple[int, int], ...] = ()
    makes_plane: bool = True
    order: Order = Order.ANY
    need: ConvNeed | None = None
    copies: bool = False

    def padded_images(self) -> Iterator[tuple[Expr, tuple[int, int]]]:
        """The images, each with the padding it needs."""
        missing = ((0, 0),) * (len(self.images) - len(self.pads))
        return zip(self.images, self.pads + missing, strict=True)


def placed(name: str, params: dict[str, Any] | None = None) -> Build:
    """What makes the marker ``name`` of the planes, with their layouts among its parameters."""

    def build(planes: list[Expr], layouts: list[PlaneLayout], out: PlaneLayout | None) -> Marker:
        where = {
            "in_layouts": [layout_to_list(layout) for layout in layouts],
            "out_layout": layout_to_list(out),
        }
        return Marker(name, tuple(planes), {**(params or {}), **where})

    return build


@dataclass(frozen=True)
class PlaneCall:
    """What the PrimFunc of a marker made by :func:`placed` depends on.

    Parameters
    ----------
    dims : tuple of int
        Batch and channels of the output.
    in_layouts : tuple of PlaneLayout
    out_layout : PlaneLayout or None
        None where the output is no plane.
    target : PlaneTarget
    params : dict
        The marker's other parameters.
    operators : module
        What makes the PrimFunc, :mod:`topi_kernels.plane_operators`, or :mod:`~.compute` where it
        shall be as it is specified.
    """

    dims: tuple[int, int]
    in_layouts: tuple[PlaneLayout, ...]
    out_layout: PlaneLayout | None
    target: PlaneTarget
    params: dict[str, Any]
    operators: Any

    @property
    def layouts(self) -> tuple[PlaneLayout, ...]:
        """Of all planes, the inputs' first."""
        return self.in_layouts + (() if self.out_layout is None else (self.out_layout,))

    @classmethod
    def of(cls, marker: Marker, out: Var, scheduling: Scheduling) -> PlaneCall:
        """The call that a marker bound to ``out`` stands for."""
        params = dict(marker.params)
        sources = tuple(layout_from_list(values) for values in params.pop("in_layouts"))
        values = params.pop("out_layout")
        batch, channels = shape_of(out)[:2]
        target = scheduling.backend.planes(str(out.ty.dtype))
        layout = None if values is None else layout_from_list(values)
        operators = scheduling.operators
        return cls((batch, channels), sources, layout, target, params, operators)


def never(_value: Expr, _out: Expr) -> None:
    """Recognises nothing: an operator that only passes put into a module."""


def nothing(_marker: Marker) -> None:
    """No marker of it is ever left outside an island."""


@dataclass(frozen=True)
class IslandOperator:
    """An operator that lives on planes.

    Parameters
    ----------
    name : str
        Of its marker with layouts.
    lower : callable
        ``(marker, out, scheduling)`` -> the PrimFunc's variable and its arguments.
    recognize : callable
        ``(value, out)`` -> how ``value``, bound to ``out``, works on planes, or None.
    starts : bool
        Whether it makes an island where there is none; others join one that they read from.
    outside : callable
        ``marker`` -> the Relax operators for a marker of it that no island took, or None.
    """

    name: str
    lower: Callable[[Marker, Var, Scheduling], tuple[GlobalVar, list[Expr]]]
    recognize: Callable[[Expr, Expr], PlaneOp | None] = never
    starts: bool = False
    outside: Callable[[Marker], Expr | None] = nothing


def on_planes(
    name: str,
    make: Callable[[PlaneCall], tirx.PrimFunc],
    **options: Any,
) -> IslandOperator:
    """An operator whose marker :func:`placed` makes; its PrimFunc takes the marker's tensors.

    Parameters
    ----------
    name : str
    make : callable
        The PrimFunc of a :class:`PlaneCall`, by its ``operators``.
    options
        Further fields of :class:`IslandOperator`.
    """

    def lower(marker: Marker, out: Var, scheduling: Scheduling) -> tuple[GlobalVar, list[Expr]]:
        call = PlaneCall.of(marker, out, scheduling)
        key = (name, call.dims, call.target, repr(marker.params))
        return scheduling.function(key, lambda: make(call)), list(marker.tensors)

    return IslandOperator(name, lower, **options)


class Islands:
    """Operators by name; which one takes a value does not depend on the order they came in."""

    def __init__(self) -> None:
        self._operators: dict[str, IslandOperator] = {}

    def add(self, operator: IslandOperator) -> None:
        """Register an operator.

        Raises
        ------
        ValueError
            If there is one of that name.
        """
        if operator.name in self._operators:
            raise ValueError(
                f"an island operator {operator.name!r} is registered already; choose another name,"
                " or remove that one first"
            )
        self._operators[operator.name] = operator

    def remove(self, name: str) -> None:
        """Take an operator out again."""
        self.named(name)
        del self._operators[name]

    def names(self) -> list[str]:
        """Names of all operators, sorted."""
        return sorted(self._operators)

    def named(self, name: str) -> IslandOperator:
        """The operator whose marker has that name.

        Raises
        ------
        ValueError
            If there is none.
        """
        if name not in self._operators:
            raise ValueError(
                f"the marker {name!r} cannot be scheduled; expected one of {self.names()}: run"
                " PlaneLayout before"
            )
        return self._operators[name]

    def recognize(self, value: Expr, out: Expr) -> tuple[IslandOperator, PlaneOp] | None:
        """The operator that takes ``value``, bound to ``out``, and how; or None.

        Raises
        ------
        ValueError
            If two operators take it.
        """
        found = [
            (operator, op)
            for operator in self._operators.values()
            if (op := operator.recognize(value, out)) is not None
        ]
        if len(found) > 1:
            raise ValueError(
                f"the island operators {sorted(o.name for o, _ in found)} all take {value}; only"
                " one of them may recognise it"
            )
        return found[0] if found else None

    def outside(self, marker: Marker) -> Expr | None:
        """The Relax operators for a marker that no island took, or None if it stays."""
        for operator in self._operators.values():
            if (value := operator.outside(marker)) is not None:
                return value
        return None
