"""ConvTask: what is known of a convolution before a configuration is chosen.

A :class:`topi_kernels.workload.ConvWorkload` describes packed weights, and packing depends on the
configuration. Tuning needs the opposite: a name for the layer that stays the same whichever
configuration is tried, so that its records are found again.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from .devices import DEVICES
from .geometry import ConvGeometry
from .layout import PlaneLayout
from .pattern import Pattern
from .schedules.choose import Config, ConvSchedules, Facts, schedules_of
from .schedules.shape import ConvShape
from .structure import Structure, determine
from .task_base import TaskBase, digest
from .workload import Epilogue

MAX_ELEMENTS = 2**31 - 1


@dataclass(frozen=True)
class ConvTask(TaskBase):
    """One convolution to choose a configuration for.

    Parameters
    ----------
    batch, out_channels, in_channels : int
    geometry : ConvGeometry
    in_layout, out_layout : PlaneLayout
    residual_layout : PlaneLayout or None
    epilogue : Epilogue
    structure : str
        Kind of the :class:`topi_kernels.structure.Structure`.
    patterns : tuple of Pattern
        Distinct patterns in canonical order.
    max_group : int
        Filters that share kernels and patterns.
    kept_kernels, kept_weights : int
    dtype : str
    family : str
        Name of the device.
    winograd : bool
        Whether a dense layer of float32 may be computed by Winograd's filtering. No part of the
        task's key: records are found whatever is allowed.

    Raises
    ------
    ValueError
        If there is no such device with schedules.
    """

    batch: int
    out_channels: int
    in_channels: int
    geometry: ConvGeometry
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
    winograd: bool = True

    def __post_init__(self) -> None:
        DEVICES.facts(self.family)

    @classmethod
    def from_weight(
        cls,
        weight: np.ndarray,
        geometry: ConvGeometry,
        in_layout: PlaneLayout,
        out_layout: PlaneLayout,
        *,
        family: str,
        batch: int = 1,
        epilogue: Epilogue | None = None,
        residual_layout: PlaneLayout | None = None,
        structure: Structure | None = None,
        winograd: bool = True,
    ) -> ConvTask:
        """The task of a convolution with these weights.

        Parameters
        ----------
        weight : numpy.ndarray
            float32 or float16 ``[out_channels, in_channels, kh, kw]``.
        geometry : ConvGeometry
        in_layout, out_layout, residual_layout : PlaneLayout
        family : str
            Name of a device that has schedules, see :mod:`topi_kernels.devices`.
        batch : int
        epilogue : Epilogue, optional
            Default: none.
        structure : Structure, optional
            Which weights are kept; default: what the weights say.
        winograd : bool
            As above.

        Raises
        ------
        ValueError
            On unusable weights, sizes beyond 32-bit indices or a geometry of another kernel.
        """
        check_weight(weight)
        out_channels, in_channels, kh, kw = weight.shape
        if (kh, kw) != geometry.kernel_size:
            raise ValueError(
                f"the weights have kernels of {kh}x{kw}, the geometry of {geometry.kernel_size}"
            )
        if batch < 1:
            raise ValueError(f"batch must be >= 1, got {batch}")
        largest = batch * max(in_channels * in_layout.size, out_channels * out_layout.size)
        if largest > MAX_ELEMENTS:
            raise ValueError(
                f"an activation of {largest} elements exceeds 32-bit indexing; reduce the batch"
            )
        found = structure or determine(weight)
        return cls(
            batch=batch,
            out_channels=out_channels,
            in_channels=in_channels,
            geometry=geometry,
            in_layout=in_layout,
            out_layout=out_layout,
            residual_layout=residual_layout,
            epilogue=epilogue or Epilogue(),
            structure=found.kind,
            patterns=tuple(sorted(found.patterns)),
            max_group=found.max_group,
            kept_kernels=found.kept_kernels,
            kept_weights=found.kept_weights,
            dtype=str(weight.dtype),
            family=family,
            winograd=winograd,
        )

    @property
    def weight_shape(self) -> tuple[int, int, int, int]:
        """``(out_channels, in_channels, kh, kw)``."""
        kh, kw = self.geometry.kernel_size
        return self.out_channels, self.in_channels, kh, kw

    def as_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON; records hold it, so its form stays."""
        return {
            **{name: getattr(self, name) for name in _PLAIN},
            **{name: list(getattr(self.geometry, name)) for name in _MOVES},
            "weight_shape": list(self.weight_shape),
            **{name: _layout(getattr(self, name)) for name in _LAYOUTS},
            "epilogue": asdict(self.epilogue),
            "patterns": [p.bits for p in self.patterns],
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> ConvTask:
        """Inverse of :meth:`as_dict`.

        Raises
        ------
        ValueError
            On unknown or missing fields, counts that are no whole numbers, names that are no text,
            and kernels or patterns that no convolution has.
        """
        if set(data) != _FIELDS:
            raise ValueError(f"a task has the fields {sorted(_FIELDS)}, got {sorted(data)}")
        for name in _COUNTS:
            if type(data[name]) is not int or data[name] < 0:
                raise ValueError(f"field {name!r} of a task is {str(data[name])[:40]!r}, no count")
        for name in ("structure", "dtype", "family"):
            if not isinstance(data[name], str):
                raise ValueError(f"field {name!r} of a task is {str(data[name])[:40]!r}, no name")
        out_channels, in_channels, kh, kw = _weight_shape(data["weight_shape"])
        moves, residual = {name: data[name] for name in _MOVES}, data["residual_layout"]
        return cls(
            **{name: data[name] for name in _PLAIN},
            out_channels=out_channels,
            in_channels=in_channels,
            geometry=ConvGeometry.from_dict({"kernel_size": (kh, kw), **moves}),
            in_layout=PlaneLayout(*data["in_layout"]),
            out_layout=PlaneLayout(*data["out_layout"]),
            residual_layout=None if residual is None else PlaneLayout(*residual),
            epilogue=Epilogue(**data["epilogue"]),
            patterns=tuple(_pattern((kh, kw), bits) for bits in data["patterns"]),
        )

    @property
    def similarity_key(self) -> str:
        """Equal for layers of one shape whose weights differ in how many and which are kept."""
        data = self.as_dict()
        for name in ("kept_kernels", "kept_weights", "epilogue", "residual_layout"):
            del data[name]
        data["patterns"] = max(len(p) for p in self.patterns)
        return digest(data)

    @property
    def machine(self) -> Facts:
        """The facts of the family, with the lanes that its vectors have in this dtype."""
        return DEVICES.facts(self.family).of_dtype(self.dtype)

    @property
    def schedules(self) -> ConvSchedules:
        """What the device's configurations are, and what they become."""
        return schedules_of(self.machine)

    @property
    def shape(self) -> ConvShape:
        """The convolution as the schedule's cost model sees it."""
        if self.structure == "dense":
            kernels = float(self.in_channels)
        elif self.structure == "tap":
            kernels = self.kept_weights / max(1, self.out_channels)
        else:
            kernels = self.kept_kernels / max(1, self.out_channels)
        return ConvShape(
            self.in_channels,
            self.out_channels,
            self.geometry,
            self.in_layout,
            self.out_layout,
            self.patterns,
            kernels,
            self.max_group,
            self.structure == "dense",
            self.winograd and self.dtype == "float32",
        )

    def configs(self) -> Iterator[Config]:
        """All legal configurations, in a fixed order."""
        return self.schedules.space(self.shape, self.machine)

    def default_config(self) -> Config:
        """The level-0 configuration."""
        return self.schedules.default(self.shape, self.machine)

    def cost(self, config: Config) -> float:
        """What the device's model estimates; only the order counts."""
        return self.schedules.cost(self.shape, config, self.machine)

    def unschedulable_reason(self, config: Config) -> str | None:
        """Why ``config`` cannot be scheduled for this shape and device, or None when it can.

        It may want more sharing than the filters have: empty places are filled up then.
        """
        if not isinstance(config, self.schedules.config):
            return f"a {type(config).__name__} is for other devices than {self.family}"
        return self.schedules.illegal(self.shape, config, self.machine)

    def illegal_reason(self, config: Config) -> str | None:
        """Why ``config`` cannot be used for this task, or None when it can."""
        if not isinstance(config, self.schedules.config):
            return self.unschedulable_reason(config)
        is_gemm = getattr(config, "is_gemm", False)
        if config.group > self.max_group and not is_gemm:
            return f"group {config.group} exceeds the {self.max_group} filters that share kernels"
        return self.unschedulable_reason(config)


def check_weight(weight: np.ndarray) -> None:
    """Refuse weights that no convolution can have.

    Raises
    ------
    ValueError
        If they have not four axes, or hold NaN or Inf.
    """
    if weight.ndim != 4:
        raise ValueError(f"weights are [out, in, kh, kw], got shape {weight.shape}")
    if not np.isfinite(weight).all():
        raise ValueError("weights contain NaN or Inf; check the checkpoint before compiling")


# No convolution is larger; a damaged record must not keep its reader busy for ever.
_MAX_EXTENT = 255
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
_MOVES = ("stride", "padding", "dilation")
_LAYOUTS = ("in_layout", "out_layout", "residual_layout")
_FIELDS = {*_PLAIN, *_MOVES, *_LAYOUTS, "weight_shape", "epilogue", "patterns"}


def _weight_shape(value: Any) -> tuple[int, int, int, int]:
    is_counts = isinstance(value, list | tuple) and all(type(v) is int and v >= 1 for v in value)
    if not is_counts or len(value) != 4 or max(value[2:]) > _MAX_EXTENT:
        raise ValueError(
            f"field 'weight_shape' of a task is {str(value)[:80]}, expected [out, in, kh, kw] with"
            f" kernels of at most {_MAX_EXTENT} x {_MAX_EXTENT}"
        )
    out_channels, in_channels, kh, kw = value
    return out_channels, in_channels, kh, kw


def _pattern(kernel_size: tuple[int, int], bits: int) -> Pattern:
    kh, kw = kernel_size
    if type(bits) is not int or bits < 0 or bits >> (kh * kw):
        raise ValueError(f"a pattern of a {kh}x{kw} task is {str(bits)[:40]}, no set of its taps")
    taps = tuple((r, c) for r in range(kh) for c in range(kw) if bits >> (r * kw + c) & 1)
    return Pattern(kernel_size, taps)


def _layout(layout: PlaneLayout | None) -> list[int] | None:
    return None if layout is None else layout.as_values()
