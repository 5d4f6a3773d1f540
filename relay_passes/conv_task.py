"""ConvTask: what is known of a convolution before a configuration is chosen.

A :class:`topi_kernels.workload.ConvWorkload` describes packed weights, and packing depends on the
configuration. Tuning needs the opposite: a name for the layer that stays the same whichever
configuration is tried, so that its records are found again.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from topi_kernels.layout import PlaneLayout
from topi_kernels.operator import (
    ConvPlan,
    conv_shape,
    family_of,
    plan_conv,
)
from topi_kernels.pattern import Pattern
from topi_kernels.schedules.config import ConvConfig, Family, illegal_reason
from topi_kernels.schedules.search_space import ConvShape
from topi_kernels.structure import Structure, analyse
from topi_kernels.workload import Epilogue

from .markers import ConvParams, layout_to_list


@dataclass(frozen=True)
class ConvTask:
    """One convolution to choose a configuration for.

    Parameters
    ----------
    batch : int
    weight_shape : tuple of int
        ``(out_channels, in_channels, kh, kw)``.
    stride, padding, dilation : tuple of (int, int)
        ``padding`` is ``(top, left)``.
    in_layout, out_layout : PlaneLayout
    residual_layout : PlaneLayout or None
    epilogue : Epilogue
    structure : str
        Kind found by :func:`topi_kernels.structure.analyse`.
    patterns : tuple of Pattern
        Distinct patterns in canonical order.
    max_group : int
        Filters that share kernels and patterns.
    kept_kernels, kept_weights : int
    dtype : str
    family : str
        Processor family of the target.
    """

    batch: int
    weight_shape: tuple[int, int, int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    in_layout: PlaneLayout
    out_layout: PlaneLayout
    residual_layout: PlaneLayout | None
    epilogue: Epilogue
    structure: str
    patterns: tuple[Pattern, ...]
    max_group: int
    kept_kernels: int
    kept_weights: int
    dtype: str
    family: str

    @classmethod
    def from_weight(
        cls, weight: np.ndarray, batch: int, params: ConvParams, family: str
    ) -> ConvTask:
        """The task of a ``plane_conv2d`` marker.

        Parameters
        ----------
        weight : numpy.ndarray
            ``[out_channels, in_channels, kh, kw]``, zeros are removed weights.
        batch : int
        params : ConvParams
            With its layouts set.
        family : str

        Raises
        ------
        ValueError
            If the layouts are not set.
        """
        if params.in_layout is None or params.out_layout is None:
            raise ValueError(
                f"layer {params.layer!r} has no plane layouts yet; run the pass PlaneLayout first"
            )
        found = analyse(weight)
        out_channels, in_channels, kh, kw = weight.shape
        return cls(
            batch=batch,
            weight_shape=(out_channels, in_channels, kh, kw),
            stride=params.strides,
            padding=(params.padding[0], params.padding[1]),
            dilation=params.dilation,
            in_layout=params.in_layout,
            out_layout=params.out_layout,
            residual_layout=params.residual_layout,
            epilogue=Epilogue(params.bias, params.residual, params.activation),
            structure=found.kind,
            patterns=tuple(sorted(found.patterns)),
            max_group=found.max_group,
            kept_kernels=found.kept_kernels,
            kept_weights=found.kept_weights,
            dtype=str(weight.dtype),
            family=family,
        )

    def as_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON."""
        return {
            **{name: getattr(self, name) for name in _PLAIN},
            **{name: list(getattr(self, name)) for name in _TUPLES},
            **{name: layout_to_list(getattr(self, name)) for name in _LAYOUTS},
            "epilogue": asdict(self.epilogue),
            "patterns": [p.bits for p in self.patterns],
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> ConvTask:
        """Inverse of :meth:`as_dict`.

        Raises
        ------
        ValueError
            On unknown or missing fields, counts that are no whole numbers and names that are no
            text.
        """
        if set(data) != set(cls.__dataclass_fields__):
            raise ValueError(
                f"a task has the fields {sorted(cls.__dataclass_fields__)}, got {sorted(data)}"
            )
        for name in _COUNTS:
            if type(data[name]) is not int or data[name] < 0:
                raise ValueError(f"field {name!r} of a task is {str(data[name])[:40]!r}, no count")
        for name in ("structure", "dtype", "family"):
            if not isinstance(data[name], str):
                raise ValueError(f"field {name!r} of a task is {str(data[name])[:40]!r}, no name")
        kernel_size = (data["weight_shape"][2], data["weight_shape"][3])
        return cls(
            **{
                **data,
                **{name: tuple(data[name]) for name in _TUPLES},
                **{name: PlaneLayout(*data[name]) if data[name] else None for name in _LAYOUTS},
                "epilogue": Epilogue(**data["epilogue"]),
                "patterns": tuple(_pattern(kernel_size, bits) for bits in data["patterns"]),
            }
        )

    @property
    def key(self) -> str:
        """Stable identifier: equal tasks have equal keys in every process and version."""
        text = json.dumps(self.as_dict(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def similarity_key(self) -> str:
        """Equal for layers of one shape whose weights differ in how many and which are kept."""
        data = self.as_dict()
        for name in ("kept_kernels", "kept_weights", "epilogue", "residual_layout"):
            del data[name]
        data["patterns"] = max(len(p) for p in self.patterns)
        return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def label(self) -> str:
        """A short name for people, such as ``3x3 256->256 14x14``."""
        o, i, kh, kw = self.weight_shape
        stride = "" if self.stride == (1, 1) else f" s{self.stride[0]}"
        return f"{kh}x{kw} {i}->{o} {self.out_layout.height}x{self.out_layout.width}{stride}"

    @property
    def density(self) -> float:
        """Fraction of non-zero weights."""
        o, i, kh, kw = self.weight_shape
        return self.kept_weights / max(1, o * i * kh * kw)

    @property
    def effective_flops(self) -> int:
        """Floating point operations of the non-zero weights."""
        return 2 * self.batch * self.kept_weights * self.out_layout.height * self.out_layout.width

    @property
    def dense_flops(self) -> int:
        """Dense-equivalent floating point operations."""
        o, i, kh, kw = self.weight_shape
        pixels = self.out_layout.height * self.out_layout.width
        return 2 * self.batch * o * i * kh * kw * pixels

    @property
    def machine(self) -> Family:
        """The facts of the family, with the lanes that its vectors have in this dtype."""
        return family_of(self.family).of_dtype(self.dtype)

    @property
    def shape(self) -> ConvShape:
        """The convolution as the schedule's cost model sees it."""
        structure = Structure(
            self.structure, self.patterns, self.max_group, self.kept_kernels, self.kept_weights
        )
        geometry = (self.stride, self.padding, self.dilation)
        return conv_shape(self.weight_shape, structure, self.in_layout, self.out_layout, geometry)

    def illegal_reason(self, config: ConvConfig) -> str | None:
        """Why ``config`` cannot be used for this task, or None when it can."""
        if config.group > self.max_group:
            return f"group {config.group} exceeds the {self.max_group} filters that share kernels"
        return illegal_reason(
            config,
            self.machine,
            out_height=self.out_layout.height,
            out_width=self.out_layout.width,
            in_row_stride=self.in_layout.row_stride,
            out_row_stride=self.out_layout.row_stride,
            stride_w=self.stride[1],
        )

    def plan(
        self, weight: np.ndarray, num_threads: int = 1, config: ConvConfig | None = None
    ) -> ConvPlan:
        """The planned convolution; ``config`` None is level 0.

        Raises
        ------
        ValueError
            See :func:`topi_kernels.operator.plan_conv`.
        """
        return plan_conv(
            weight,
            batch=self.batch,
            in_layout=self.in_layout,
            out_layout=self.out_layout,
            stride=self.stride,
            padding=self.padding,
            dilation=self.dilation,
            epilogue=self.epilogue,
            residual_layout=self.residual_layout,
            family=self.family,
            num_threads=num_threads,
            config=config,
        )


_PLAIN = (
    "batch",
    "structure",
    "max_group",
    "kept_kernels",
    "kept_weights",
    "dtype",
    "family",
)
_COUNTS = ("batch", "max_group", "kept_kernels", "kept_weights")
_TUPLES = ("weight_shape", "stride", "padding", "dilation")
_LAYOUTS = ("in_layout", "out_layout", "residual_layout")


def _pattern(kernel_size: tuple[int, int], bits: int) -> Pattern:
    kh, kw = kernel_size
    taps = tuple((r, c) for r in range(kh) for c in range(kw) if bits >> (r * kw + c) & 1)
    return Pattern(kernel_size, taps)
