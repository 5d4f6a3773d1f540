"""Configurations, rules, and the choice of layers."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import nn

from topi_kernels.pattern import Pattern, PatternSet, fixed8_patterns
from tvm_pattern.pruning import ConfigError, Gradual, LibrarySpec, PatternConfig, Rule, oneshot
from tvm_pattern.pruning.layers import resolve_layers
from tvm_pattern.pruning.recipe import TrainSettings


class Net(nn.Module):
    """Every kind of convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 7)
        self.body = nn.Conv2d(8, 16, 3)
        self.point = nn.Conv2d(16, 16, 1)
        self.depth = nn.Conv2d(16, 16, 3, groups=16)
        self.grouped = nn.Conv2d(16, 16, 3, groups=2)
        self.wide = nn.Conv2d(16, 8, 5)

    def forward(self, x):
        for layer in self.children():
            x = layer(x)
        return x


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Net()


def _plans(net, **kwargs):
    plans, skipped = resolve_layers(net, PatternConfig(**kwargs))
    return {p.name: p for p in plans}, {s.name: s.reason for s in skipped}


def test_defaults_choose_by_kind(net):
    plans, skipped = _plans(net, connectivity=2.0)
    assert set(plans) == {"body", "depth", "grouped"}
    assert plans["body"].kept == plans["grouped"].kept == 64
    assert plans["depth"].kept == 16  # connectivity would delete channels
    assert "7" in skipped["stem"]
    assert "5" in skipped["wide"]
    assert "1x1" in skipped["point"]


def test_first_layer_policies():
    small = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3))
    kept = {}
    for first in ("pattern", "skip", "prune"):
        plans, skipped = _plans(small, connectivity=2.0, first=first)
        kept[first] = plans["0"].kept if "0" in plans else skipped["0"]
    assert kept == {"pattern": 24, "skip": "first convolution (first: skip)", "prune": 12}


def test_rules_apply_in_order_and_inherit(net):
    rules = (
        Rule(type="conv", connectivity=4.0),
        Rule(name="b*", group=4, balance="filter"),
        Rule(regex="gr.*", skip=True),
        Rule(name="point", connectivity=2.0),
        Rule(kernel_size=(5, 5), library={"source": "natural", "size": 6, "taps": 9}),
        Rule(type="first", library=LibrarySpec(source="greedy", size=3, taps=13)),
    )
    plans, skipped = _plans(net, connectivity=2.0, rules=rules)
    assert (plans["body"].kept, plans["body"].group, plans["body"].balance) == (32, 4, "filter")
    assert plans["point"].kept == 128
    assert plans["wide"].pattern_set.kernel_size == (5, 5)
    assert len(plans["wide"].pattern_set) == 6
    assert {len(p) for p in plans["wide"].pattern_set} == {9}
    assert {len(p) for p in plans["stem"].pattern_set} == {13}
    assert "regex='gr.*'" in skipped["grouped"]


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"rules": [{"name": "layer9.*", "skip": True}]}, "matches no convolution; the model has"),
        ({"rules": [{"name": "body", "connectivity": 200.0}]}, "body: connectivity 200.0 is above"),
        ({"rules": [{"type": "depthwise", "connectivity": 2.0}]}, "would delete channels"),
        ({"rules": [{"name": "wide", "library": "fixed8"}]}, "wide: library fixed8 has"),
        ({"rules": [{"name": "body", "library": {"taps": 10}}]}, "has no 10 taps"),
        ({"rules": [{"name": "*", "skip": True}]}, "no layer is left to prune"),
    ],
)
def test_configurations_that_do_not_fit_the_model(net, kwargs, message):
    with pytest.raises(ConfigError, match=message):
        resolve_layers(net, PatternConfig.from_dict({"connectivity": 2.0, **kwargs}))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"connectivity": 0.5}, "greater than or equal to 1"),
        ({"connectivity": float("nan")}, "connectivity"),
        ({"connectivty": 2}, "connectivty"),
        ({"version": 2}, "version"),
        ({"library": "fixed9"}, "unknown pattern set"),
        ({"library": 0}, "size"),
        ({"library": True}, "not a usable pattern library"),
        ({"library": 1.5}, "built-in name"),
        ({"library": {"source": "best"}}, "source"),
        ({"library": {"source": "natural", "phases": [9, 8]}}, "belong to source 'phased'"),
        ({"library": {"source": "phased", "size": 8, "phases": [8, 16, 8]}}, "must fall"),
        ({"library": {"patterns": []}}, "needs the keys"),
        ({"rules": [{"connectivity": 2}]}, "needs name, regex, type or kernel_size"),
        ({"rules": [{"regex": "("}]}, "not valid"),
        ({"rules": [{"name": "a", "group": 2.0}]}, "group"),
        ([], "is a mapping, got list"),
    ],
)
def test_bad_configurations_are_named(data, message):
    with pytest.raises(ConfigError, match=message):
        PatternConfig.from_dict(data)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Rule(layers="a"), r"Rule: unknown 'layers'; expected some of name, regex, type,"),
        (lambda: Rule(name="a", connectivity="x"), r"Rule: connectivity: .*number.* \(got 'x'\)$"),
        (lambda: PatternConfig(rate=2), "PatternConfig: unknown 'rate'; expected some of version,"),
        (lambda: LibrarySpec(count=8), "LibrarySpec: unknown 'count'; expected some of source,"),
        (lambda: Gradual(step=8), "Gradual: unknown 'step'; expected some of name, steps,"),
        (lambda: TrainSettings(epoch=8), "TrainSettings: unknown 'epoch'; expected some of epochs"),
        (
            lambda: PatternConfig.from_dict({"rules": [{"layers": "a"}]}),
            "rules.0: Rule: unknown 'layers'; expected some of name, regex, type,",
        ),
    ],
)
def test_settings_made_in_python_are_refused_in_the_same_words(make, message):
    with pytest.raises(ConfigError, match=message) as caught:
        make()
    assert "pydantic" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"connectivity": 9.0, "first": "prune"}, "all kernels stay by connectivity_1x1=1"),
        ({"connectivity": 9.0}, "all kernels stay by connectivity_1x1=1 and first='pattern'"),
        ({"connectivity_1x1": 9.0}, "all kernels stay by first='pattern'"),
        (
            {"connectivity_1x1": 9.0, "rules": [{"name": "0", "connectivity": 1}]},
            "all kernels stay by rule name='0'",
        ),
    ],
)
def test_a_1x1_layer_that_stays_dense_says_by_what(settings, reason):
    lone = nn.Sequential(nn.Conv2d(4, 4, 1))
    with pytest.raises(ConfigError, match=f"1x1 convolution, which has no patterns; {reason}"):
        resolve_layers(lone, PatternConfig.from_dict(settings))


