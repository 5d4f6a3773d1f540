"""A rate of a whole network, and layers with too few kernels for it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tvm_pattern.pruning import ConfigError, PatternConfig, Pruner, Rule, oneshot
from tvm_pattern.pruning.projection import kept_kernels, largest_connectivity


def network() -> nn.Sequential:
    """Two layers that can have any rate here, and a 2 -> 1 and a 1 -> 1 between them."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.Conv2d(8, 2, 3), nn.Conv2d(2, 1, 3), nn.Conv2d(1, 1, 1),
        nn.Conv2d(1, 8, 3), nn.Conv2d(8, 8, 1),
    )  # fmt: skip


def test_the_rate_is_lowered_to_what_a_layer_allows_and_the_report_says_so():
    model = network()
    report = oneshot(model, connectivity=3.6, connectivity_1x1=3.6)
    kept = [(layer.weight != 0).flatten(2).any(2).sum().item() for layer in model]
    assert kept == [24, 4, 1, 1, 2, 18]
    notes = {row.name: row.note for row in report.rows}
    assert notes["2"] == (
        "connectivity 3.6 lowered to 2: 1 x 2 kernel groups of the layer allow no more"
    )
    assert notes["1"] == notes["4"] == ""
    skipped = {row.name: row for row in report.rows}["3"]
    assert "connectivity 3.6 is more than 1 x 1 kernel groups of the layer allow" in str(skipped)


def test_groups_and_balance_count():
    model = network()
    report = oneshot(model, connectivity=3.6, group=8, balance="filter")
    notes = {row.name: row.note for row in report.rows}
    assert "group 8 lowered to 2" in notes["1"]
    assert "connectivity 3.6 lowered to 1: 1 x 1 kernel groups" in notes["4"]
    assert (model[4].weight != 0).flatten(2).any(2).all()


@pytest.mark.parametrize("balance", ["layer", "filter"])
def test_the_largest_rate_keeps_the_fewest_kernels(balance):
    largest = largest_connectivity(8, 6, group=2, balance=balance, block=3)
    assert kept_kernels(8, 6, largest, 2, balance, 3) == (6 if balance == "layer" else 24)
    with pytest.raises(ValueError, match="above what 4 x 2 kernel groups allow"):
        kept_kernels(8, 6, largest * 1.01, 2, balance, 3)


def test_a_rate_that_a_rule_gives_or_that_no_layer_can_have_is_refused():
    with pytest.raises(ConfigError, match=r"2: connectivity 3\.6 is above what 1 x 2"):
        oneshot(network(), rules=(Rule(name="2", connectivity=3.6),))
    with pytest.raises(ConfigError, match=r"1: connectivity 500\.0 is above what 2 x 8"):
        oneshot(network(), connectivity=500.0)


def test_gradual_pruning_reaches_the_lowered_rate():
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    pruner = Pruner(model, PatternConfig(connectivity=3.6))
    pruner.attach(optimizer)
    pruner.freeze(early=True)
    assert (model[2].weight != 0).flatten(2).any(2).sum() == 1
