"""Blocks of a network, and their tuning towards the dense network's outputs without labels."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import tvm_pattern as tp
from tvm_pattern.posttrain import PosttrainError, posttrain, reconstruct, run
from tvm_pattern.posttrain.blocks import find_blocks
from tvm_pattern.pruning import OnnxNetwork, recalibrate_bn


class Residual(nn.Module):
    """As torchvision's: a sum that is written into the last output, and one activation for all."""

    def __init__(self, width: int, shortcut: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.shortcut = nn.Conv2d(width, width, 1) if shortcut else None

    def forward(self, x):
        y = self.conv2(self.relu(self.bn1(self.conv1(x))))
        y += x if self.shortcut is None else self.shortcut(x)
        return self.relu(y)


class Net(nn.Module):
    """A stem, a stage of residual blocks, and a head that is called by functions."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Sequential(nn.Conv2d(1, width, 3, padding=1), nn.ReLU(inplace=True))
        self.stage = nn.Sequential(Residual(width, True), Residual(width, False))
        self.tail = nn.Conv2d(width, width, 3)
        self.head = nn.Linear(width, 10)

    def forward(self, x):
        x = F.relu(self.tail(self.stage(self.stem(x))))
        return self.head(x.mean((2, 3)))


def layers_of(net):
    return [n for n, m in net.named_modules() if isinstance(m, nn.Conv2d)]


def blocks_of(net):
    found = find_blocks(net.eval(), layers_of(net), lambda m: m(torch.randn(2, 1, 9, 9)))
    return [(block.members, block.layers) for block in found]


def test_residual_blocks_are_whole_and_what_follows_each_other_goes_together():
    assert blocks_of(Net()) == [
        (("stem.0", "stem.1"), ("stem.0",)),
        (("stage.0",), ("stage.0.conv1", "stage.0.conv2", "stage.0.shortcut")),
        (("stage.1", "tail"), ("stage.1.conv1", "stage.1.conv2", "tail")),
    ]


def test_a_chain_is_cut_before_the_layer_that_is_too_many():
    chain = nn.Sequential(*(m for _ in range(4) for m in (nn.Conv2d(1, 1, 1), nn.ReLU())))
    whole = nn.Sequential(nn.Sequential(chain, nn.Conv2d(1, 1, 1)), nn.Flatten(), nn.Linear(81, 2))
    assert [b[1] for b in blocks_of(whole)] == [
        ("0.0.0", "0.0.2", "0.0.4"), ("0.0.6", "0.1"),
    ]  # fmt: skip
    assert blocks_of(whole)[1][0] == ("0.0.6", "0.0.7", "0.1", "1", "2")


class Odd(nn.Module):
    """A layer that is called twice, a list of layers, a module of two inputs, and a large one."""

    def __init__(self) -> None:
        super().__init__()
        self.twice = nn.Conv2d(1, 1, 1)
        self.listed = nn.ModuleList([nn.Conv2d(1, 1, 1), nn.Conv2d(1, 1, 1)])
        self.two = Two()
        self.large = Large()
        self.folded = Folded()

    def forward(self, x):
        x = self.twice(self.twice(x))
        for layer in self.listed:
            x = layer(x)
        return self.folded(self.large(self.two(x, other=x)))


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 1, 1)

    def forward(self, x, other):
        return self.conv(x) + other


class Large(nn.Module):
    """Nine layers and a residual."""

    def __init__(self) -> None:
        super().__init__()
        self.all = nn.Sequential(*(nn.Conv2d(1, 1, 1) for _ in range(9)))

    def forward(self, x):
        return x + self.all(x)


class Folded(nn.Module):
    """Its output has other rows than its input: no rows of both belong together."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 1, 1)

    def forward(self, x):
        return self.conv(x).flatten(0, 2)


def test_odd_modules_are_taken_apart_and_no_layer_is_in_two_blocks():
    found = [layers for _, layers in blocks_of(Odd())]
    assert found == [
        ("listed.0", "listed.1"), ("two.conv",),
        *(tuple(f"large.all.{i}" for i in range(s, s + 3)) for s in (0, 3, 6)), ("folded.conv",),
    ]  # fmt: skip


@pytest.fixture(scope="module")
def batches():
    """40 smooth pictures."""
    generator = torch.Generator().manual_seed(1)
    coarse = torch.randn(40, 1, 3, 3, generator=generator)
    return list(F.interpolate(coarse, (9, 9), mode="bilinear").split(10))


@pytest.fixture(scope="module")
def fitted(batches):
    """Without and with tuning."""
    nets = [Net().eval(), Net().eval()]
    reports = [
        posttrain(n, batches, 3.0, reconstruct=s) for n, s in zip(nets, (0, 60), strict=True)
    ]
    return nets, reports


def logits_error(net):
    coarse = torch.randn(64, 1, 3, 3, generator=torch.Generator().manual_seed(2))
    pictures = F.interpolate(coarse, (9, 9), mode="bilinear")
    with torch.no_grad():
        return float((net(pictures) - Net().eval()(pictures)).square().mean())


def test_outputs_come_nearer_and_what_was_removed_stays_removed(fitted, batches):
    (plain, tuned), (before, after) = fitted
    assert logits_error(tuned) < 0.7 * logits_error(plain)
    assert [b.name for b in after.blocks] == ["stem.0 to stage.0", "stage.1 to tail"]
    assert all(b.after < b.before for b in after.blocks)
    assert before.blocks == ()
    assert before.layers == after.layers
    for name, layer in after.assignment.items():
        assert torch.equal(layer.pattern_id, before.assignment[name].pattern_id)
        weight = tuned.get_submodule(name).weight
        assert not weight[layer.removed()].any()
        assert weight.requires_grad
        assert weight.grad is None
    assert torch.equal(tuned.head.weight, plain.head.weight)
    norms = tuned.stage[0].bn1, plain.stage[0].bn1
    assert torch.equal(norms[0].weight, norms[1].weight)
    assert not torch.equal(norms[0].running_var, norms[1].running_var)
    assert after.to_dict()["blocks"][1]["layers"] == ("stage.1.conv1", "stage.1.conv2", "tail")


class Flat(nn.Module):
    """Convolutions with their norms, each a block, since functions are called between them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.convs = nn.ModuleList(nn.Conv2d(8, 8, 3, padding=1, bias=False) for _ in range(4))
        self.norms = nn.ModuleList(nn.BatchNorm2d(8) for _ in range(4))

    def forward(self, x):
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = F.relu(norm(conv(x)))
        return x


@pytest.mark.parametrize("size", [1, 20])
def test_outputs_do_not_shrink_from_block_to_block(size):
    """However few pictures a batch has."""
    coarse = torch.randn(80, 8, 3, 3, generator=torch.Generator().manual_seed(3))
    pictures = F.interpolate(coarse, (6, 6), mode="bilinear")
    net = Flat().eval()
    recalibrate_bn(net, [pictures])
    report = posttrain(net, list(pictures.split(size)), 3.0, reconstruct=60)
    assert len(report.blocks) == 4
    assert any(b.after < b.before for b in report.blocks)
    spreads = []
    for norm in net.norms:
        norm.register_forward_hook(lambda _m, _i, y: spreads.append(float(y.std())))
    with torch.no_grad():
        net(pictures)
    assert spreads == pytest.approx([1.0] * 4, abs=0.15)


def test_figures_are_errors_of_pictures_that_were_set_aside(fitted, batches):
    """Of the last block, by hand: every fifth picture."""
    (_, tuned), (_, report) = fitted
    dense, x = Net().eval(), torch.cat(batches)[4::5]
    with torch.no_grad():
        wanted = dense.tail(dense.stage(dense.stem(x)))
        got = tuned.tail(tuned.stage(tuned.stem(x)))
        by_hand = float((got - wanted).square().mean() / wanted.square().mean())
    assert report.blocks[-1].after == pytest.approx(by_hand, rel=1e-3)


def test_the_compiled_network_is_the_tuned_one(fitted, batches):
    net = fitted[0][1]
    library = tp.compile(net, batches[0][:1], num_threads=1)
    known = [row for row in library.report.taken if row.structure == "assignment"]
    assert len(known) == len(fitted[1][1].assignment)
    np.testing.assert_allclose(
        library(batches[0][:1]), net(batches[0][:1]).detach(), rtol=1e-4, atol=1e-4
    )


def test_a_stopped_run_goes_on_at_the_block_that_was_due(fitted, batches, tmp_path, monkeypatch):
    path, tuned, tune = tmp_path / "state.pt", [], run.tune_block

    def interrupted(block, *more):
        if len(tuned) == 1:
            raise KeyboardInterrupt
        tuned.append(block.name)
        return tune(block, *more)

    monkeypatch.setattr(run, "tune_block", interrupted)
    net = Net().eval()
    with pytest.raises(KeyboardInterrupt):
        posttrain(net, batches, 3.0, reconstruct=60, checkpoint=path)
    assert torch.equal(net.tail.weight, Net().tail.weight)
    with pytest.raises(PosttrainError, match="another model, configuration or data"):
        posttrain(net, batches, 3.0, reconstruct=50, checkpoint=path)
    again = []
    monkeypatch.setattr(run, "tune_block", lambda *a: again.append(a[0].name) or tune(*a))
    report = posttrain(net, batches, 3.0, reconstruct=60, checkpoint=path)
    assert again == ["stage.1 to tail"]
    assert not path.exists()
    assert report.blocks == fitted[1][1].blocks
    for name, value in fitted[0][1].state_dict().items():
        torch.testing.assert_close(net.state_dict()[name], value, rtol=0, atol=0)


def test_no_more_is_held_than_may_be_and_every_picture_is_used(batches, monkeypatch):
    monkeypatch.setattr(reconstruct, "HELD_BYTES", 2 * 10 * 4 * 81 * (8 + 1))  # two of the stem
    taken, take = [], reconstruct._Loads.take

    def watched(self):
        whole, pools, others = take(self)
        taken.append([sum(map(len, pools)), sum(len(x) for x, _ in others)])
        assert sum(taken[-1]) == sum(len(x) for x, _ in whole)
        return whole, pools, others

    monkeypatch.setattr(reconstruct._Loads, "take", watched)
    net = Net().eval()
    report = posttrain(net, batches, 3.0, reconstruct=60)
    assert taken == [[16, 4]] * 2 + [[8, 2]] * 4
    assert report.blocks[-1].after < report.blocks[-1].before


def test_pictures_are_looked_at_where_they_lie(batches, monkeypatch):
    """Copies of all of them would be as much again as may be held."""
    taken, take = [], reconstruct._Loads.take
    monkeypatch.setattr(
        reconstruct._Loads, "take", lambda self: taken.append(take(self)) or taken[-1]
    )
    posttrain(Net().eval(), batches, 3.0, reconstruct=1)
    for whole, pools, _ in taken:
        held = {t.untyped_storage().data_ptr() for pair in whole for t in pair}
        used = {t.untyped_storage().data_ptr() for pool in pools for pair in pool for t in pair}
        assert used <= held


def test_a_load_that_is_set_aside_whole_tunes_nothing(batches, monkeypatch):
    monkeypatch.setattr(reconstruct, "HELD_BYTES", 1)
    single = list(batches[0][:10].split(1))
    report = posttrain(Net().eval(), single, 3.0, reconstruct=20)
    assert all(b.after <= b.before for b in report.blocks)


def test_tuning_that_does_not_help_is_undone(fitted, batches, monkeypatch):
    monkeypatch.setattr(reconstruct, "RATE", 1e6)
    net = Net().eval()
    report = posttrain(net, batches, 3.0, reconstruct=5)
    assert all(b.after == b.before for b in report.blocks)
    for name, value in fitted[0][0].named_parameters():
        assert torch.equal(net.get_parameter(name), value), name
    for name, value in fitted[0][0].named_buffers():  # of the same inputs, block by block
        torch.testing.assert_close(net.get_buffer(name), value, rtol=0.02, atol=0.01)


def test_few_pictures_and_half_precision(batches):
    net = Net().eval().to(torch.bfloat16)
    pictures = [batches[0][:4].to(torch.bfloat16)]
    report = posttrain(net, pictures, 3.0, reconstruct=30)
    assert net.tail.weight.dtype == torch.bfloat16
    assert all(b.after <= b.before for b in report.blocks)
    assert report.blocks[-1].after < report.blocks[-1].before


class Switched(Net):
    """Leaves a stage out for dark pictures."""

    def forward(self, x):
        return super().forward(x) if float(x.mean()) > 0 else self.head(self.stem(x).mean((2, 3)))


def test_what_cannot_be_tuned_is_refused_and_changes_nothing(batches, tmp_path):
    with pytest.raises(PosttrainError, match="reconstruct=-1"):
        posttrain(Net().eval(), batches, reconstruct=-1)
    path = tmp_path / "net.onnx"
    torch.onnx.export(Net().eval(), (batches[0],), path, dynamo=True, verbose=False)
    with pytest.raises(PosttrainError, match="ONNX Runtime, which runs what lies"):
        posttrain(OnnxNetwork(path), batches, reconstruct=10)
    net = Switched().eval()
    before = copy.deepcopy(net.state_dict())
    pictures = [torch.ones(4, 1, 9, 9), -torch.ones(4, 1, 9, 9)]
    with pytest.raises(PosttrainError, match="different layers"):
        posttrain(net, pictures, reconstruct=10, forward=lambda model, x: model(x))
    assert all(torch.equal(v, before[n]) for n, v in net.state_dict().items())
