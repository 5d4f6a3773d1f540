"""Pruning that would be lost: computed, tied, lazy, sharded, quantised and unusual weights."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from safetensors.torch import save_model
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune, spectral_norm, weight_norm

from tvm_pattern.pruning import (
    ConfigError,
    PatternConfig,
    Pruner,
    Rule,
    bake_weights,
    load_pruned,
    load_weights,
    oneshot,
    save_pruned,
)


class StdConv(nn.Conv2d):
    """Weight standardisation, as in BiT's ResNets."""

    def forward(self, x):
        w = self.weight
        w = (w - w.mean((1, 2, 3), keepdim=True)) / (w.std((1, 2, 3), keepdim=True) + 1e-5)
        return F.conv2d(x, w, self.bias, self.stride, self.padding, self.dilation, self.groups)


class SameConv(nn.Conv2d):
    """Pads by itself, but convolves with its own weight."""

    def forward(self, x):
        return F.conv2d(F.pad(x, (1, 1, 1, 1)), self.weight, self.bias, self.stride)


class InputConv(nn.Conv2d):
    """Its weight depends on the input (dynamic convolution)."""

    def forward(self, x):
        return F.conv2d(x, self.weight * x.mean(), self.bias)


class ShyConv(nn.Conv2d):
    """Wants a second argument."""

    def forward(self, x, scale):
        return F.conv2d(x, self.weight * scale, self.bias)


class FoldedConv(nn.Conv2d):
    """A matrix product instead of a convolution."""

    def forward(self, x):
        columns = F.unfold(x, self.kernel_size)
        return (self.weight.flatten(1) @ columns).view(len(x), -1, x.shape[2] - 2, x.shape[3] - 2)


class Halved(nn.Module):
    def forward(self, weight):
        return weight / 2


