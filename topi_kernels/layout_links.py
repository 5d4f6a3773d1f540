"""Orders of pixels for sets of tensors that convolutions of stride 2 connect.

Such a convolution finds each input in its output's own lane if the bands of its input hold twice as
many rows and columns (:meth:`topi_kernels.layout.PlaneLayout.keeps_lanes_of`). Otherwise it works
on plain rows, and what has another order is copied. Each set starts with the order that is best for
itself; then one set, or the two of a link, take another while the sum of all estimates falls.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

from .devices import DEVICES
from .layout import Padding, PlaneLayout, per_axis
from .layout_choice import (
    CHANGE_COST,
    LEAST_GAIN,
    ConvNeed,
    LaneOrder,
    TensorSet,
    Values,
    default_layout,
    estimate_of,
    values_of,
)

# Orders that are this much worse than plain rows for a set alone are not tried for its links.
SLACK = 1.1
# Slots that a move gains at least: more than sums of estimates are rounded by, so that moves end.
LEAST_MOVE = 1.0


@dataclass(frozen=True)
class StridedLink:
    """A convolution of stride 2 between tensors of two sets.

    Parameters
    ----------
    need : ConvNeed
    source, result : int
        Numbers of the sets of its input and its output.
    """

    need: ConvNeed
    source: int
    result: int


class _Links:
    """Estimates of links, each made once."""

    def __init__(self, sets: Sequence[TensorSet], family: str, *, winograd: bool) -> None:
        self.sets, self.family, self.winograd = sets, family, winograd
        self._costs: dict[tuple, float] = {}

    def cost(self, link: StridedLink, first: LaneOrder | None, second: LaneOrder | None) -> float:
        """Of a link whose input and output have these orders, copies included."""
        key = (link, first, second)
        if key not in self._costs:
            self._costs[key] = min(self._kept(*key), self._plain(*key))
        return self._costs[key]

    def _layout(
        self, number: int, order: LaneOrder | None, pad: Padding, border: int
    ) -> PlaneLayout:
        tensors = self.sets[number]
        if order is None:
            return default_layout(*tensors.size, pad, self.family, tensors.dtype)
        return order.layout(*tensors.size, per_axis(pad)[0], border)

    def _estimate(
        self, link: StridedLink, first: LaneOrder | None, second: LaneOrder | None
    ) -> float:
        need = link.need
        source = self._layout(link.source, first, need.pad, need.reach)
        result = self._layout(link.result, second, need.out_pad, 0)
        if first is not None and not result.keeps_lanes_of(source, need.geometry.stride):
            return float("inf")
        dtype = self.sets[link.source].dtype
        cost = estimate_of(need.task(source, result, self.family, dtype, winograd=self.winograd))
        return float("inf") if cost is None else cost

    def _kept(self, link: StridedLink, first: LaneOrder | None, second: LaneOrder | None) -> float:
        if first is None or second is None:
            return float("inf")
        return self._estimate(link, first, second)

    def _plain(self, link: StridedLink, first: LaneOrder | None, second: LaneOrder | None) -> float:
        changes = 0.0
        ends = (link.source, first), (link.result, second)
        for (number, order), channels in zip(ends, link.need.channels[::-1], strict=True):
            tensors = self.sets[number]
            if order is not None:
                lanes = DEVICES.facts(self.family).of_dtype(tensors.dtype).vector_width
                height, width = tensors.size
                changes += channels * -(-height * width // lanes) * CHANGE_COST
        key = (link, None, None)
        if key not in self._costs:
            self._costs[key] = self._estimate(*key) * LEAST_GAIN
        return self._costs[key] + changes


def choose_lane_orders(
    sets: Sequence[TensorSet],
    links: Sequence[StridedLink],
    family: str,
    *,
    winograd: bool = True,
) -> list[LaneOrder | None]:
    """The order of every set, None for plain rows.

    Parameters
    ----------
    sets : sequence of TensorSet
    links : sequence of StridedLink
    family : str
        Name of a processor family.
    winograd : bool
        Whether dense layers may be computed by Winograd's filtering, which plain rows allow.
    """
    reach = [0] * len(sets)
    linked = {number for link in links for number in (link.source, link.result)}
    for link in links:
        reach[link.source] = max(reach[link.source], link.need.reach)
        # Its output may have any order that the input has, borders left out.
        reach[link.result] = max(reach[link.result], link.need.reach)
    values = [
        values_of(tensors, family, reach[i], SLACK if i in linked else 1.0, winograd=winograd)
        for i, tensors in enumerate(sets)
    ]
    chosen = [value.best for value in values]
    costs = _Links(sets, family, winograd=winograd)
    while True:
        gain, move = max(
            ((_gain(chosen, m, values, links, costs), m) for m in _moves(values, links)),
            key=lambda found: found[0],
            default=(0.0, {}),
        )
        if not gain > LEAST_MOVE:
            return chosen
        for number, order in move.items():
            chosen[number] = order


def _moves(
    values: Sequence[Values], links: Sequence[StridedLink]
) -> Iterator[dict[int, LaneOrder | None]]:
    """Other orders for one set of a link, or for both."""
    pairs = dict.fromkeys((link.source, link.result) for link in links)
    for number in dict.fromkeys(n for pair in pairs for n in pair):
        for order in (None, *values[number].orders):
            yield {number: order}
    for source, result in pairs:
        if source != result:
            for first, second in product(values[source].orders, values[result].orders):
                if (first.lanes, first.bands) == (second.lanes, second.bands):
                    yield {source: first, result: second}


def _gain(
    chosen: Sequence[LaneOrder | None],
    move: dict[int, LaneOrder | None],
    values: Sequence[Values],
    links: Sequence[StridedLink],
    costs: _Links,
) -> float:
    """By how much the sum of all estimates falls with a move."""

    def total(order_of: dict[int, LaneOrder | None]) -> float:
        orders = [order_of.get(i, order) for i, order in enumerate(chosen)]
        own = sum(values[i].of(orders[i]) for i in move)
        between = (x for x in links if x.source in move or x.result in move)
        return own + sum(costs.cost(x, orders[x.source], orders[x.result]) for x in between)

    return total({}) - total(move)