def _rich_config():
    own = PatternSet("own", (Pattern((3, 3), ((0, 0), (1, 1), (2, 2))),))
    return PatternConfig(
        library=LibrarySpec(source="phased", size=8),
        connectivity=2.5,
        group=2,
        rules=(
            Rule(name="body", library=own, balance="filter"),
            Rule(kernel_size=(5, 5), skip=True),
        ),
    )


@pytest.mark.parametrize("suffix", [".yaml", ".yml", ".json"])
def test_files_round_trip(tmp_path, suffix):
    path = tmp_path / f"config{suffix}"
    config = _rich_config()
    config.save(path)
    assert PatternConfig.from_file(path) == config


def test_texts_round_trip():
    config = _rich_config()
    assert PatternConfig.from_yaml(config.to_yaml()) == config
    assert PatternConfig.from_json(config.to_json()) == config
    assert json.loads(config.to_json())["version"] == 1


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.yaml", "rules: [", "not valid YAML"),
        ("a.json", "{", "not valid JSON"),
        ("a.toml", "", "expected a .yaml"),
    ],
)
def test_bad_files_are_named(tmp_path, name, text, message):
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        PatternConfig.from_file(path)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match="no such file"):
        PatternConfig.from_file(tmp_path / "none.yaml")


def test_layers_that_share_a_weight_are_pruned_once_and_alike():
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3))
    net[2].weight = net[1].weight
    _, skipped = _plans(net, connectivity=2.0)
    assert skipped == {"2": "shares its weight with 1"}
    row = {r.name: r for r in oneshot(net, connectivity=2.0).rows}["2"]
    assert row.weights_kept == 128 == np.count_nonzero(net[2].weight.detach().numpy())
    assert (row.reason, row.note) == ("", "shares its weight with 1")
    with pytest.raises(ConfigError, match=r"2 is to stay dense .* shares its weight with 1"):
        _plans(net, connectivity=2.0, rules=[Rule(name="2", skip=True)])