class Outside(nn.Module):
    """The parent computes the weight of an ordinary convolution."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3)
        self.conv = nn.Conv2d(8, 8, 3)

    def forward(self, x):
        weight = self.conv.weight
        return F.conv2d(self.stem(x), weight - weight.mean(), self.conv.bias)


def net(second, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), second).eval()


X = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(0))


def zeros_that_arrive(model):
    """Zeros in the weight that reaches the last convolution, seen from the outside."""
    seen = []
    original = F.conv2d

    def spy(x, weight, *args, **kwargs):
        seen.append(weight.detach().numpy().copy())
        return original(x, weight, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(F, "conv2d", spy)
        model(X)
    return int((seen[-1] == 0).sum())


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (StdConv, "2: the forward of StdConv computes the weight"),
        (InputConv, "2: the forward of InputConv computes the weight"),
        (ShyConv, "2: the forward of ShyConv could not be followed .*scale"),
        (FoldedConv, "2: the forward of FoldedConv calls no conv2d"),
    ],
)
def test_computed_weights_are_refused_by_name(kind, message):
    model = net(kind(8, 8, 3))
    before = model[2].weight.clone()
    for start in (lambda: oneshot(model), lambda: Pruner(model)):
        with pytest.raises(ConfigError, match=message) as caught:
            start()
    assert "bake_weights(model)" in str(caught.value)
    assert torch.equal(model[2].weight, before)
    report = oneshot(model, skip=["2"])  # the way out that always works
    assert [r.name for r in report.pruned] == ["0"]


def test_a_replaced_forward_and_a_foreign_hook_are_noticed():
    model = net(nn.Conv2d(8, 8, 3))
    conv = model[2]
    conv.forward = lambda x: F.conv2d(x, conv.weight * 2, conv.bias)
    with pytest.raises(ConfigError, match="2: the forward of Conv2d computes the weight"):
        oneshot(model)
    model = net(nn.Conv2d(8, 8, 3))
    parametrize.register_parametrization(model[2], "weight", Halved())
    with pytest.raises(ConfigError, match=r"2: its weight is parametrized \(Halved\)"):
        oneshot(model)


def test_an_own_forward_with_the_own_weight_is_pruned():
    model = net(SameConv(8, 8, 3))
    report = oneshot(model, connectivity=2.0)
    assert [r.name for r in report.pruned] == ["0", "2"]
    with torch.no_grad():
        model(X)
    assert np.count_nonzero(model[2].weight.detach().numpy()) == 32 * 4


def test_standardised_weights_are_baked_and_their_zeros_arrive():
    model = net(StdConv(8, 8, 3, padding=1))
    want = model(X)
    assert bake_weights(model) == {"2": "the forward of StdConv computes the weight"}
    assert type(model[2]) is nn.Conv2d
    torch.testing.assert_close(model(X), want, rtol=1e-4, atol=1e-5)
    oneshot(model, connectivity=2.0)
    assert zeros_that_arrive(model) == 64 * 9 - 32 * 4
    assert bake_weights(model) == {}


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (InputConv, "its weight depends on the input"),
        (ShyConv, "could not be followed"),
        (FoldedConv, "calls 0 convolutions"),
    ],
)
def test_what_cannot_be_baked_is_refused(kind, message):
    model = net(kind(8, 8, 3))
    with pytest.raises(ConfigError, match=f"2 cannot be baked: .*{message}"):
        bake_weights(model)
    with pytest.raises(ConfigError, match="no convolutions"):
        bake_weights(model, ["9"])


def test_a_forward_that_does_more_than_a_convolution_is_not_baked():
    class Both(nn.Conv2d):
        def forward(self, x):
            return F.conv2d(x, self.weight * 2, self.bias) + 1

    with pytest.raises(ConfigError, match="does more than one convolution"):
        bake_weights(net(Both(8, 8, 3)))


RECIPES = {
    "weight_norm": parametrizations.weight_norm,
    "spectral_norm": parametrizations.spectral_norm,
    "old weight_norm": weight_norm,
    "old spectral_norm": spectral_norm,
    "torch.nn.utils.prune": lambda m: prune.random_unstructured(m, "weight", 0.3),
}


@pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated")
@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("training", [False, True])
def test_what_torch_computes_is_baked_and_said_so(recipe, training):
    model = net(nn.Conv2d(8, 8, 3))
    RECIPES[recipe](model[2])
    model(X)  # old-style hooks compute the weight in a forward
    model.train(training)
    with pytest.warns(UserWarning, match="was baked into plain weights"):
        report = oneshot(model, connectivity=1.0, library="natural56", first="skip")
    assert model.training is training
    assert isinstance(model[2]._parameters["weight"], nn.Parameter)
    kind = recipe.removeprefix("old ")
    assert report.rows[1].note == f"{kind} baked into the weight"
    assert zeros_that_arrive(model) >= 64 * 5
    # Before the projection the baked weight is the computed one: baking alone changes no output.
    again = net(nn.Conv2d(8, 8, 3))
    RECIPES[recipe](again[2])
    same = again(X).detach()
    assert bake_weights(again) == {"2": kind}
    torch.testing.assert_close(again(X), same, rtol=1e-5, atol=1e-6)


def test_a_baked_layer_is_held_by_the_optimizer_that_is_built_afterwards():
    model = net(nn.Conv2d(8, 8, 3))
    parametrizations.weight_norm(model[2])
    stale = torch.optim.SGD(model.parameters(), 0.1)
    with pytest.warns(UserWarning, match="baked"):
        pruner = Pruner(model, PatternConfig(first="skip"), "oneshot")
    with pytest.raises(ValueError, match="after baking"):
        pruner.attach(stale)
    pruner.attach(torch.optim.SGD(model.parameters(), 0.1))


def test_examples_show_weights_that_are_computed_outside_of_their_layer():
    for start in (
        lambda m, x: oneshot(m, example_inputs=x),
        lambda m, x: Pruner(m, example_inputs=(x,)),
    ):
        with pytest.raises(ConfigError, match="conv: no convolution of the model's forward takes"):
            start(Outside(), X)
    model = net(nn.Conv2d(8, 8, 3))
    assert len(oneshot(model, example_inputs=X).pruned) == 2


class Reads(nn.Module):
    """Two convolutions: of ``conv`` the forward takes what ``taken`` says."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3)
        self.conv = nn.Conv2d(8, 8, 3)

    def forward(self, x):
        return self.taken(self.stem(x))


class ReadsWeight(Reads):
    def taken(self, x):
        return self.conv(x) + self.conv.weight.mean()


class ReadsDtype(Reads):
    def taken(self, x):
        return self.conv(x.to(self.conv.weight.dtype) * self.conv.bias.mean())


