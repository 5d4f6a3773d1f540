"""Forwards that halt: the same results as runs from the start, at the cost of one run."""

from __future__ import annotations

import copy
import threading

import pytest
import torch
from torch import nn

from tvm_pattern.posttrain import PosttrainError, posttrain, walks


class Net(nn.Module):
    """Branches and a residual; ``order`` counts what ran and may change the order."""

    def __init__(self, shared=False, turned=False):
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.left = nn.Conv2d(8, 8, 3, padding=1)
        self.right = nn.Conv2d(8, 8, 3, padding=1)
        self.last = nn.Conv2d(8, 4, 1)
        self.shared, self.turned, self.ran = shared, turned, 0

    def forward(self, x):
        self.ran += 1
        x = self.stem(x).relu()
        if self.turned and float(x.mean()) > 0.4:
            x = self.right(x).relu() + x
            x = self.left(x).relu() + x
        else:
            x = self.left(x).relu() + x
            x = self.right(x).relu() + x
        if self.shared:
            x = self.left(x).relu() + x
        return self.last(x)


def data(count=4):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(2, 3, 9, 8, generator=generator) * (1 + i) for i in range(count)]


def pruned(net, batches, monkeypatch=None, **more):
    net = copy.deepcopy(net).eval()
    if monkeypatch is not None:
        monkeypatch.setattr(walks, "HELD_BYTES", 0)
    settings = {"connectivity": 2.0, "connectivity_1x1": 2.0, "first": "prune", **more}
    report = posttrain(net, batches, **settings)
    return net, report


@pytest.mark.parametrize("kind", [{}, {"shared": True}, {"turned": True}])
def test_halted_forwards_give_what_runs_from_the_start_give(kind, monkeypatch):
    """Also where a layer is called twice, or batches run in different orders (run from the start
    then)."""
    net = Net(**kind)
    before = threading.active_count()
    halted, report = pruned(net, data())
    assert threading.active_count() == before
    again, other = pruned(net, data(), monkeypatch)
    for name, value in halted.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    assert report.layers == other.layers


def test_a_forward_runs_once_for_all_layers(monkeypatch):
    net = Net()
    few, _ = pruned(net, data())
    many, _ = pruned(net, data(), monkeypatch)
    assert many.ran - few.ran >= 2 * 4  # of four layers, all but one find the forwards halted


def test_only_so_many_threads_and_no_unknown_number_of_batches(monkeypatch):
    class Unknown:
        def __iter__(self):
            return iter(data())

    first = data()[0]
    assert walks.fits(first, data(), in_threads=True)
    assert not walks.fits(first, Unknown(), in_threads=True)
    assert not walks.fits(first, [first] * 65, in_threads=True)
    assert walks.fits(first, [first] * 65, in_threads=False)
    assert not walks.fits(torch.empty(2**28, device="meta"), [first], in_threads=False)
    net = Net()
    known, _ = pruned(net, data())
    unknown, _ = pruned(net, Unknown())
    assert torch.equal(known.right.weight, unknown.right.weight)


def test_an_error_in_a_forward_ends_all_of_them():
    class Fails(Net):
        def forward(self, x):
            if self.ran > 3 and float(x.abs().max()) > 9:
                raise ArithmeticError("too large")
            return super().forward(x)

    net = Fails().eval()
    state = copy.deepcopy(net.state_dict())
    before = threading.active_count()
    with pytest.raises(ArithmeticError, match="too large"):
        posttrain(net, data(), connectivity=2.0)
    assert threading.active_count() == before
    assert all(torch.equal(v, net.state_dict()[k]) for k, v in state.items())
    with pytest.raises(PosttrainError, match="not finite"):
        posttrain(net, [data()[0] * float("nan")], connectivity=2.0)
    assert threading.active_count() == before