@pytest.mark.parametrize(
    ("filters", "group", "expected"), [(30, 4, 2), (30, 16, 2), (15, 4, 1), (30, 3, 3), (24, 16, 8)]
)
def test_a_group_that_does_not_divide_is_lowered_there_alone(filters, group, expected):
    net = nn.Sequential(nn.Conv2d(3, 16, 3), nn.Conv2d(16, filters, 3), nn.Conv2d(filters, 48, 3))
    report = oneshot(net, connectivity=2.0, group=group, sharing="neighbours", first="skip")
    rows = {r.name: r for r in report.rows}
    assert (rows["1"].group, rows["2"].group) == (expected, group)
    assert rows["2"].note == ""
    lowered = f"group {group} lowered to {expected}: it does not divide {filters} filters"
    assert rows["1"].note == ("" if expected == group else lowered)
    kept = (net[1].weight.detach().numpy() != 0).reshape(filters // expected, expected, -1)
    assert (kept == kept[:, :1]).all()  # the filters of a group do share
    assert np.count_nonzero(kept) == 4 * rows["1"].kernels_kept


def test_what_the_compiler_leaves_dense_is_not_pruned():
    net = nn.Sequential(
        nn.Conv2d(3, 16, 3),
        nn.Conv2d(16, 16, 3, groups=4),
        nn.Conv2d(16, 16, 3, stride=5),
        nn.Conv2d(16, 32, 3, groups=16),
    )
    _, skipped = _plans(net, connectivity=2.0)
    assert skipped == {"2": "the compiler leaves it dense: stride (5, 5); at most 4 is supported"}


def test_filters_share_only_within_a_convolution_group():
    net = nn.Sequential(nn.Conv2d(3, 16, 3), nn.Conv2d(16, 24, 3, groups=4))
    plans, _ = _plans(net, connectivity=2.0, group=4)
    assert plans["1"].group == 2  # of 6 filters in each
    assert plans["1"].sharing == "neighbours"
    oneshot(net, connectivity=2.0, group=4)
    alive = net[1].weight.detach().abs().sum((2, 3)) > 0
    assert alive.shape == (24, 4)
    assert torch.equal(alive[0::2], alive[1::2])
    assert int(net[1].weight.count_nonzero()) == 24 * 4 * 4 // 2


def test_frozen_layers_are_left_alone_and_said_so():
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3))
    net[1].weight.requires_grad_(False)
    before = net[1].weight.clone()
    report = oneshot(net, connectivity=2.0)
    assert "frozen (requires_grad is False)" in report.rows[1].reason
    assert torch.equal(net[1].weight, before)
    report = oneshot(net, connectivity=2.0, frozen="prune")
    assert np.count_nonzero(net[1].weight.numpy()) == 128 == report.rows[1].weights_kept
    config = PatternConfig(frozen="prune")
    assert PatternConfig.from_json(config.to_json()) == config
    assert "frozen" not in PatternConfig().to_dict()  # resumes states of before the setting


def test_a_model_without_convolutions_is_refused():
    with pytest.raises(ConfigError, match=r"has no nn\.Conv2d"):
        resolve_layers(nn.Sequential(nn.Linear(2, 2)), PatternConfig())


def test_oneshot_prunes_in_place_and_reports(net):
    report = oneshot(net, connectivity=2.0, group=2, library=6, connectivity_1x1=4.0, skip=["gr*"])
    rows = {r.name: r for r in report.rows}
    assert list(rows) == ["stem", "body", "point", "depth", "grouped", "wide"]
    assert rows["body"].weights_kept == 256 == int(net.body.weight.count_nonzero())
    assert rows["point"].weights_kept == 64 == int(net.point.weight.count_nonzero())
    assert rows["depth"].weights_kept == 64
    assert rows["grouped"].reason == "rule name='gr*' skips it"
    assert int(net.grouped.weight.count_nonzero()) == net.grouped.weight.numel()
    assert 0 < rows["body"].energy_kept < 1
    with pytest.raises(ConfigError, match="matches no convolution"):
        oneshot(net, skip=["nothing"])


def test_oneshot_takes_a_custom_pattern_set():
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3))
    own = PatternSet("own", fixed8_patterns().patterns[:2])
    report = oneshot(net, library=own, first="skip", connectivity=1.0)
    assert report.assignment["1"].pattern_set is own
    assert report.compression_rate_pruned == pytest.approx(9 / 4)


def test_one_name_to_skip_is_no_list_of_letters():
    assert [rule.name for rule in PatternConfig.of(skip="12").rules] == ["12"]


def test_zero_weights_still_get_exactly_the_asked_masks():
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3))
    nn.init.zeros_(net[1].weight)
    report = oneshot(net, connectivity=4.0, first="skip")
    assert report.assignment["1"].kept == 16
    assert report.rows[1].energy_kept == 1.0
