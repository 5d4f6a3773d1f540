"""Orders of pixels that convolutions of stride 2 connect: chosen together, and right."""

from __future__ import annotations

from itertools import product

import golden
import pytest
import torch
from torch import nn

import tvm_pattern as tp
from relay_passes import pipeline
from relay_passes.targets import resolve
from topi_kernels import layout_choice, layout_links
from topi_kernels.backend import Backend
from topi_kernels.conv_task import ConvTask
from topi_kernels.geometry import ConvGeometry
from topi_kernels.layout_choice import ConvNeed, LaneOrder, TensorSet, choose_lane_order, values_of
from topi_kernels.layout_links import StridedLink, choose_lane_orders
from topi_kernels.structure import determine
from tvm_pattern.frontend import import_model

FAMILY = "x86-avx512-zen4"


def need_of(channels: int, size: int, stride: int = 1) -> ConvNeed:
    weight = golden.Layer(channels, channels, size, stride=stride).weight(1, "float32")
    geometry = ConvGeometry((3, 3), (stride, stride), (1, 1))
    return ConvNeed(geometry, (channels, channels), determine(weight), 1)


def two_sets(changed: int = 0) -> tuple[list[TensorSet], list[StridedLink]]:
    """3x3 layers at 56x56 and 28x28, and one of stride 2 between them."""
    sets = [TensorSet([need_of(64, n)], (n, n), 1, changed) for n in (56, 28)]
    return sets, [StridedLink(need_of(64, 56, 2), 0, 1)]


@pytest.mark.parametrize("family", [FAMILY, "x86-avx2"])
def test_sets_of_a_link_choose_what_is_best_for_all(family: str) -> None:
    """The least sum of all estimates over every pair of orders, by trying them all."""
    sets, links = two_sets()
    values = [values_of(s, family, 1, layout_links.SLACK) for s in sets]
    costs = layout_links._Links(sets, family, winograd=True)

    def total(first: LaneOrder | None, second: LaneOrder | None) -> float:
        own = values[0].of(first) + values[1].of(second)
        return own + costs.cost(links[0], first, second)

    pairs = list(product(*((None, *v.orders) for v in values)))
    chosen = choose_lane_orders(sets, links, family)
    assert total(*chosen) == min(total(*pair) for pair in pairs)
    first, second = chosen
    assert first is not None
    assert second is not None
    source, result = (o.layout(n, n, 1, 1) for o, n in ((first, 56), (second, 28)))
    assert result.keeps_lanes_of(source, (2, 2))
    alone = [choose_lane_order(s.needs, s.size, 1, 0, family) for s in sets]
    assert total(*chosen) <= total(*alone)


def test_sets_without_a_link_choose_alone() -> None:
    sets, _ = two_sets()
    alone = [choose_lane_order(s.needs, s.size, 1, 0, FAMILY) for s in sets]
    assert choose_lane_orders(sets, [], FAMILY) == alone


def test_many_planes_that_need_plain_rows_keep_them() -> None:
    sets, links = two_sets(changed=100_000)
    assert choose_lane_orders(sets, links, FAMILY) == [None, None]


def test_devices_without_interleaved_lanes_have_plain_rows() -> None:
    sets, links = two_sets()
    backend = Backend.of(resolve("pattern/x86-avx2"), 1, interleaved_lanes=False)
    assert backend.lane_orders_for(sets, links) == [None, None]
    assert Backend.named("mali").lane_orders_for(sets, links) == [None, None]


class Strided(nn.Module):
    """Stride 2 between stride 1, a 1x1 beside it and a sum; then one that keeps its lanes."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(8, 16, 3, padding=1)
        self.main = nn.Conv2d(16, 16, 3, stride=2, padding=1)
        self.side = nn.Conv2d(16, 16, 1, stride=2)
        self.second = nn.Conv2d(16, 16, 3, padding=1)
        self.odd = nn.Conv2d(16, 16, 3, stride=2, padding=1)
        self.last = nn.Conv2d(16, 16, 3, padding=1)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = torch.relu(self.first(x))
        x = torch.relu(self.second(torch.relu(self.main(x))) + self.side(x))
        return x, self.last(torch.relu(self.odd(x)))


def test_a_network_with_strides_keeps_its_lanes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout_choice, "LEAST_GAIN", 10.0)  # so small a network gains nothing
    monkeypatch.setattr(layout_links, "LEAST_GAIN", 10.0)
    torch.manual_seed(0)
    model, x = Strided().eval(), torch.randn(2, 8, 28, 20)
    tp.pruning.oneshot(model, connectivity=2, connectivity_1x1=2)
    target, seen = "pattern/x86-avx2", list[ConvTask]()
    pipeline.lower(import_model(model, x).mod, target, num_threads=1, config_for=seen.append)
    strided = [task for task in seen if task.geometry.stride == (2, 2)]
    kept = [task.in_layout.is_interleaved and task.out_layout.is_interleaved for task in strided]
    assert len(kept) == 3
    assert any(kept)
    assert not all(kept)
    library = tp.compile(model, x, target=target, num_threads=1)
    for got, expected in zip(library(x), model(x), strict=True):
        torch.testing.assert_close(torch.as_tensor(got), expected, rtol=1e-5, atol=1e-5)


def test_a_link_that_loses_its_lanes_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only what a link costs decides: where it may not keep its lanes, both ends pay copies."""
    sets, links = two_sets()
    monkeypatch.setattr(layout_links._Links, "_kept", lambda *_: float("inf"))
    costs = layout_links._Links(sets, FAMILY, winograd=True)
    order = LaneOrder(16, 4, 1)
    plain, one, both = (
        costs.cost(links[0], *orders) for orders in ((None, None), (order, None), (order, order))
    )
    assert one - plain == 64 * -(-56 * 56 // 16) * layout_choice.CHANGE_COST
    assert both - one == pytest.approx((one - plain) / 4)
