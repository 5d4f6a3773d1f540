"""Budgets: costs, the knapsack against brute force, and plans that hold their budget."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tvm_pattern.pruning import ConfigError, LatencyRow, PatternConfig, oneshot, plan
from tvm_pattern.pruning.budget import Candidate, choose, layer_macs
from tvm_pattern.pruning.layers import resolve_layers

from .small import make_net


@pytest.fixture(scope="module")
def trained():
    """A trained net and labelled batches: the class is the quadrant with the brightest pixel."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(256, 3, 6, 6, generator=generator) * 0.5
    labels = torch.randint(0, 4, (256,), generator=generator)
    for image, label in zip(images, labels, strict=True):
        image[:, :, :3] += 1.0 * (int(label) // 2)
        image[0] += 1.5 * (int(label) % 2)
    model = make_net()
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    batches = list(zip(images.split(32), labels.split(32), strict=True))
    for _ in range(6):
        for x, y in batches:
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
    return model, batches


def test_macs_are_counted_per_sample():
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, groups=1),
        nn.Conv2d(8, 8, 3, stride=2, groups=8),
        nn.Flatten(),
        nn.Linear(8 * 2 * 2, 5),
    )
    macs = layer_macs(model, torch.zeros(7, 3, 6, 6))
    assert macs == {"0": 36 * 8 * 27, "1": 4 * 8 * 9, "3": 32 * 5}
    assert model.training


@pytest.mark.parametrize("seed", range(5))
def test_the_knapsack_is_as_good_as_brute_force(seed):
    rng = np.random.default_rng(seed)
    curves = {
        f"l{i}": [
            Candidate(1.0 + j, 1, float(rng.integers(1, 50)), float(rng.random())) for j in range(4)
        ]
        for i in range(4)
    }
    allowance = 100.0
    chosen = choose(curves, allowance)
    feasible = [
        (sum(c.loss for c in combination), combination)
        for combination in itertools.product(*curves.values())
        if sum(c.cost for c in combination) <= allowance
    ]
    if not feasible:
        assert chosen is None
        return
    assert sum(c.cost for c in chosen.values()) <= allowance
    best = min(loss for loss, _ in feasible)
    # Rounding costs up to 1/4096 can only miss combinations that fill the last 0.1 %.
    slack = min(loss for loss, c in feasible if sum(x.cost for x in c) <= allowance * 0.999)
    assert best <= sum(c.loss for c in chosen.values()) <= slack


def test_nothing_fits_an_empty_allowance():
    curves = {"a": [Candidate(None, 1, 5.0)]}
    assert choose(curves, 4.0) is None
    assert choose(curves, 0.0) is None


def test_plans_hold_the_budget_and_are_no_worse_than_uniform(trained):
    model, batches = trained
    before = {k: v.clone() for k, v in model.state_dict().items()}
    seen = []
    result = plan(
        model,
        batches,
        0.35,
        config=PatternConfig(first="skip"),
        rates=(1.0, 2.0, 4.0),
        groups=(1, 2),
        progress=lambda done, total: seen.append((done, total)),
    )
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in before.items())
    assert result.planned_cost <= 0.35 * result.dense_cost
    assert result.uniform_cost <= 0.35 * result.dense_cost
    better = min(result.planned_loss, result.uniform_loss)
    assert result.config == (
        result.uniform if result.uniform_loss < result.planned_loss else result.planned
    )
    assert better >= 0
    assert seen[-1][0] == seen[-1][1] == len(seen)
    assert set(result.curves) == {"3", "6"}  # the 1x1 layer takes part
    assert len(result.sensitivity()["3"]) == 3
    report = oneshot(make_net(), rules=result.config.rules, first="skip")
    macs = layer_macs(model, batches[0][0][:1])
    left = sum(r.weights_kept / r.weights * macs[r.name] for r in report.rows[1:])
    assert left <= 0.36 * sum(macs[r.name] for r in report.rows[1:])


def test_measured_times_replace_macs(trained):
    model, batches = trained
    rows = [
        LatencyRow("3", None, 1, 4.0),
        LatencyRow("3", 2.0, 4, 1.0),
        LatencyRow("6", None, 1, 1.0),
        LatencyRow("6", 2.0, 1, 0.9),
        LatencyRow("head", None, 1, 9.0),
    ]
    result = plan(model, batches, 0.5, config=PatternConfig(first="skip"), latencies=rows)
    assert result.unit == "ms"
    assert result.dense_cost == 5.0
    chosen = {p.name: p for p in resolve_layers(model, result.planned)[0]}
    assert (chosen["3"].connectivity, chosen["3"].group) == (2.0, 4)
    assert "6" not in chosen  # pruning it is not needed, so it stays dense


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"budget": 0.0}, r"in \(0, 1\); got 0.0"),
        ({"budget": 1.5}, "got 1.5"),
        ({"budget": 0.001}, "out of reach: the candidates leave at least"),
        ({"calibration_data": []}, "at least 2 batches, got 0"),
        ({"latencies": [LatencyRow("3", None, 1, 1.0)]}, "no dense time"),
        (
            {
                "latencies": [
                    LatencyRow("3", None, 1, 1.0),
                    LatencyRow("3", 2.0, 5, 0.1),
                    LatencyRow("6", None, 1, 1.0),
                ]
            },
            "3 does not allow connectivity 2.0 with group 5",
        ),
    ],
)
def test_bad_budgets_are_named(trained, kwargs, message):
    model, batches = trained
    arguments = {"calibration_data": batches[:2], "budget": 0.5, "rates": (2.0,), **kwargs}
    with pytest.raises(ConfigError, match=message):
        plan(model, config=PatternConfig(first="skip"), **arguments)
