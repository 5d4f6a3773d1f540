"""1-D and transposed convolutions are pruned by what their kernels are, by every method."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import tvm_pattern as tp
from tvm_pattern.pruning import (
    LibrarySpec,
    PatternConfig,
    Pruner,
    Rule,
    carried_assignment,
    load_pruned,
    oneshot,
    save_pruned,
)
from tvm_pattern.pruning.config import ConfigError
from tvm_pattern.pruning.kernels import KernelView, kernel_shape, kernels_of

TRANSPOSED = [
    nn.ConvTranspose2d(4, 6, 4, stride=2, padding=1),
    nn.ConvTranspose2d(4, 6, 2, stride=2, groups=2),
    nn.ConvTranspose2d(3, 5, (3, 4), stride=(1, 2)),
    nn.ConvTranspose2d(4, 4, 6, stride=3, groups=4),
    nn.ConvTranspose1d(4, 6, 8, stride=4, groups=2),
]


def seeded(make):
    torch.manual_seed(0)
    return make().eval()


def image_of(layer, size=5):
    spatial = 1 if isinstance(layer, nn.Conv1d | nn.ConvTranspose1d) else 2
    shape = (2, layer.in_channels, *(size,) * spatial)
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def by_phases(layer, x):
    """A transposed convolution, phase by phase: each kernel of the view correlated with the input.

    Independent of the view's own arithmetic: output pixel ``q * stride + phase`` is what the
    kernels of that phase see around input pixel ``q``.
    """
    kernels = kernels_of(layer).detach()
    filters, _, th, tw = kernels.shape
    image = x if x.ndim == 4 else x[:, :, None]
    sh, sw = (1, *layer.stride)[-2:]
    padded = nn.functional.pad(image, (tw - 1, tw - 1, th - 1, th - 1))
    phases = nn.functional.conv2d(padded, kernels, groups=layer.groups)
    n, _, h, w = phases.shape
    whole = torch.zeros(n, filters // (sh * sw), h * sh, w * sw)
    for row in range(sh):
        for column in range(sw):
            part = phases.view(n, -1, sh, sw, h, w)[:, :, row, column]
            whole[:, :, row::sh, column::sw] = part
    top, left = (0, *layer.padding)[-2:]
    kh, kw = (1, *layer.kernel_size)[-2:]
    height, width = (
        (image.shape[2] - 1) * sh + kh - 2 * top,
        (image.shape[3] - 1) * sw + kw - 2 * left,
    )
    cut = whole[:, :, top : top + height, left : left + width]
    return cut if x.ndim == 4 else cut[:, :, 0]


@pytest.mark.parametrize("layer", TRANSPOSED, ids=str)
def test_the_kernels_of_a_transposed_convolution_are_its_phases(layer):
    x = image_of(layer)
    plain = nn.Module.__call__(layer, x) - (
        layer.bias.view(1, -1, *[1] * (x.ndim - 2)) if layer.bias is not None else 0
    )
    torch.testing.assert_close(by_phases(layer, x), plain, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    "layer", [*TRANSPOSED, nn.Conv1d(4, 6, 5), nn.Conv2d(3, 4, 3), nn.Linear(5, 7)], ids=str
)
def test_kernels_and_back(layer):
    view, weight = KernelView.of(layer), layer.weight.detach()
    kernels = view.kernels(weight)
    assert tuple(kernels.shape) == kernel_shape(layer)
    assert kernels.numel() == weight.numel()
    assert torch.equal(view.weight(kernels.clone(), weight), weight)
    with pytest.raises(ValueError, match="the patterns are for"):
        view.weight(kernels[:-1], weight)


def sequence():
    """Conv1d of 1x3, 1x5, 1x7 and 1x1 kernels, with stride, dilation and groups."""
    return nn.Sequential(
        nn.Conv1d(4, 16, 7, stride=2, padding=3),
        nn.BatchNorm1d(16),
        nn.ReLU(),
        nn.Conv1d(16, 16, 3, padding=2, dilation=2),
        nn.ReLU(),
        nn.Conv1d(16, 16, 5, padding=2, groups=2),
        nn.ReLU(),
        nn.Conv1d(16, 8, 1),
    )


def decoder():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.ReLU(),
        nn.ConvTranspose2d(8, 8, 4, stride=2, padding=1),
        nn.ReLU(),
        nn.ConvTranspose2d(8, 4, 2, stride=2),
        nn.ConvTranspose2d(4, 4, 3, stride=2),
    )


SEQUENCE, IMAGE = (2, 4, 30), (1, 3, 7, 9)
TAPS = {"0": 4, "3": 2, "5": 3, "7": 1}


def test_one_dimensional_kernels_get_patterns_of_their_width():
    model = seeded(sequence)
    report = oneshot(model, connectivity=2.0, connectivity_1x1=2.0)
    assert set(report.assignment) == set(TAPS)
    for name, taps in TAPS.items():
        layer, weight = report.assignment[name], model.get_submodule(name).weight
        assert {len(p) for p in layer.pattern_set} == {taps}
        alive = (weight != 0).flatten(2).sum(-1)
        assert set(alive.unique().tolist()) <= {0, taps}
        share = 1.0 if name == "0" else 0.5  # the first layer keeps all its kernels
        assert int((alive > 0).sum()) == round(share * alive.numel())
        assert layer.nonzeros() == int((weight != 0).sum())


def test_what_is_kept_of_a_kernel_is_its_largest_taps():
    model = nn.Sequential(nn.Conv1d(2, 3, 3, bias=False)).eval()
    weight = torch.tensor([[3.0, 5.0, 1.0], [1.0, 0.5, 4.0]]).repeat(3, 1, 1)
    with torch.no_grad():
        model[0].weight.copy_(weight)
    oneshot(model, connectivity=1.0)
    kept = model[0].weight[0].tolist()
    # The centre always stays, and the larger of its neighbours.
    assert kept == [[3.0, 5.0, 0.0], [0.0, 0.5, 4.0]]


def test_phases_of_transposed_convolutions_are_pruned():
    model = seeded(decoder)
    report = oneshot(model, connectivity=2.0, connectivity_1x1=2.0, first="skip")
    assert set(report.assignment) == {"2", "4"}
    kernels = kernels_of(model[2])
    assert tuple(kernels.shape) == (32, 8, 2, 2)
    alive = (kernels != 0).flatten(2).sum(-1)
    assert set(alive.unique().tolist()) == {0, 2}
    assert int((alive > 0).sum()) == 32 * 8 // 2
    assert int((model[4].weight != 0).sum()) == model[4].weight.numel() // 2
    rows = {row.name: row for row in report.rows}
    assert rows["2"].kernels == 32 * 8
    assert "no multiple of stride" in rows["5"].reason
    assert "(3, 3)" in rows["5"].reason


def test_rules_name_taps_and_libraries_of_other_kernels():
    model = seeded(sequence)
    rules = [Rule(kernel_size=(1, 7), library=LibrarySpec(taps=3, size=4))]
    report = oneshot(model, connectivity=1.0, rules=rules)
    assert {len(p) for p in report.assignment["0"].pattern_set} == {3}
    assert len(report.assignment["0"].pattern_set) == 4
    with pytest.raises(ConfigError, match="has no 8 taps"):
        oneshot(seeded(sequence), rules=[Rule(name="3", library=LibrarySpec(taps=8))])


def equal_to_torch(model, shape):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(2))
    library = tp.compile(model, (x,), num_threads=1)
    with torch.no_grad():
        want = model(x).numpy()
    np.testing.assert_allclose(library(x), want, rtol=1e-4, atol=1e-5 * np.abs(want).max())
    return {row.layer: row for row in library.report.rows}


@pytest.mark.parametrize(("make", "shape"), [(sequence, SEQUENCE), (decoder, IMAGE)])
def test_the_compiler_takes_what_was_assigned(make, shape):
    model = seeded(make)
    report = oneshot(model, connectivity=2.0, connectivity_1x1=2.0, group=2)
    # A kept weight may be zero: what is sparse is told by the assignment, not by zeros.
    with torch.no_grad():
        for name in report.assignment:
            weight = model.get_submodule(name).weight
            weight.view(-1)[weight.flatten().abs().argmax()] = 0
    rows = equal_to_torch(model, shape)
    for name, layer in report.assignment.items():
        assert rows[name].taken
        assert rows[name].structure == "assignment"
        kept = layer.nonzeros() / model.get_submodule(name).weight.numel()
        assert rows[name].sparsity == pytest.approx(1 - kept)


METHODS = [
    {"name": "gradual", "steps": 2},
    {"name": "admm", "steps": 2},
    {"name": "admm", "steps": 2, "separate": True},
]


@pytest.mark.parametrize("method", METHODS, ids=["gradual", "admm", "separate"])
@pytest.mark.parametrize(("make", "shape"), [(sequence, SEQUENCE), (decoder, IMAGE)])
def test_every_method_reaches_its_sparsity(make, shape, method, tmp_path):
    model = seeded(make).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    config = PatternConfig(connectivity=2.0, connectivity_1x1=2.0, group=2)
    pruner = Pruner(model, config, method=method)
    pruner.attach(optimizer)
    x = torch.randn(shape)
    for step in range(4):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
        if step == 2:
            pruner.freeze()
        elif step < 2:
            pruner.step()
    want = seeded(make)
    oneshot(want, connectivity=2.0, connectivity_1x1=2.0, group=2)
    for name, layer in pruner.assignment.items():
        weight = model.get_submodule(name).weight
        assert int((weight != 0).sum()) <= int((want.get_submodule(name).weight != 0).sum())
        assert not bool(weight[layer.removed_from(weight)].any())
    save_pruned(tmp_path / "net.safetensors", model, pruner.assignment)
    again = seeded(make)
    loaded = load_pruned(tmp_path / "net.safetensors", again)
    assert set(carried_assignment(again)) == set(loaded)
    for name, layer in loaded.items():
        assert layer.view == pruner.assignment[name].view
        assert torch.equal(layer.pattern_id, pruner.assignment[name].pattern_id.cpu())


def test_posttrain_fits_one_dimensional_convolutions():
    torch.manual_seed(3)
    model = seeded(sequence)
    mixing = torch.randn(4, 4)
    batches = [torch.einsum("ij,bjk->bik", mixing, torch.randn(8, 4, 30)) for _ in range(4)]
    with torch.no_grad():
        want = [model(x) for x in batches]
    projected = seeded(sequence)
    oneshot(projected, connectivity=2.0)
    report = tp.posttrain.posttrain(model, batches, connectivity=2.0, progress=False)
    assert set(report.assignment) == {"0", "3", "5"}
    with torch.no_grad():
        errors = [
            float(sum((net(x) - y).square().sum() for x, y in zip(batches, want, strict=True)))
            for net in (model, projected)
        ]
    assert errors[0] < 0.7 * errors[1]


def test_posttrain_leaves_transposed_convolutions():
    model = seeded(decoder)
    report = tp.posttrain.posttrain(model, [torch.randn(IMAGE)], connectivity=2.0, progress=False)
    rows = {row.name: row for row in report.pruning.rows}
    assert "transposed" in rows["2"].reason
    assert set(report.assignment) == {"0"}