def test_without_examples_a_weight_that_is_read_elsewhere_is_worth_a_word():
    words = r"weights of 1 layers are read outside of their layer: {} \(by {}\)"
    with pytest.warns(UserWarning, match=words.format("conv", "Outside")):
        oneshot(Outside())
    with pytest.warns(UserWarning, match=words.format("0.conv", "ReadsWeight")):
        Pruner(nn.Sequential(ReadsWeight()))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        oneshot(nn.Sequential(ReadsDtype()))
        oneshot(nn.Sequential(ReadsWeight()), example_inputs=X)


def test_ordinary_models_are_pruned_without_a_word():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report = oneshot(net(nn.Conv2d(8, 8, 3)))
    assert [r.note for r in report.rows] == ["", ""]


# Weights that cannot be chosen from -------------------------------------------------------------


def _sparse():
    model = net(nn.Conv2d(8, 8, 3))
    model[2].weight = nn.Parameter(model[2].weight.detach().to_sparse())
    return model


def _int8():
    model = nn.Sequential(torch.ao.nn.quantized.Conv2d(3, 8, 3))
    return model


UNUSABLE = {
    "lazy": (lambda: net(nn.LazyConv2d(8, 3)), "2 is lazy and has no weight yet; run the model"),
    "meta": (lambda: net(nn.Conv2d(8, 8, 3)).to("meta"), "0: its weight is on the meta device"),
    "sparse": (_sparse, r"2: its weight is stored as torch.sparse_coo; call to_dense"),
    "complex": (lambda: net(nn.Conv2d(8, 8, 3)).to(torch.complex64), "0: its weight is torch.comp"),
    "file": (lambda: "net.onnx", "got a str, expected a torch.nn.Module: prune the module"),
    "int8": (_int8, "0 is quantised to int8; prune the float model"),
}


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
@pytest.mark.filterwarnings("ignore:Complex modules")
@pytest.mark.parametrize("kind", UNUSABLE)
def test_unusable_weights_are_named(kind):
    make, message = UNUSABLE[kind]
    for start in (oneshot, Pruner):
        with pytest.raises(ConfigError, match=message):
            start(make())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_float_types_are_pruned_exactly_and_saved(dtype, tmp_path):
    model = net(nn.Conv2d(8, 8, 3)).to(dtype)
    report = oneshot(model, connectivity=2.0)
    assert np.count_nonzero(model[2].weight.detach().double().numpy()) == 32 * 4
    save_pruned(tmp_path / "w.safetensors", model, report.assignment)
    other = net(nn.Conv2d(8, 8, 3), seed=5).to(dtype)
    load_pruned(tmp_path / "w.safetensors", other)
    assert torch.equal(other[2].weight, model[2].weight)
    opt = torch.optim.SGD(other.parameters(), 0.1, momentum=0.9)
    pruner = Pruner(other, PatternConfig(connectivity=2.0), "oneshot").attach(opt)
    pruner.freeze()
    other(X.to(dtype)).sum().backward()
    opt.step()
    pruner.finalize()


def test_sharded_models_are_refused(tmp_path):
    from torch.distributed.fsdp import fully_shard

    dist.init_process_group("gloo", f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        model = net(nn.Conv2d(8, 8, 3))
        pruner = Pruner(model)
        fully_shard(model)
        with pytest.raises(ConfigError, match="the model is sharded by FSDP"):
            Pruner(model)
        with pytest.raises(ValueError, match="not sharded by FSDP"):
            pruner.attach(torch.optim.SGD(model.parameters(), 0.1))
    finally:
        dist.destroy_process_group()


def test_tied_weights_are_saved_and_read_under_any_of_their_names(tmp_path):
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3))
    model[2].weight = model[1].weight
    report = oneshot(model, connectivity=2.0)
    save_pruned(tmp_path / "a.safetensors", model, report.assignment)
    save_model(model, tmp_path / "b.safetensors")  # keeps one of the two names
    for name, load in (("a", load_pruned), ("b", load_weights)):
        other = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3))
        other[2].weight = other[1].weight
        load(tmp_path / f"{name}.safetensors", other)
        assert torch.equal(other[2].weight, model[2].weight)
        assert other[2].weight is other[1].weight


def test_rules_still_leave_unusable_layers_dense():
    model = net(StdConv(8, 8, 3))
    config = PatternConfig(rules=(Rule(name="2", skip=True),))
    assert [s.name for s in Pruner(model, config).layers] == ["0"]
