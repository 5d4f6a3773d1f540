"""Int8Task: what is known of a convolution of bytes before a configuration is chosen.

The face of :class:`topi_kernels.conv_task.ConvTask`: a stable key, a space, level 0 and its cost.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from ...geometry import ConvGeometry
from ...layout import PlaneLayout
from ...task_base import TaskBase, digest
from ..choose import NOMINAL_HZ, ConvSchedules
from .conv import schedule_int8_conv
from .isa import BY_WEIGHTS, DotIsa, for_weights, isa_named
from .layer import Int8Layer
from .packing import GROUP_SIZES, Filing, chunk_words, filings, row_chunks, words_of
from .workload import (
    WINDOW,
    Int8Config,
    Int8Workload,
    configs,
    default_config,
    estimate,
    has_lines,
    has_windows,
)

DTYPE = "int8"


@dataclass(frozen=True)
class Int8Task(TaskBase):
    """One convolution of bytes to choose a configuration for.

    Parameters
    ----------
    batch, out_channels, in_channels : int
    geometry : ConvGeometry
    in_layout, out_layout : PlaneLayout
    residual : bool
    depthwise : bool
    structure : str
        Kind of the :class:`topi_kernels.structure.Structure`.
    kept_weights : int
    filings : tuple of Filing
        The ways to file its weights.
    isa : str
    family : str
        Name of the device.
    """

    batch: int
    out_channels: int
    in_channels: int
    geometry: ConvGeometry
    in_layout: PlaneLayout
    out_layout: PlaneLayout
    residual: bool
    depthwise: bool
    structure: str
    kept_weights: int
    filings: tuple[Filing, ...]
    isa: str
    family: str = ""

    @classmethod
    def of(
        cls,
        layer: Int8Layer,
        batch: int,
        layouts: tuple[PlaneLayout, PlaneLayout],
        isa: str,
        family: str = "",
    ) -> Int8Task:
        """The task of a convolution that is not depthwise.

        Raises
        ------
        ValueError
            If the instructions have no schedule for the geometry.
        """
        found = []
        for by_rows in _orders(layer, isa_named(isa)):
            found += filings(layer.structure, by_rows=by_rows)
        if isa_named(isa) in BY_WEIGHTS:
            words = words_of(layer.weight, layer.structure, by_rows=found[0].by_rows)
            isa = for_weights(isa_named(isa), words).name
        dims = (batch, layer.weight.shape[1])
        return cls._make(layer, dims, layouts, tuple(found), isa, family)

    @classmethod
    def of_depthwise(
        cls,
        layer: Int8Layer,
        dims: tuple[int, int],
        layouts: tuple[PlaneLayout, PlaneLayout],
        isa: str,
        family: str = "",
    ) -> Int8Task:
        """The task of a depthwise convolution; ``dims`` are batch and in_channels."""
        chunks, filters = row_chunks(layer.geometry.kernel_size), len(layer.weight)
        isa = for_weights(isa_named(isa), chunk_words(layer.weight, chunks)).name
        entries = filters * len(chunks)
        found = (Filing(by_rows=True, group=1, groups=filters, entries=entries, full=True),)
        return cls._make(layer, dims, layouts, found, isa, family, depthwise=True)

    @classmethod
    def _make(
        cls,
        layer: Int8Layer,
        dims: tuple[int, int],
        layouts: tuple[PlaneLayout, PlaneLayout],
        found: tuple[Filing, ...],
        isa: str,
        family: str,
        *,
        depthwise: bool = False,
    ) -> Int8Task:
        return cls(
            batch=dims[0],
            out_channels=len(layer.weight),
            in_channels=dims[1],
            geometry=layer.geometry,
            in_layout=layouts[0],
            out_layout=layouts[1],
            residual=layer.residual is not None,
            depthwise=depthwise,
            structure=layer.structure.kind,
            kept_weights=layer.structure.kept_weights,
            filings=found,
            isa=isa,
            family=family,
        )

    def as_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON; records hold it, so its form stays."""
        data = asdict(self)
        for name in _LAYOUTS:
            data[name] = getattr(self, name).as_values()
        data["filings"] = [list(asdict(filing).values()) for filing in self.filings]
        return {"dtype": DTYPE, **data}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Int8Task:
        """Inverse of :meth:`as_dict`.

        Raises
        ------
        ValueError
            On unknown or missing fields, or values that no convolution has.
        """
        names = {"dtype", *cls.__dataclass_fields__}
        if set(data) != names or data["dtype"] != DTYPE:
            raise ValueError(
                f"a task of bytes has the fields {sorted(names)}, got {sorted(data)} of the dtype"
                f" {str(data.get('dtype'))[:40]!r}"
            )
        for kind, fields in _KINDS.items():
            for name in fields:
                if type(data[name]) is not kind or (kind is int and data[name] < 0):
                    raise ValueError(
                        f"field {name!r} of a task is {str(data[name])[:40]!r}, expected"
                        f" {kind.__name__}"
                    )
        plain = {name: value for name, value in data.items() if name != "dtype"}
        isa_named(data["isa"])
        found = tuple(Filing(*values) for values in data["filings"])
        if not found or any(filing.group not in GROUP_SIZES for filing in found):
            raise ValueError(f"field 'filings' of a task is {str(data['filings'])[:80]}")
        layouts = {name: PlaneLayout(*data[name]) for name in _LAYOUTS}
        geometry = ConvGeometry.from_dict(data["geometry"])
        return cls(**{**plain, **layouts, "geometry": geometry, "filings": found})

    @property
    def similarity_key(self) -> str:
        """Equal for layers of one shape whose weights differ in how many and which are kept."""
        data = self.as_dict()
        for name in ("kept_weights", "residual"):
            del data[name]
        data["filings"] = [(filing.by_rows, filing.group, filing.full) for filing in self.filings]
        return digest(data)

    @property
    def dtype(self) -> str:
        """What it is computed in."""
        return DTYPE

    @property
    def epilogue(self) -> bool:
        """What follows the sums and differs between layers: an added image."""
        return self.residual

    @property
    def weight_shape(self) -> tuple[int, int, int, int]:
        """``(out_channels, in_channels of a filter, kh, kw)``."""
        in_channels = 1 if self.depthwise else self.in_channels
        return self.out_channels, in_channels, *self.geometry.kernel_size

    @property
    def label(self) -> str:
        """A short name for people, such as ``int8 3x3 256->256 14x14``."""
        return f"{DTYPE} {super().label}{' depthwise' if self.depthwise else ''}"

    @property
    def max_group(self) -> int:
        """Filters that share what they keep."""
        return max(filing.group for filing in self._used)

    @property
    def machine(self) -> DotIsa:
        """The instructions."""
        return isa_named(self.isa)

    @property
    def schedules(self) -> ConvSchedules:
        """What the configurations are, and what they become."""
        return SCHEDULES

    @property
    def _used(self) -> list[Filing]:
        return [filing for filing in self.filings if filing.full]

    def workload(self, filing: Filing) -> Int8Workload:
        """The workload of a filing, as far as the cost of a configuration depends on it."""
        return Int8Workload(
            batch=self.batch,
            in_channels=self.in_channels,
            out_channels=self.out_channels,
            geometry=self.geometry,
            in_layout=self.in_layout,
            out_layout=self.out_layout,
            chunks=(),
            group=filing.group,
            groups=filing.groups,
            entries=filing.entries,
            unit_dtype="uint16",
            count_dtype="uint16",
            isa=self.isa,
            residual=self.residual,
            by_rows=filing.by_rows,
        )

    def configs(self) -> Iterator[Int8Config]:
        """All configurations, in a fixed order."""
        for filing in self._used:
            yield from configs(self.workload(filing))

    def default_config(self, group: int | None = None) -> Int8Config:
        """The level-0 configuration.

        Parameters
        ----------
        group : int, optional
            Filters of a group; default: as many as share what they keep, of a 1x1 convolution,
            where nothing is shuffled, any of these.

        Raises
        ------
        ValueError
            If there is none.
        """
        chosen: dict[Any, Filing] = {}
        for filing in self.filings:
            if filing.full if group is None else filing.group == group:
                own = filing.group if self.geometry.kernel_size == (1, 1) else filing.by_rows
                chosen.setdefault(own, filing)
        if not chosen:
            sizes = sorted({filing.group for filing in self.filings})
            raise ValueError(f"group is one of {sizes}, got {group}")
        found = [default_config(self.workload(filing)) for filing in chosen.values()]
        return min(found, key=self.cost)

    def filing(self, config: Int8Config) -> Filing:
        """How a configuration has the weights filed.

        Raises
        ------
        ValueError
            If it cannot be used.
        """
        wanted = (config.form == WINDOW, config.group)
        for filing in self.filings:
            if (filing.by_rows, filing.group) == wanted:
                return filing
        raise ValueError(f"{config} is no tile of {self.label}; choose one of its space")

    def cost(self, config: Int8Config) -> float:
        """What the model estimates; only the order counts.

        Raises
        ------
        ValueError
            If the configuration cannot be used.
        """
        return estimate(self.workload(self.filing(config)), config)

    @cached_property
    def _space(self) -> frozenset[Int8Config]:
        return frozenset(self.configs())

    def illegal_reason(self, config: Any) -> str | None:
        """Why ``config`` cannot be used for this task, or None when it can."""
        if not isinstance(config, Int8Config):
            return f"a {type(config).__name__} is not for convolutions of bytes"
        if config in self._space:
            return None
        if config.group > self.max_group:
            return f"group {config.group} exceeds the {self.max_group} filters that share kernels"
        return f"{config} is no tile of {self.label} with {self.isa}"


