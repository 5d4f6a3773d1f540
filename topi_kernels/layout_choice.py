"""Which order of pixels a set of tensors gets: plain rows, or interleaved lanes in some bands.

Convolutions with stride 1 read and write the same order, so the tensors that they connect choose
together. Every order is tried on all of these convolutions by the cost model of
:mod:`topi_kernels.schedules.cost`; changing the order at the edge of the set costs extra. Sets that
convolutions of stride 2 connect choose together in :mod:`topi_kernels.layout_links`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from .conv_task import ConvTask
from .devices import DEVICES
from .geometry import ConvGeometry
from .layout import Padding, PlaneLayout, band_choices, per_axis
from .schedules.choose import vector_facts
from .schedules.input_geometry import column_reach
from .structure import Structure
from .workload import Epilogue

# Slots per vector whose order is changed: read and written through L2, a few shuffles.
CHANGE_COST = 12.0
# A new order must promise this much; the model is no better than that.
LEAST_GAIN = 0.97
MAX_BORDER = 2
# Empty places cost for certain what the model says, and what else it says is less sure.
WASTE_COST = 0.1
# No order halves shorter vectors: these have full ones of their own.
LEAST_LANES = 8


@dataclass(frozen=True)
class LaneOrder:
    """Interleaved lanes, see :class:`topi_kernels.layout.PlaneLayout`."""

    lanes: int
    bands: int
    border: int = 0

    def waste(self, height: int, width: int) -> float:
        """How much worse an order is for the places that hold no pixel, beyond its estimate."""
        layout = self.layout(height, width, 0, 0)
        places = layout.band_height * layout.columns * layout.lanes
        return 1.0 + WASTE_COST * (places / (height * width) - 1.0)

    def layout(self, height: int, width: int, pad: int, border: int) -> PlaneLayout:
        """Layout of a tensor; ``border`` is what its readers want at most."""
        used = min(self.border, border)
        return PlaneLayout.interleave(height, width, pad, self.lanes, self.bands, used)


@dataclass(frozen=True)
class ConvNeed:
    """A convolution whose output has the size of its input, or half of it by stride 2.

    Parameters
    ----------
    geometry : ConvGeometry
    channels : tuple of (int, int)
        Out_channels and in_channels.
    structure : Structure
        What was found in its weights.
    out_pad : int or (int, int)
        Padding that the readers of its output want.
    """

    geometry: ConvGeometry
    channels: tuple[int, int]
    structure: Structure
    out_pad: Padding

    @property
    def pad(self) -> Padding:
        """Padding of its input."""
        return self.geometry.padding

    @property
    def reach(self) -> int:
        """Columns that a tap reaches to the left or right."""
        return column_reach(self.structure.patterns, self.geometry)

    def task(
        self,
        in_layout: PlaneLayout,
        out_layout: PlaneLayout,
        family: str,
        dtype: str = "float32",
        *,
        winograd: bool = True,
    ) -> ConvTask:
        """The convolution with these layouts, without an epilogue."""
        found = self.structure
        return ConvTask(
            batch=1,
            out_channels=self.channels[0],
            in_channels=self.channels[1],
            geometry=self.geometry,
            in_layout=in_layout,
            out_layout=out_layout,
            residual_layout=None,
            epilogue=Epilogue(),
            structure=found.kind,
            patterns=tuple(sorted(found.patterns)),
            max_group=found.max_group,
            kept_kernels=found.kept_kernels,
            kept_weights=found.kept_weights,
            dtype=dtype,
            family=family,
            winograd=winograd,
        )


def estimate_of(task: ConvTask) -> float | None:
    """Estimated slots of a convolution, None where no configuration is legal."""
    try:
        return task.cost(task.default_config())
    except ValueError:
        return None


def lane_orders(size: tuple[int, int], pad: int, reach: int, lanes: int) -> Iterator[LaneOrder]:
    """Every order of interleaved lanes for images of a size, padded by ``pad`` rows.

    ``lanes`` are those of the processor's vectors; rows that fill no half of one get half of them.
    """
    height, width = size
    if lanes // 2 >= max(width, LEAST_LANES):
        yield from lane_orders(size, pad, reach, lanes // 2)
    for bands in band_choices(height, width, pad, lanes):
        for border in {0, reach}:
            columns = -(-width // (lanes // bands))
            if border <= min(columns, MAX_BORDER):
                yield LaneOrder(lanes, bands, border)


@dataclass(frozen=True)
class TensorSet:
    """Tensors that have their pixels in one order, because of what connects them.

    Parameters
    ----------
    needs : sequence of ConvNeed
        The convolutions of stride 1 between them.
    size : tuple of (int, int)
        Height and width of the images.
    pad : int
        Most rows of padding of the tensors.
    changed_channels : int
        Planes that would have to change their order for operators which need plain rows.
    dtype : str
    """

    needs: Sequence[ConvNeed]
    size: tuple[int, int]
    pad: int
    changed_channels: int = 0
    dtype: str = "float32"

    @property
    def reach(self) -> int:
        return max((need.reach for need in self.needs), default=0)


@dataclass(frozen=True)
class Values:
    """What the orders of a set cost by the model; the least wins.

    Parameters
    ----------
    plain : float
    orders : dict of LaneOrder to float
        Those that are not clearly worse.
    """

    plain: float
    orders: dict[LaneOrder, float]

    def of(self, order: LaneOrder | None) -> float:
        return self.plain if order is None else self.orders[order]

    @property
    def best(self) -> LaneOrder | None:
        order = min(self.orders, key=lambda o: self.orders[o], default=None)
        return None if order is None or self.plain < self.orders[order] else order


def values_of(
    tensors: TensorSet, family: str, reach: int = 0, slack: float = 1.0, *, winograd: bool = True
) -> Values:
    """Estimates of plain rows and of every order of a set of tensors.

    Parameters
    ----------
    tensors : TensorSet
    family : str
        Name of a processor family.
    reach : int
        Columns that readers outside the set reach to the left or right.
    slack : float
        How much worse than plain rows an order may be for the set alone.
    winograd : bool
    """
    reach = max(reach, tensors.reach)
    if not reach:  # nothing reads a neighbour along the row
        return Values(0.0, {})
    (height, width), dtype = tensors.size, tensors.dtype
    machine = vector_facts(DEVICES.facts(family).of_dtype(dtype))
    if machine is None:
        return Values(0.0, {})

    def plain(pad: Padding) -> PlaneLayout:
        return default_layout(height, width, pad, family, dtype)

    tasks = [
        need.task(plain(need.pad), plain(need.out_pad), family, dtype, winograd=winograd)
        for need in tensors.needs
    ]
    costs = [estimate_of(task) for task in tasks]
    if None in costs:
        return Values(0.0, {})
    limit = sum(cost for cost in costs if cost is not None)
    limit *= LEAST_GAIN * machine.lanes_credit
    found: dict[LaneOrder, float] = {}
    vectors = tensors.changed_channels * -(-height * width // machine.vector_width)
    best, accepted = float("inf"), float("inf")
    for order in lane_orders(tensors.size, tensors.pad, reach, machine.vector_width):
        total = vectors * CHANGE_COST
        for need, task in zip(tensors.needs, tasks, strict=True):
            border = column_reach(task.patterns, task.geometry)
            rows = (per_axis(pad)[0] for pad in (need.pad, need.out_pad))
            layouts = [order.layout(height, width, pad, border) for pad in rows]
            cost = estimate_of(replace(task, in_layout=layouts[0], out_layout=layouts[1]))
            total = float("inf") if cost is None else total + cost
            if total >= min(slack * limit, slack * best):
                break
        else:
            rank = (
                total * (machine.border_gain if order.border else 1.0) * order.waste(height, width)
            )
            found[order], best = rank, min(best, rank)
            accepted = min(accepted, rank) if total < limit else accepted
    # What the model says is less than ``limit`` is taken before plain rows, whatever its rank.
    return Values(limit if accepted == float("inf") else max(limit, accepted), found)


def choose_lane_order(
    needs: Sequence[ConvNeed],
    size: tuple[int, int],
    pad: int,
    changed_channels: int,
    family: str,
    dtype: str = "float32",
    *,
    winograd: bool = True,
) -> LaneOrder | None:
    """The order for the tensors that ``needs`` connect, None for plain rows.

    Parameters
    ----------
    needs, size, pad, changed_channels, dtype
        See :class:`TensorSet`.
    family : str
        Name of a processor family.
    winograd : bool
        Whether dense layers may be computed by Winograd's filtering, which plain rows allow.
    """
    tensors = TensorSet(needs, size, pad, changed_channels, dtype)
    return values_of(tensors, family, winograd=winograd).best


def default_layout(
    height: int, width: int, pad: Padding, family: str, dtype: str = "float32"
) -> PlaneLayout:
    """Preferred layout of plain rows on the device of that name.

    Rows of wide images start at vector boundaries; those of narrow images are packed tighter, since
    more of them then share a cache line. The rows of float16 keep the whole vector, which is also
    the slack that reads beyond the last row need.
    """
    align = DEVICES.facts(family).of_dtype(dtype).vector_width
    while dtype == "float32" and align > 4 and align > width + per_axis(pad)[1]:
        align //= 2
    return PlaneLayout.make(height, width, pad, align)
