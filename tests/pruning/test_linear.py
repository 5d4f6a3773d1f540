"""Linear layers: 1xN blocks chosen by energy, through every lifecycle that convolutions have."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from tvm_pattern.posttrain import PosttrainError, posttrain
from tvm_pattern.pruning import (
    ConfigError,
    PatternConfig,
    Pruner,
    Rule,
    carried_assignment,
    load_pruned,
    oneshot,
    save_pruned,
)

LINEAR = (Rule(type="linear"),)


def make_net(seed=0, features=128, width=64, classes=10):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.AdaptiveAvgPool2d(4),
        nn.Flatten(),
        nn.Linear(features, width),
        nn.ReLU(),
        nn.Linear(width, classes),
    )


def blocks_of(weight: torch.Tensor, group: int) -> torch.Tensor:
    """Energy of every 1xN block, ``[O / group, I]``."""
    rows, columns = weight.shape
    return weight.detach().double().square().view(rows // group, group, columns).sum(1)


@pytest.mark.parametrize("group", [1, 4, 8])
def test_oneshot_keeps_the_blocks_of_largest_energy(group):
    model = make_net()
    before = model[3].weight.detach().clone()
    report = oneshot(model, rules=LINEAR, group_linear=group)
    blocks = blocks_of(before, group)
    kept = round(blocks.numel() / 4)
    threshold = blocks.flatten().sort(descending=True).values[kept - 1]
    alive = blocks >= threshold  # no two random energies are equal
    wanted = before * alive.repeat_interleave(group, 0)
    torch.testing.assert_close(model[3].weight.detach(), wanted, rtol=0, atol=0)
    row = next(r for r in report.rows if r.name == "3")
    assert (row.kind, row.group, row.compression_rate) == ("linear", group, 4.0)
    energy = float(wanted.double().square().sum() / before.double().square().sum())
    assert row.energy_kept == pytest.approx(energy)
    assert "convolutions and linear layers" in str(report)


def test_nothing_is_said_of_linear_layers_unless_asked():
    model = make_net()
    report = oneshot(model)
    assert [row.name for row in report.rows] == ["0"]
    assert int((model[3].weight == 0).sum()) == 0
    assert "connectivity_linear" not in PatternConfig().to_dict()


def test_small_layers_stay_dense_with_a_line():
    report = oneshot(make_net(), rules=LINEAR)
    row = next(r for r in report.rows if r.name == "5")
    assert row.reason == "too small to gain: 640 weights, linear layers are pruned from 4096"


def test_a_group_that_does_not_divide_is_lowered_with_a_line():
    report = oneshot(make_net(width=36), connectivity_linear=2.0)
    row = next(r for r in report.rows if r.name == "3")
    assert (row.group, row.compression_rate) == (4, 2.0)
    assert row.note == "group 8 lowered to 4: it does not divide 36 filters"


def test_a_width_that_no_block_divides_stays_dense_with_a_line():
    report = oneshot(make_net(width=42), connectivity_linear=2.0)
    row = next(r for r in report.rows if r.name == "3")
    assert row.reason.startswith("no block of 4 to 8 outputs divides its 42")
    alone = oneshot(make_net(width=42), connectivity_linear=2.0, group_linear=1)
    assert next(r for r in alone.rows if r.name == "3").compression_rate == 2.0


def test_rates_come_from_rule_setting_or_default():
    for settings, rate in [
        ({"rules": (Rule(type="linear", connectivity=2.0),)}, 2.0),
        ({"connectivity_linear": 8.0}, 8.0),
        ({"connectivity_linear": 8.0, "rules": LINEAR}, 8.0),
        ({"rules": LINEAR}, 4.0),
    ]:
        report = oneshot(make_net(), **settings)
        assert next(r for r in report.rows if r.name == "3").compression_rate == rate


def test_rules_for_convolutions_reach_no_linear_layer():
    report = oneshot(make_net(), rules=(Rule(name="*", connectivity=2.0),), connectivity_linear=4.0)
    assert next(r for r in report.rows if r.name == "3").compression_rate == 4.0
    skipped = oneshot(make_net(), connectivity_linear=4.0, skip=["3"])
    assert next(r for r in skipped.rows if r.name == "3").reason == "rule name='3' skips it"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"connectivity_linear": 0.5}, "connectivity_linear: .*greater than or equal to 1"),
        ({"connectivity_linear": 5000.0}, "3: connectivity 5000.0 is above what 8 x 128"),
        (
            {"rules": (Rule(type="linear", connectivity=200.0, balance="filter"),)},
            r"at most 128, one kernel group per filter",
        ),
        ({"rules": (Rule(type="linear", name="nope"),)}, "name='nope'.* matches no linear layer"),
        ({"rules": (Rule(name="3", connectivity=2.0),)}, "matches no convolution.*type: linear"),
    ],
)
def test_what_a_layer_cannot_have_is_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        oneshot(make_net(), **settings)


def test_a_lazy_linear_layer_is_refused_only_where_it_is_asked_for():
    def lazy():
        return nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.LazyLinear(64))

    oneshot(lazy())
    with pytest.raises(ConfigError, match="2 is lazy and has no weight yet; run the model"):
        oneshot(lazy(), rules=LINEAR)


def test_a_weight_that_the_forward_computes_is_refused():
    class Scaled(nn.Linear):
        def forward(self, x):
            return nn.functional.linear(x, self.weight + 1, self.bias)

    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), Scaled(128, 64))
    with pytest.raises(ConfigError, match="the forward of Scaled computes the weight"):
        oneshot(model, rules=LINEAR)


def test_weight_norm_is_baked():
    model = make_net()
    model[3] = nn.utils.parametrizations.weight_norm(model[3])
    want = model[3].weight.detach().clone()
    with pytest.warns(UserWarning, match="weight_norm of 1 layers"):
        oneshot(model, rules=LINEAR)
    alive = model[3].weight != 0
    torch.testing.assert_close(model[3].weight[alive], want[alive])


def test_a_network_without_convolutions_is_pruned():
    model = nn.Sequential(nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 64))
    report = oneshot(model, rules=LINEAR)
    assert [r.compression_rate for r in report.rows] == [4.0, 4.0]


@pytest.mark.parametrize("method", ["oneshot", "gradual", "admm", "admm separate"])
def test_pruner_trains_freezes_saves_and_resumes(method, tmp_path):
    settings = {"name": method.split()[0]}
    if settings["name"] != "oneshot":
        settings["steps"] = 2
    if "separate" in method:
        settings["separate"] = True
    config = PatternConfig(connectivity=2.0, first="prune", rules=LINEAR)

    def begin():
        model = make_net()
        pruner = Pruner(model, config, method=settings)
        optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
        return model, pruner.attach(optimizer), optimizer

    def train(model, optimizer, step):
        generator = torch.Generator().manual_seed(step)
        images = torch.randn(4, 3, 8, 8, generator=generator)
        labels = torch.randint(0, 10, (4,), generator=generator)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()

    def finish(model, pruner, optimizer):
        pruner.step()
        pruner.freeze(early=True)
        train(model, optimizer, 2)
        return pruner.finalize()

    model, pruner, optimizer = begin()
    train(model, optimizer, 0)
    pruner.step()
    train(model, optimizer, 1)
    state = {k: v.clone() for k, v in model.state_dict().items()}, pruner.state_dict()
    other, resumed, other_optimizer = begin()
    other.load_state_dict(state[0])
    other_optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    resumed.load_state_dict(state[1])
    report = finish(model, pruner, optimizer)
    finish(other, resumed, other_optimizer)
    torch.testing.assert_close(other[3].weight, model[3].weight, rtol=0, atol=0)
    assert int((model[3].weight != 0).sum()) == 128 * 64 // 4
    assert set(carried_assignment(model)) == {"0", "3"}
    save_pruned(tmp_path / "net.safetensors", model, report.assignment)
    fresh = make_net(seed=1)
    loaded = load_pruned(tmp_path / "net.safetensors", fresh)
    torch.testing.assert_close(fresh[3].weight, model[3].weight, rtol=0, atol=0)
    np.testing.assert_array_equal(loaded["3"].pattern_id, report.assignment["3"].pattern_id)
    assert carried_assignment(fresh).keys() == {"0", "3"}


def test_pruning_by_pictures_refuses_linear_rules():
    with pytest.raises(PosttrainError, match=r"type='linear'.*prune linear layers by oneshot"):
        posttrain(make_net(), [torch.zeros(2, 3, 8, 8)], rules=LINEAR)