def _orders(layer: Int8Layer, isa: DotIsa) -> list[bool]:
    """Whether chunks may be those of patterns, neighbours of a row, or either.

    Raises
    ------
    ValueError
        If there is no schedule for the geometry.
    """
    lines, windows = has_lines(layer.geometry, isa), has_windows(layer.geometry, isa)
    pointwise = layer.geometry.kernel_size == (1, 1)
    orders = [False] if lines else []
    if windows and not pointwise and (not lines or layer.structure.kind != "pattern"):
        orders.append(True)
    if not orders:
        raise ValueError(
            f"no choice for a convolution of {layer.geometry} with {isa.name}; compile it in"
            " float32"
        )
    return orders


_LAYOUTS = ("in_layout", "out_layout")
_KINDS: dict[type, tuple[str, ...]] = {
    int: ("batch", "out_channels", "in_channels", "kept_weights"),
    bool: ("residual", "depthwise"),
    str: ("structure", "isa", "family"),
    list: ("in_layout", "out_layout", "filings"),
    dict: ("geometry",),
}

#: The task itself is what the cost depends on.
SCHEDULES = ConvSchedules(
    config=Int8Config,
    space=lambda task, _isa: task.configs(),
    default=lambda task, _isa: task.default_config(),
    cost=lambda task, config, _isa: task.cost(config),
    illegal=lambda task, config, _isa: task.illegal_reason(config),
    primfunc=schedule_int8_conv,
    seconds=lambda _isa: 1.0 / NOMINAL_HZ,
)
