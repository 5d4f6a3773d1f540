"""Markers: how a rewritten operator looks in Relax before it becomes a PrimFunc.

A marker is ``R.call_pure_packed("pattern_sparse.<op>", tensors..., R.str(json), ty_args=type)``. It
prints and parses as TVMScript and compares structurally, so every pass can be read and tested. No
packed function of that name exists: ``schedule`` replaces all markers.

==================== ===================================== =========================================
op                   tensors                               parameters
==================== ===================================== =========================================
conv2d               x, weight[, kept][, bias][, residual] :class:`ConvParams`, layouts unset
depthwise_conv2d     x, weight[, bias]                     :class:`ConvParams`
activation           x                                     activation, bounds
channel_select       x, ...                                picks
channelwise          x[, gate][, scale][, shift][, slope]  parts, activation, bounds
plane_conv2d         as conv2d, of planes                  :class:`ConvParams`, layouts set
plane_depthwise      planes, weight[, bias]                :class:`ConvParams`, layouts set
plane_...            planes, ...                           in_layouts, out_layout, its own
==================== ===================================== =========================================

The operators on planes are those of :mod:`relay_passes.islands`. ``kept`` are the bits of the
layer's :class:`~topi_kernels.structure.Structure`, there when the parameter ``structure`` says
where it is known from.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from tvm import relax
from tvm.ir import Call, Expr, StringImm, Type

from topi_kernels.conv_task import ConvTask
from topi_kernels.geometry import ConvGeometry
from topi_kernels.layout import PlaneLayout
from topi_kernels.structure import Structure, determine
from topi_kernels.workload import Epilogue

from .dataflow import array_of, op_name

PREFIX = "pattern_sparse."


@dataclass(frozen=True)
class Marker:
    """A parsed marker: operator name, tensor arguments, parameters."""

    op: str
    tensors: tuple[Expr, ...]
    params: dict[str, Any]

    def call(self, ty: Type) -> Call:
        """The marker as a Relax expression of type ``ty``."""
        text = StringImm(json.dumps(self.params, sort_keys=True))
        call = relax.call_pure_packed(PREFIX + self.op, *self.tensors, text, ty_args=ty)
        return relax.BlockBuilder().normalize(call)


def parse(expr: Any) -> Marker | None:
    """The marker that ``expr`` is, or None."""
    if op_name(expr) != "relax.call_pure_packed" or not isinstance(expr.args[0], relax.ExternFunc):
        return None
    name = str(expr.args[0].global_symbol)
    if not name.startswith(PREFIX):
        return None
    return Marker(name[len(PREFIX) :], tuple(expr.args[1:-1]), json.loads(expr.args[-1].value))


@dataclass(frozen=True)
class ConvParams:
    """Parameters of a convolution marker.

    ``layer`` is the row of the report, ``end_padding`` the padding ``(bottom, right)``,
    ``structure`` the source of the structure that the marker carries; empty if it carries none.
    """

    layer: str
    geometry: ConvGeometry
    end_padding: tuple[int, int] = (0, 0)
    epilogue: Epilogue = field(default_factory=Epilogue)
    structure: str = ""
    in_layout: PlaneLayout | None = None
    out_layout: PlaneLayout | None = None
    residual_layout: PlaneLayout | None = None

    @property
    def pad(self) -> tuple[int, int]:
        """Rows and columns around the image that the convolution reads."""
        (top, left), (bottom, right) = self.geometry.padding, self.end_padding
        return max(top, bottom), max(left, right)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for a marker."""
        data = asdict(self)
        for key in ("in_layout", "out_layout", "residual_layout"):
            data[key] = layout_to_list(getattr(self, key))
        return data

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> ConvParams:
        """Inverse of :meth:`to_dict`."""
        data = dict(data)
        data["geometry"] = ConvGeometry.from_dict(data["geometry"])
        data["end_padding"] = tuple(data["end_padding"])
        data["epilogue"] = Epilogue(**data["epilogue"])
        for key in ("in_layout", "out_layout", "residual_layout"):
            data[key] = None if data[key] is None else layout_from_list(data[key])
        return cls(**data)

    def task(
        self,
        weight: np.ndarray,
        batch: int,
        family: str,
        structure: Structure | None = None,
        *,
        winograd: bool = True,
    ) -> ConvTask:
        """The task of a ``plane_conv2d`` marker with these weights.

        Raises
        ------
        ValueError
            If the layouts are not set, or see :meth:`ConvTask.from_weight`.
        """
        if self.in_layout is None or self.out_layout is None:
            raise ValueError(
                f"layer {self.layer!r} has no plane layouts yet; run the pass PlaneLayout first"
            )
        return ConvTask.from_weight(
            weight,
            self.geometry,
            self.in_layout,
            self.out_layout,
            family=family,
            batch=batch,
            epilogue=self.epilogue,
            residual_layout=self.residual_layout,
            structure=structure,
            winograd=winograd,
        )


def structure_of(marker: Marker) -> Structure:
    """The structure that a convolution marker carries; of one without, what its weights say."""
    weight = array_of(marker.tensors[1])
    source = marker.params["structure"]
    if not source:
        return determine(weight)
    return Structure.from_bits(array_of(marker.tensors[2]), weight.shape, source)


def epilogue_tensors(marker: Marker) -> list[Expr]:
    """Bias and residual of a convolution marker, as far as it has them."""
    return list(marker.tensors[3 if marker.params["structure"] else 2 :])


def layout_to_list(layout: PlaneLayout | None) -> list[int] | None:
    """:meth:`PlaneLayout.as_values`; None as long as there is no layout."""
    return None if layout is None else layout.as_values()


def layout_from_list(values: list[int] | None) -> PlaneLayout:
    """Inverse of :func:`layout_to_list` for a tensor that has a layout.

    Raises
    ------
    ValueError
        If it has none.
    """
    if values is None:
        raise ValueError("a marker without layout cannot be scheduled; run PlaneLayout before")
    return PlaneLayout(*values)
